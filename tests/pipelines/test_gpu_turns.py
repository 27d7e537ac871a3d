"""Who builds on which GPU: one TensorRT step at a time on each. The GPUs are made up; locks and processes are real."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from artifacts.store import Store
from pipelines import child, gpu_turns
from pipelines.execute import Workshop
from pipelines.graph import Node
from pipelines.targets import BuildTarget
from stages import STAGES
from stages.build_config import BuildConfig
from stages.gpus import Gpu, Gpus
from stages.stage import Job, Metrics, Stage
from tests.artifacts.processes import running, said
from tests.faults import small_build

ONE, TWO = Gpu("NVIDIA L4", "GPU-1", "8.9", 24 << 30), Gpu("NVIDIA L4", "GPU-2", "8.9", 24 << 30)
OTHER = Gpu("NVIDIA L40S", "GPU-3", "8.9", 48 << 30)
L4 = BuildTarget("l4", "NVIDIA L4", "8.9", "tensorrt", "10.16.1.11", Gpus((ONE, OTHER)))
TWO_L4 = replace(L4, here=Gpus((ONE, OTHER, TWO)))

HOLD = """
    import sys
    from pathlib import Path
    from artifacts.locks import exclusive
    with exclusive(Path(sys.argv[1]), "build[l4] of somebody else", lambda holder: None):
        print("held", flush=True)
        sys.stdin.readline()
"""


class GaveUpError(Exception):
    pass


def give_up(holder: str) -> None:
    raise GaveUpError(holder)


def turn(target: BuildTarget, stage: str = "build") -> object:
    return gpu_turns.turn(Node(stage, STAGES[stage], BuildConfig(), target), target.facts, "me", give_up)


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


def test_a_gpu_has_one_build_at_a_time_and_who_waits_hears_of_whom() -> None:
    with turn(L4), pytest.raises(GaveUpError, match=r"^me$"), turn(L4):
        raise AssertionError("two build on one GPU")


def test_builds_of_other_processes_count_whatever_their_store() -> None:
    gpu_turns.directory().mkdir(parents=True)
    lock = gpu_turns.directory() / "GPU-1.lock"
    with running(HOLD, lock) as process:
        assert said(process) == "held"
        with pytest.raises(GaveUpError, match=r"^build\[l4\] of somebody else$"), turn(L4):
            raise AssertionError("two build on one GPU")
        process.kill()
        process.wait()
        with turn(L4):
            pass


def test_of_two_gpus_of_a_kind_each_takes_one_build_which_is_told_to_use_no_other() -> None:
    with ExitStack() as stack:
        assert {stack.enter_context(turn(TWO_L4)) for _ in range(2)} == {"GPU-1", "GPU-2"}
        with pytest.raises(GaveUpError):
            stack.enter_context(turn(TWO_L4))


def test_where_there_is_no_choice_a_build_is_told_nothing() -> None:
    with turn(L4) as gpu:
        assert gpu is None


def test_a_plan_is_validated_when_nothing_is_built_on_its_gpu() -> None:
    with turn(L4), pytest.raises(GaveUpError), turn(L4, "validate"):
        raise AssertionError("a build was timed beside an engine that ran")


@pytest.mark.parametrize(
    ("target", "stage"),
    [(replace(L4, backend="tensorrt_rtx"), "build"), (L4, "publish"), (replace(L4, here=Gpus(())), "validate")],
    ids=["TensorRT-RTX", "a step that uses no GPU", "no GPU"],
)
def test_what_times_nothing_on_a_gpu_waits_for_none(target: BuildTarget, stage: str) -> None:
    with turn(target, stage), turn(target, stage):
        assert not gpu_turns.directory().exists()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_what_measures_time_has_the_gpu_for_itself_with_either_backend(backend: str) -> None:
    target = replace(L4, backend=backend)
    with turn(target, "bench"), pytest.raises(GaveUpError), turn(target, "bench"):
        raise AssertionError("two plans were timed on one GPU")


def test_what_measures_time_on_the_cpu_is_measured_one_at_a_time_whatever_its_target() -> None:
    one, other = replace(L4, here=Gpus(())), replace(TWO_L4, here=Gpus(()), backend="tensorrt_rtx")
    with turn(one, "bench") as gpu, pytest.raises(GaveUpError), turn(other, "bench"):
        raise AssertionError(f"two models were timed on one CPU: {gpu}")
    with turn(one, "bench") as gpu:
        assert gpu is None


@dataclass(frozen=True)
class Asked:
    """Which of two builds it is."""

    number: int


def test_steps_of_one_run_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def build(job: Job[Asked]) -> Metrics:
        seen.append("begins")
        time.sleep(0.1)
        seen.append("ends")
        (job.out / "plan").write_text(str(job.config.number))
        return {}

    facts = ("backend", "compute_capability", "gpu")
    stage: Stage[Asked] = Stage("made", 1, Asked, build, (), {"plan": "plan"}, facts=facts, uses_gpu=True)
    monkeypatch.setattr(child, "run", small_build.in_this_process)
    workshop = Workshop(Store(tmp_path / "store"))
    said: list[str] = []
    nodes = [Node(f"build{number}", stage, Asked(number), L4) for number in range(3)]
    threads = [
        threading.Thread(target=lambda node=node: workshop.execute(node, {}, lambda phase, _: said.append(phase)))
        for node in nodes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["begins", "ends"] * 3
    assert any(phase.startswith("waiting for build") for phase in said)
