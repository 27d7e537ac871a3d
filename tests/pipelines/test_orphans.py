"""What becomes of a process whose parent dies."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHILD = """
import os, signal, time
from pipelines.orphans import end_with
signal.signal(signal.SIGTERM, lambda number, frame: (print("asked to end", flush=True), os._exit(0)))
end_with(os.getppid(), signal.SIGTERM)
print(os.getpid(), flush=True)
time.sleep(600)
"""

PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_who_has_asked_for_it_hears_of_its_parents_death_at_once():
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline().strip().isdigit()  # it has asked
        parent.kill()
        killed = time.monotonic()
        assert parent.stdout.read() == "asked to end\n"
        assert time.monotonic() - killed < 5


def test_whose_parent_died_before_it_could_ask_ends_by_itself():
    code = "import os, signal; from pipelines.orphans import end_with; end_with(os.getpid(), signal.SIGTERM); print(1)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
