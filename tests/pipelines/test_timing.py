"""Which timings a step is handed, and what becomes of what it measured; all but the stages' own processes is real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from artifacts import timing
from artifacts.exchange import Exchange
from artifacts.remote import Remote
from artifacts.store import Store
from artifacts.verify import repair, verify
from pipelines import child, targets
from pipelines.errors import InterruptedBuildError
from pipelines.execute import Outcome, Workshop
from pipelines.graph import Node
from pipelines.sharing import Sharing
from pipelines.targets import BuildTarget
from pipelines.timing import driver_major, place_of
from stages import STAGES, backends
from stages.build_config import BuildConfig
from stages.gpus import Gpu, Gpus, gpus
from stages.refit import RefitConfig
from stages.stage import Job, Metrics, Stage, StageError
from tests.faults import small_build
from tests.pipelines.conftest import Forge

HERE = Gpus((Gpu("NVIDIA L4", "GPU-0", "8.9", 24 << 30), Gpu("NVIDIA L40S", "GPU-1", "8.9", 48 << 30)))
L4 = BuildTarget("l4", "NVIDIA L4", "8.9", "tensorrt", "10.16.1.11", HERE)
L40S = replace(L4, name="l40s", gpu="NVIDIA L40S")
RTX = replace(L4, backend="tensorrt_rtx", backend_version="1.7.1.116")
PLACE = "gpu/trt-10.16.1.11/NVIDIA-L4/580"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:10:57 UTC 2025\nGCC version: 13\n"


@dataclass(frozen=True)
class Asked:
    """What a build is asked for, and how it goes."""

    layers: str = ""
    pinned: bool = False
    fails: bool = False


def build(job: Job[Asked]) -> Metrics:
    """Times the layers that no cache holds, and writes which these were; a cache is a file of words."""
    assert job.memory
    known = {word for path in job.memory.known for word in path.read_text().split()}
    fresh = {*job.config.layers.split()} - known
    (job.out / "model.plan").write_text(f"{job.config.layers}: {sorted(fresh)} timed, {sorted(known)} known")
    job.memory.learnt.write_text(" ".join(sorted(known | fresh)))
    if job.config.fails:
        raise StageError("out of device memory")
    return {"timing_cache": {"merged": [path.name for path in job.memory.known], "refused": [], "bytes": 0}}


STAGE: Stage[Asked] = Stage(
    "build",
    1,
    Asked,
    build,
    (),
    {"plan": "model.plan"},
    facts=("backend", "backend_version", "compute_capability", "gpu"),
    remembers=lambda config, facts: "key" if config.pinned else "gpu",
)


@dataclass
class Machine:
    """A store, and what a run was told."""

    store: Store
    sharing: Sharing | None = None
    told: list[str] = field(default_factory=list)
    stop: Event = field(default_factory=Event)

    def build(self, layers: str, target: BuildTarget = L4, **asked: bool) -> Outcome:
        node = Node("build", STAGE, Asked(layers, **asked), target)
        workshop = Workshop(self.store, stop=self.stop, sharing=self.sharing, note=self.told.append)
        return workshop.execute(node, {}, lambda phase, fraction: None)

    def plan(self, outcome: Outcome) -> str:
        assert outcome.record, outcome.error
        return self.store.path(outcome.record.outputs["plan"]).read_text()

    def lose(self, outcome: Outcome) -> None:
        assert outcome.record
        self.store.path(outcome.record.outputs["plan"]).unlink()


@pytest.fixture(autouse=True)
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a driver, whose stages run in this process."""
    monkeypatch.setattr(child, "run", small_build.in_this_process)
    path = tmp_path / "driver"
    path.write_text(DRIVER)
    monkeypatch.setattr(targets, "NVIDIA_DRIVER", path)
    return path


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(Store(tmp_path / "store"))


def test_a_build_is_handed_what_earlier_builds_on_this_gpu_measured(machine: Machine) -> None:
    assert machine.plan(machine.build("conv")).endswith("['conv'] timed, [] known")
    assert machine.plan(machine.build("conv gemm")).endswith("['gemm'] timed, ['conv'] known")
    assert machine.plan(machine.build("pool")).endswith("['pool'] timed, ['conv', 'gemm'] known")
    (name,) = timing.names(machine.store)
    assert name.startswith(f"{PLACE}/")
    assert machine.told == []


def test_what_is_handed_over_is_in_no_key_and_in_no_output(machine: Machine) -> None:
    machine.build("conv")
    second = machine.build("gemm")
    assert second.record
    assert {*second.record.outputs} == {"plan"}
    (name,) = second.record.metrics["timing_cache"]["merged"]
    assert name not in str(second.record.fields)
    assert second.key == Machine(Store(machine.store.root / "another")).build("gemm").key


