"""What is seen while a build runs."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

from tests.pipelines.conftest import COMMAND


def seen_on_a_terminal(forge, *arguments):
    """Runs the command with a terminal as stderr and returns what appeared there."""
    terminal, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(
        [str(COMMAND), *arguments], cwd=forge.home, env=environment, stdout=subprocess.DEVNULL, stderr=other
    )
    os.close(other)
    seen, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            seen += os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(terminal)
    assert process.wait(10) == 0
    return seen.decode(errors="replace")


def test_a_terminal_shows_a_live_bar_with_the_builders_own_phases(forge):
    seen = seen_on_a_terminal(forge, "build", "runner=local", "flow=fp32", "targets=[l4]")
    assert "\x1b[" in seen  # redrawn in place
    assert "build[l4]" in seen
    assert "Building" in seen or "Tactic" in seen or "Graph" in seen or "Engine" in seen, seen[-2000:]
    assert "\x1b[?25h" in seen  # the cursor is shown again


def test_elsewhere_there_are_plain_lines(forge):
    ran = forge("build", "runner=local", "flow=export")
    assert ran.err.splitlines()[0] == "export: started"
    assert "export: built in" in ran.err
    assert "\x1b" not in ran.err + ran.out


def test_quiet_says_nothing(forge):
    ran = forge("build", "--quiet", "runner=local", "flow=export")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_json_is_one_document_and_everything_else_goes_to_stderr(forge):
    ran = forge("build", "--json", "runner=local", "flow=export")
    assert ran.document["ok"] is True
    assert "started" in ran.err


def test_the_table_has_a_row_per_step_and_then_a_line_per_plan(built):
    lines = built("build").out.splitlines()
    assert lines[0].split() == ["step", "target", "state", "seconds", "size"]
    assert len(lines) == 1 + 5 + 3 * 3 + 3
    for line, target in zip(lines[-3:], ("a10", "l4", "rtx5090"), strict=True):
        assert line.startswith(f"{target}: ")
        assert line.endswith("model.plan (validated)")
