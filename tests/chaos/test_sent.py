"""Steps that a build has sent to a queue, whose worker dies with the run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.chaos.harness import Server, eventually, frozen_child, kill, parent, working
from tests.pipelines.conftest import Forge

pytestmark = [pytest.mark.chaos, pytest.mark.prefect, pytest.mark.xdist_group("prefect")]


@pytest.mark.parametrize("another", [True, False], ids=["another worker comes", "none does"])
def test_a_run_that_is_killed_with_its_worker_is_sent_to_the_next_one(
    server: Server, forge: Forge, tmp_path: Path, another: bool
) -> None:
    variables = {**forge.environment, "TRTFORGE_REMOTE": str(tmp_path / "remote"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    there, here = (Forge(tmp_path / name, variables) for name in ("there", "here"))
    for machine in (there, here):
        machine.home.mkdir()
    serve = ("--cpu-runs", "0", "--queue", "sm_89")
    with working(there, *serve) as worker:
        eventually(lambda: "started!" in worker.said, 60)
        build = here.start("build", "routing=queue", "flow=fp32", "targets=[l4]")
        child = frozen_child(there.store, "build")
        run = parent(child)
        kill(worker.process.pid, parent(run), run, child)
    if another:
        with working(there, *serve):
            _, err = build.communicate(timeout=240)
        assert build.returncode == 0, err
        assert "build[l4]: the run digits-fp32 for l4 crashed" in err and "it is sent again" in err
        assert here("status", "--json", "routing=here", "runner=local", "flow=fp32", "targets=[l4]").code == 0
    else:
        _, err = build.communicate(timeout=400)
        assert build.returncode == 1, err
        assert "no worker of the queue sm_89 lives: nobody takes the run" in err
    # Nothing waits for the dead: the same build is whole at once.
    again = here("build", "--json", "routing=here", "runner=local", "flow=fp32", "targets=[l4]")
    assert again.code == 0, again.err
    assert not [*(tmp_path / "remote/jobs").glob("*")]
    assert worker.process.returncode == -signal.SIGKILL