def test_another_gpu_version_or_driver_has_a_cache_of_its_own(machine: Machine, driver: Path) -> None:
    machine.build("conv")
    later = replace(L4, backend_version="10.16.2.0")
    assert "[] known" in machine.plan(machine.build("conv", L40S))
    assert "[] known" in machine.plan(machine.build("conv", later))
    driver.write_text(DRIVER.replace("580.65.06", "590.48.01"))
    assert "[] known" in machine.plan(machine.build("conv gemm"))
    assert len(timing.names(machine.store)) == 4


def test_a_failed_build_puts_nothing_back(machine: Machine) -> None:
    machine.build("conv")
    before = timing.names(machine.store)
    failed = machine.build("conv gemm", fails=True)
    assert (failed.state, failed.error) == ("failed", "out of device memory")
    assert timing.names(machine.store) == before


def test_an_interrupted_build_puts_nothing_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: child.Work, progress: Any, stop: Event) -> child.Result:
        stop.set()
        return small_build.in_this_process(work, progress, stop)

    monkeypatch.setattr(child, "run", interrupted)
    with pytest.raises(InterruptedBuildError):
        machine.build("conv")
    assert timing.names(machine.store) == []


def test_a_damaged_cache_is_told_and_the_build_goes_on_without(machine: Machine) -> None:
    machine.build("conv")
    (name,) = timing.names(machine.store)
    path = machine.store.root / "timing" / name
    path.chmod(0o644)
    path.write_text("conv gemm")
    assert "[] known" in machine.plan(machine.build("gemm"))
    assert len(machine.told) == 1
    assert "is damaged" in machine.told[0]


def cannot_be_kept(machine: Machine) -> None:
    machine.store.root.mkdir()
    (machine.store.root / "timing").touch()


def test_a_cache_that_cannot_be_kept_costs_the_next_build_time_and_this_one_nothing(machine: Machine) -> None:
    cannot_be_kept(machine)
    assert machine.build("conv").state == "built"
    assert len(machine.told) == 1
    assert machine.told[0].startswith("what was measured is lost for the next build: the store ")
    assert "[] known" in machine.plan(machine.build("conv gemm"))


# Pinned tactics


def test_a_pinned_plan_that_is_built_again_gets_its_own_timings_and_no_others(machine: Machine) -> None:
    machine.build("conv pool")
    first = machine.build("conv", pinned=True)
    assert machine.plan(first).endswith("['conv'] timed, [] known")
    assert f"pinned/{first.key}/" in "".join(timing.names(machine.store))
    machine.lose(first)
    again = machine.build("conv", pinned=True)
    assert (again.state, again.key) == ("built", first.key)
    assert machine.plan(again).endswith("[] timed, ['conv'] known")
    assert "[] known" in machine.plan(machine.build("gemm", pinned=True))


def test_what_pins_a_plan_outlives_its_record(machine: Machine) -> None:
    first = machine.build("conv", pinned=True)
    machine.lose(first)
    repair(machine.store, verify(machine.store).findings)
    assert first.key
    assert machine.store.record(first.key) is None
    assert machine.plan(machine.build("conv", pinned=True)).endswith("[] timed, ['conv'] known")


def test_a_plan_whose_pin_cannot_be_kept_fails(machine: Machine) -> None:
    cannot_be_kept(machine)
    failed = machine.build("conv", pinned=True)
    assert failed.state == "failed"
    assert "cannot be written" in (failed.error or "")
    assert not list(machine.store.recorded())


# Several machines


@pytest.fixture
def machines(tmp_path: Path) -> Callable[[str], Machine]:
    """Machines that share a remote, by name."""

    def made(name: str) -> Machine:
        found = Machine(Store(tmp_path / name))
        remote = Remote(str(tmp_path / "shared"), 60)
        found.sharing = Sharing(Exchange(found.store, remote), 30, found.told.append)
        return found

    return made


def test_a_remote_carries_caches_from_machine_to_machine(machines: Callable[[str], Machine]) -> None:
    one, two = machines("one"), machines("two")
    one.build("conv")
    assert two.plan(two.build("conv gemm")).endswith("['gemm'] timed, ['conv'] known")
    assert one.plan(one.build("gemm")).endswith("[] timed, ['conv', 'gemm'] known")
    assert one.sharing
    assert len(one.sharing.exchange.remote.names("timing")) == 1


