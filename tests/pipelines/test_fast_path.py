"""A build with nothing to do decides by hashing and looking up alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("prefect", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "torch", "cuda", "numpy")

REFUSING = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise AssertionError(f"{{name}} was imported")

sys.meta_path.insert(0, Refuse())
from pipelines.cli import main
sys.argv = ["trtforge", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    "arguments", [["build"], ["build", "runner=local"], ["status", "--json"], ["status", "--versions"], ["ls"]]
)
def test_nothing_heavy_is_imported(built, arguments):
    ran = subprocess.run(
        [sys.executable, "-c", REFUSING, *arguments], cwd=built.home, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_the_hook_of_this_test_does_refuse(forge):
    ran = subprocess.run(
        [sys.executable, "-c", REFUSING, "build"], cwd=forge.home, capture_output=True, text=True, check=False
    )
    assert "prefect was imported" in ran.stderr


def test_a_read_only_store_is_enough(built):
    before = {
        path: path.stat().st_mtime_ns for path in built.store.rglob("*") if path.is_file() and path.suffix != ".sqlite"
    }
    assert set(built.build().states().values()) == {"cached"}
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_store_where_all_is_cached_is_not_indexed(built):
    (built.store / "records.sqlite").unlink(missing_ok=True)
    assert set(built.status().states().values()) == {"cached"}
    assert not (built.store / "records.sqlite").exists()  # in a large store it would take minutes
