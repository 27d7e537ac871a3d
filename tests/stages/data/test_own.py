"""Batches from the user's own Python: what it may give, and what a person is told when it gives something else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.batches import Input, Limits
from stages.data.options import Data
from stages.data.own import Feeds
from stages.data.reading import Batches
from stages.stage import StageError

X = Input("x", "float32", ("n", 3))
HEAD = "import numpy as np\ndef rows(n, start=0): return {'x': np.full((n, 3), start, np.float32)}\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "load.py"


def read(script: Path, body: str, files: list[Path] | None = None, **options: Any) -> list[dict[str, Any]]:
    script.write_text(HEAD + body)
    inputs = options.pop("inputs", [X])
    source = Feeds(".py:load_data", [script], files or [], inputs, options.pop("limits", ()))
    return list(Batches(source, inputs, Data(callable=".py:load_data", **options)))


def refused(script: Path, body: str, **options: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        read(script, body, **options)
    assert "\n" not in caught.value.what
    assert caught.value.next_step
    return caught.value


GENERATOR = "def load_data():\n    yield from (rows(2, i) for i in range(3))\n"
LIST = "def load_data():\n    return [rows(2, i) for i in range(3)]\n"
READER = """
class load_data:
    left = 3
    def get_next(self):
        self.left -= 1
        return rows(2, 2 - self.left) if self.left >= 0 else None
"""


@pytest.mark.parametrize("body", [GENERATOR, LIST, READER], ids=["generator", "list", "reader of ONNX Runtime"])
def test_each_feed_is_a_batch_and_they_regroup_as_files_do(script: Path, body: str) -> None:
    assert [batch["x"].shape for batch in read(script, body)] == [(2, 3)] * 3
    assert [batch["x"][:, 0].tolist() for batch in read(script, body, batch_size=4)] == [[0, 0, 1, 1], [2, 2]]
    assert sum(len(batch["x"]) for batch in read(script, body, max_samples=5)) == 5


def test_a_function_of_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/load.py").write_text(HEAD + "def feeds():\n    from mine.number import N\n    yield rows(N)\n")
    for number in (2, 5):  # a process that stays must not run what it read before
        (tmp_path / "mine/number.py").write_text(f"N = {number}\n")
        (batch,) = Feeds("mine.load:feeds", [], [], [X]).feeds()
        assert len(batch["x"]) == number
    assert not any(name.startswith("mine") for name in sys.modules)


def test_directories_without_init_are_packages_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/deep/deeper").mkdir(parents=True)
    (tmp_path / "mine/deep/deeper/load.py").write_text(HEAD + "def feeds():\n    yield rows(2)\n")
    (batch,) = Feeds("mine.deep.deeper.load:feeds", [], [], [X]).feeds()
    assert len(batch["x"]) == 2
    assert not any(name.startswith("mine") for name in sys.modules)


def test_a_script_finds_what_lies_beside_it(script: Path) -> None:
    (script.parent / "beside.py").write_text("N = 4\n")
    assert len(read(script, "def load_data():\n    import beside\n    yield rows(beside.N)\n")[0]["x"]) == 4


def test_a_parameter_files_gets_the_declared_files(script: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    body = "def load_data(files):\n    return [{'x': np.load(file)} for file in files]\n"
    (batch,) = read(script, body, [tmp_path / "a.npy"])
    assert batch["x"].shape == (4, 3)


def test_other_names_are_ignored_labels_are_read_and_empty_feeds_passed_over(script: Path) -> None:
    body = "def load_data():\n    yield {**rows(0), 'y': []}\n    yield {**rows(2), 'text': 'two', 'y': [3, 4]}\n"
    (batch,) = read(script, body, inputs=[X, Input("y", None, None)])
    assert (sorted(batch), batch["y"].tolist()) == (["x", "y"], [3, 4])


def test_one_that_never_ends_is_read_up_to_max_samples(script: Path, tmp_path: Path) -> None:
    body = (
        "def load_data():\n    try:\n        while True:\n            yield rows(3)\n"
        f"    finally:\n        open({str(tmp_path / 'closed')!r}, 'w')\n"
    )
    assert sum(len(batch["x"]) for batch in read(script, body, max_samples=10)) == 10
    assert (tmp_path / "closed").exists()


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any), batch_size=st.integers(1, 6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_any_feeds_regroup_to_the_same_samples(script: Path, sizes: list[int], batch_size: int) -> None:
    body = f"def load_data():\n    yield from (rows(n, i) for i, n in enumerate({sizes}))\n"
    found = [value for batch in read(script, body, batch_size=batch_size) for value in batch["x"][:, 0]]
    assert found == [index for index, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def load_data():\n    yield rows(2)\n    raise KeyError('gone')\n", "raised KeyError: 'gone' ("),
        ("def load_data():\n    return open('/nowhere')\n", "raised FileNotFoundError"),
        ("def load_data():\n    yield {'y': 1}\n", "feed 0 (counted from 0)"),
        ("def load_data():\n    yield rows(2)['x']\n", "is ndarray"),
        ("def load_data():\n    return rows(2)\n", "returned dict"),
        ("def load_data():\n    pass\n", "returned NoneType"),
        ("def load_data():\n    yield from ()\n", "gave no sample"),
        ("def load_data():\n    yield {'x': np.ones((2, 4), np.float32)}\n", "is float32 (2, 4); allowed: x: float32"),
        ("def load_data():\n    yield {'x': np.ones((2, 3))}\n", "is float64 (2, 3); allowed: x: float32"),
        ("def load_data():\n    yield {'x': [[1], [1, 2]]}\n", "'x' cannot be made an array: ValueError"),
        ("load_data = 3\n", "is no function: it is int"),
        ("def load():\n    pass\n", "cannot be imported: AttributeError"),
        ("import nowhere_at_all\n", "cannot be imported: ModuleNotFoundError"),
        ("def load_data(\n", "cannot be imported: SyntaxError"),
        ("def load_data(other):\n    pass\n", "raised TypeError"),
    ],
)
def test_what_goes_wrong_in_it_is_said_in_one_line(script: Path, body: str, says: str) -> None:
    message = str(refused(script, body))
    assert says in message
    assert f"{script}" in message or "gave no sample" in message


def test_the_line_that_raised_is_named(script: Path) -> None:
    body = "def load_data():\n    yield rows(2)\n    np.load('/nowhere.npy')\n"
    assert f"({script}:5)" in str(refused(script, body))


def test_feeds_outside_of_every_profile_are_refused(script: Path) -> None:
    body = "def load_data():\n    yield rows(2)\n"
    limits = [Limits("default", {"x": ((4,), (8,))})]
    message = str(refused(script, body, inputs=[Input("x", "float32", ("n", "k"))], limits=limits))
    assert "a sample of 'x' is (3,), profile 'default' takes (4,) to (8,)" in message
