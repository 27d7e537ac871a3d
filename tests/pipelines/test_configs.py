"""A kept config is what composing would give at that moment, whatever has changed; and Hydra is not asked."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.compose import compose
from conf.errors import ConfigError
from pipelines import configs
from pipelines.configs import Configs

HOUR_NS = 3600 * 10**9


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a store and configs of its own, an hour later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRTFORGE_STORE", raising=False)
    (tmp_path / ".trtforge").mkdir()
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text("path: ${oc.env:NET,net}.onnx\n")
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + HOUR_NS)
    yield tmp_path


def composed(*overrides: str, dirs: tuple[str, ...] = ("own",)) -> tuple[object, bool]:
    """The config, and whether it had to be composed; what is composed is kept."""
    asked = Configs([Path(path) for path in dirs])
    with mock.patch.object(configs, "_compose", wraps=configs._compose) as real:
        found = asked.compose(overrides)
        asked.keep()
        return found, bool(real.call_args)


def test_the_second_time_nothing_is_composed(home: Path) -> None:
    first, again = composed("model=mine"), composed("model=mine")
    assert (first[1], again[1]) == (True, False)
    assert repr(first[0]) == repr(again[0]) == repr(compose(["model=mine"], [home / "own"]))


def test_other_overrides_another_directory_and_another_version_are_composed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed("model=mine")
    assert composed("model=mine", "flow=fp16")[1]
    shutil.copytree("own", "other")
    assert composed("model=mine", dirs=("other",))[1]
    assert not composed("model=mine")[1]
    version = configs.installed.version
    for name in configs.COMPOSERS:
        with monkeypatch.context() as patched:
            patched.setattr(configs.installed, "version", lambda asked, n=name: "99" if asked == n else version(asked))
            assert composed("model=mine")[1], name
    own_files = configs._own_files()
    monkeypatch.setattr(configs, "_own_files", lambda: [*own_files, __file__])  # a stage that was not there before
    assert composed("model=mine")[1]


EDITS = st.sampled_from(["edit", "variable", "unset", "remove", "add", "shadow", "touch", "override", "link"])


@settings(deadline=None, max_examples=6)
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_whatever_changes_the_answer_is_what_composing_gives(edits: list[str]) -> None:
    before, now = Path.cwd(), time.time_ns
    environment = dict(os.environ)
    with (
        tempfile.TemporaryDirectory() as home,
        mock.patch.object(time, "time_ns", lambda: now() + HOUR_NS),
    ):
        try:
            os.chdir(home)
            for directory in (".trtforge", "first/model", "own/model", "first/store"):
                Path(directory).mkdir(parents=True)
            Path("own/model/mine.yaml").write_text("path: ${oc.env:NET,net}.onnx\n")
            overrides = ["model=mine", "targets=[l4]"]
            _agree(overrides)
            for number, edit in enumerate(edits):
                _edit(edit, number, overrides)
                _agree(overrides, times=2)
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)


def _edit(edit: str, number: int, overrides: list[str]) -> None:
    mine = Path("own/model/mine.yaml")
    match edit:
        case "edit":
            mine.write_text(f"path: ${{oc.env:NET,net}}.onnx\nname: n{number}\n")
        case "variable":
            os.environ["NET"] = f"net{number}"
        case "unset":
            os.environ.pop("NET", None)
        case "remove":
            mine.unlink(missing_ok=True)
        case "add":
            Path("own/model/another.yaml").write_text("path: x\n")
        case "shadow":  # of two directories the first counts
            Path("first/model/mine.yaml").write_text(f"path: shadow{number}.onnx\n")
        case "touch":
            os.utime("own/model")
        case "override":
            overrides.append(f"model.name=o{number}")
        case "link":
            mine.unlink(missing_ok=True)
            Path(f"elsewhere{number}.yaml").write_text(f"path: linked{number}.onnx\n")
            mine.symlink_to(Path(f"elsewhere{number}.yaml").absolute())


def _agree(overrides: list[str], times: int = 1) -> None:
    dirs = [Path("first"), Path("own")]

    def told(ask: object) -> str:
        try:
            return repr(ask())  # type: ignore[operator]
        except ConfigError as error:
            return f"{error.what} / {error.next_step}"

    anew = told(lambda: compose(overrides, dirs))
    for _ in range(times):
        asked = Configs(dirs)
        assert told(lambda asked=asked: asked.compose(overrides)) == anew
        asked.keep()


def test_a_file_with_a_shipped_name_is_refused_though_the_config_is_kept(home: Path) -> None:
    composed("model=mine")
    (home / "own/model/digits.yaml").write_text("path: x\n")
    with pytest.raises(ConfigError, match="trtforge ships a model of this name"):
        composed("model=mine")


def test_what_fails_holds_the_time_or_asks_hydra_is_never_kept(home: Path) -> None:
    for overrides in (["model=mine", "model.nme=x"], ["flow=int9"]):
        for _ in range(2):
            with pytest.raises(ConfigError):
                composed(*overrides)
    for override in ("model.name='${now:%H}'", "hydra.job.name=x"):
        assert [composed("model=mine", override)[1] for _ in range(2)] == [True, True]
    assert "notes" not in _tables(home) or _notes(home) == 0


def test_what_is_too_young_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert [composed("model=mine")[1] for _ in range(2)] == [True, True]


@pytest.mark.parametrize("damage", ["'[1]'", "text || ' '", "replace(text, 'net', 'ten')", "''"])
def test_a_kept_config_that_is_damaged_is_composed_anew(home: Path, damage: str) -> None:
    before = composed("model=mine")[0]
    with sqlite3.connect(home / ".trtforge/index.sqlite") as database:
        assert database.execute(f"UPDATE notes SET text = {damage}").rowcount == 1  # noqa: S608
    database.close()
    found, anew = composed("model=mine")
    assert anew
    assert repr(found) == repr(before)


def test_a_plugin_of_hydra_that_is_installed_later_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [composed("model=mine")[1] for _ in range(2)] == [True, False]
    (home / "site/hydra_plugins").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(home / "site"))
    assert composed("model=mine")[1]


def test_paths_that_are_no_text_are_kept_like_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (home / odd / ".trtforge").mkdir(parents=True)
    monkeypatch.chdir(home / odd)
    monkeypatch.setenv("NET", odd)
    found = [composed("model=mine", dirs=("../own",)) for _ in range(2)]
    assert [anew for _, anew in found] == [True, False]
    assert repr(found[0][0]) == repr(found[1][0])


def test_without_a_store_nothing_is_written(home: Path) -> None:
    (home / ".trtforge").rmdir()
    assert [composed("model=mine")[1] for _ in range(2)] == [True, True]
    assert not (home / ".trtforge").exists()


def test_a_build_with_nothing_to_do_imports_neither_hydra_nor_rich(built) -> None:  # type: ignore[no-untyped-def]
    import subprocess

    code = (
        "import time, sys; now = time.time_ns; time.time_ns = lambda: now() + 3600 * 10**9\n"
        "import os; end = os._exit\n"
        "said = lambda: print(*sorted({n.partition('.')[0] for n in sys.modules}), file=sys.stderr)\n"
        "os._exit = lambda code: (said(), end(code))\n"
        "from pipelines.cli import main; sys.argv = ['trtforge', 'build']; main()\n"
    )
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", code], cwd=built.home, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stderr.splitlines()[-1].split())
    assert "pipelines" in loaded
    assert not loaded & {"hydra", "omegaconf", "antlr4", "yaml", "rich", "numpy", "prefect", "importlib_metadata"}


def _tables(home: Path) -> set[str]:
    database = sqlite3.connect(home / ".trtforge/index.sqlite")
    found = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    database.close()
    return found


def _notes(home: Path) -> int:
    database = sqlite3.connect(home / ".trtforge/index.sqlite")
    (count,) = database.execute("SELECT count(*) FROM notes").fetchone()
    database.close()
    return int(count)