def test_a_pinned_plan_is_built_again_elsewhere_with_the_same_tactics(machines: Callable[[str], Machine]) -> None:
    one, two = machines("one"), machines("two")
    first = one.build("conv", pinned=True)
    assert first.record
    assert one.sharing
    blob = first.record.outputs["plan"]
    one.sharing.exchange.remote.write(f"objects/{blob.digest[:2]}/{blob.digest[2:]}", b"damaged")
    again = two.build("conv", pinned=True)
    assert again.state == "built"
    assert two.plan(again).endswith("[] timed, ['conv'] known")


def test_a_remote_that_is_gone_leaves_a_build_its_own_cache(machines: Callable[[str], Machine], tmp_path: Path) -> None:
    one = machines("one")
    one.build("conv")
    (tmp_path / "shared").rename(tmp_path / "unplugged")
    (tmp_path / "shared").touch()
    assert one.plan(one.build("conv gemm")).endswith("['gemm'] timed, ['conv'] known")
    assert len(one.told) == 1
    assert "going on without it" in one.told[0]


# Which cache is whose


def place(config: Any, target: BuildTarget, stage: str = "build") -> str | None:
    """Where the real stage's caches lie."""
    found = STAGES[stage]
    facts = found.facts_seen(config, {name: target.facts[name] for name in found.facts if name in target.facts})
    return place_of(Node(stage, found, config, target), facts, "k" * 64)


def test_a_place_is_one_version_gpu_and_driver_and_a_pinned_plans_its_key() -> None:
    assert place(BuildConfig(), L4) == place(RefitConfig(), L4, "refit") == PLACE
    assert place(BuildConfig(), L40S) == PLACE.replace("L4", "L40S")
    assert place(BuildConfig(pin_tactics=True), L4) == f"pinned/{'k' * 64}"
    assert place(BuildConfig(disable_timing_cache=True), L4) is None
    general = BuildConfig(hardware_compatibility_level="same_compute_capability")
    assert place(general, L40S) == PLACE  # the first GPU of the capability is the one that builds


def test_rtx_which_times_nothing_has_no_cache() -> None:
    assert place(BuildConfig(), RTX) is None
    assert place(BuildConfig(pin_tactics=True), RTX) is None


def test_a_real_build_with_rtx_touches_none(default_store: Path) -> None:
    assert timing.names(Store(default_store)) == []
    store = Store(default_store)
    metrics = [record.metrics for key in store.recorded() if (record := store.record(key))]
    assert {each["timing_cache"] for each in metrics if "timing_cache" in each} == {None}


@pytest.mark.parametrize(
    ("text", "major"),
    [
        (DRIVER, "580"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  525.60.11  Release Build  (builder)\n", "525"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  590.48  Release Build\n", "590"),
        ("something else", None),
        (None, None),
    ],
)
def test_the_drivers_major_version_is_read_whichever_module_it_is(
    text: str | None, major: str | None, driver: Path
) -> None:
    driver.unlink() if text is None else driver.write_text(text)
    assert driver_major() == major


def test_without_a_driver_nothing_is_kept_since_nobody_knows_whose_it_is(driver: Path) -> None:
    driver.unlink()
    assert place(BuildConfig(), L4) is None


@pytest.mark.gpu
@pytest.mark.skipif(
    not gpus().found or not backends.installed_version("tensorrt"), reason="no GPU, or TensorRT is not installed"
)
def test_tensorrt_takes_back_what_it_timed_and_a_pinned_plans_tactics(forge: Forge) -> None:
    given = ("flow=fp32", "targets=[local]", "backend=tensorrt")

    def built(*overrides: str) -> Any:
        ran = forge.build(*given, *overrides)
        assert ran.code == 0, ran.err
        return ran.step("build", "local")

    built()
    (name,) = timing.names(Store(forge.store))
    found = built("steps.build.config.max_aux_streams=0")["metrics"]["timing_cache"]
    assert (found["merged"], found["refused"]) == ([name.rpartition("/")[2]], [])
    pinned = built("steps.build.config.pin_tactics=true")
    Path(pinned["outputs"]["plan"]["path"]).unlink()
    again = built("steps.build.config.pin_tactics=true")
    assert (again["state"], len(again["metrics"]["timing_cache"]["merged"])) == ("built", 1)


# A plan for several models of GPU


@pytest.mark.parametrize("level", ["ampere_plus", "same_compute_capability"])
def test_a_plan_for_other_gpus_too_is_keyed_by_no_gpus_name(level: str, machine: Machine) -> None:
    def keys(**chosen: str) -> set[str]:
        workshop = Workshop(machine.store, {"profiles": {}})
        nodes = [Node("build", STAGES["build"], BuildConfig(**chosen), each) for each in (L4, L40S)]
        return {str(workshop.question(node, {})) for node in nodes}

    assert len(keys(hardware_compatibility_level=level)) == 1
    assert len(keys(hardware_compatibility_level="none")) == len(keys()) == 2
