"""A command that is forked is a command that is started: the same words, codes, directory and variables."""

from __future__ import annotations

import signal

import pytest

from pipelines.errors import Exit
from tests.pipelines import forks
from tests.pipelines.conftest import Ran


@pytest.mark.parametrize("arguments", [("status", "--json"), ("build", "flow=int9"), ("why", "no-such-step")])
def test_it_says_and_ends_as_one_that_is_started(built, arguments):
    started = built.start(*arguments)
    out, err = started.communicate(timeout=60)
    assert built(*arguments) == Ran(started.returncode, out, err)


def test_each_has_its_own_directory_and_variables(tmp_path):
    (tmp_path / "one/mine").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    for name, missing in (("one", "model-of-one"), ("two", "mine")):
        words = ["status", "--config-dir", "mine", "model=onnx", "model.path=model-of-${oc.env:NAME}"]
        code, _, err = forks.run(words, tmp_path / name, {"NAME": name})
        assert (code, missing in err) == (Exit.WRONG_CALL, True), err


def test_one_that_takes_too_long_is_ended_and_the_next_one_runs(forge):
    assert forks.run(["status"], forge.home, forge.variables, limit_s=0.01)[0] == -signal.SIGALRM
    assert forge("--version").code == Exit.DONE
