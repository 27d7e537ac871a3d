"""Slots of Prefect's global concurrency limits, on a real server."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipelines.errors import InterruptedBuildError
from stages.stage import StageError
from tests.pipelines.conftest import Forge
from tests.pipelines.test_flows import ask
from tests.pipelines.test_sending import copying
from tests.pipelines.test_with_tensorrt import BINDINGS, LOCAL
from tests.stages.stand_in_libraries import make_machine

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

HOLD = """
import sys
from pipelines.limits import slot
with slot("9.9", print):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def slot(server):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from pipelines import limits

    with temporary_settings({PREFECT_API_URL: server}):
        yield limits.slot


def test_a_limit_that_is_missing_is_an_error_that_says_what_creates_it(slot):
    with pytest.raises(StageError, match="trtforge-sm_35 cannot be taken") as caught, slot("3.5", print):
        raise AssertionError("held")
    assert "trtforge deploy" in caught.value.next_step


def test_who_waits_for_a_slot_hears_so_and_may_give_up(slot, server, tmp_path, monkeypatch):
    from pipelines import limits

    monkeypatch.setattr(limits, "_TELL_SECONDS", 1.0)
    ask(server, "v2/concurrency_limits/", name="trtforge-sm_99", limit=1, active=True)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=Forge(tmp_path, {"PREFECT_API_URL": server}).variables, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert other.stdout.readline().strip() == "held"

    def give_up(holder):
        assert holder == "a slot of the concurrency limit trtforge-sm_99"
        raise InterruptedBuildError

    with pytest.raises(InterruptedBuildError), slot("9.9", give_up):
        raise AssertionError("held by two")
    other.communicate("\n", timeout=30)
    with slot("9.9", give_up):
        pass  # it is free again


@pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings")
def test_a_deployments_run_takes_one_for_what_uses_a_gpu_and_a_terminals_takes_none(server, tmp_path):
    """The GPU is a stand-in. That the limit of its architecture is missed shows that it is taken."""
    (tmp_path / "machine").mkdir()
    machine = make_machine(tmp_path / "machine", BINDINGS / "11.4.0.106")
    copying(tmp_path / "copy.onnx")
    forge = Forge(tmp_path, {"PREFECT_API_URL": server, **machine})
    there = [limit for limit in ask(server, "v2/concurrency_limits/filter") if limit["name"] == "trtforge-sm_89"]
    for limit in there:
        forget(server, limit)
    try:
        run = f"from pipelines.flows import build; print(build({[*LOCAL]!r}, return_state=True))"
        command = [sys.executable, "-c", run]
        ran = subprocess.run(command, cwd=tmp_path, env=forge.variables, text=True, capture_output=True)
        assert "the concurrency limit trtforge-sm_89 cannot be taken" in ran.stdout
        assert forge("build", *LOCAL).code == 0
    finally:
        for limit in there:
            ask(server, "v2/concurrency_limits/", **{name: limit[name] for name in ("name", "limit", "active")})


def forget(server, limit):
    request = urllib.request.Request(f"{server}/v2/concurrency_limits/{limit['id']}", method="DELETE")
    urllib.request.urlopen(request, timeout=10).close()
