"""What `ls` says of the disk, and what can be named that is kept as a delta."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store import Store
from pipelines import lookup
from pipelines.inspection import deltas, list_plans, print_plans
from tests.artifacts.test_packing import Version, pack, version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def versions(store: Store) -> list[Version]:
    """Three trainings; the plans of the last one have names, those before are packed."""
    found = [version(store) for _ in range(3)]
    for number, refit in enumerate(found[-1].refits):
        store.set_ref(f"plans/net/{number}", refit.key)
    pack(store)
    return found


def test_each_plan_says_what_it_and_those_before_it_take_of_the_disk(store: Store, versions: list[Version]) -> None:
    for entry, plan in zip(list_plans(store), versions[-1].plans, strict=True):
        assert entry["disk_bytes"] == entry["bytes"] == plan.bytes
        assert entry["superseded"]["plans"] == 2
        assert entry["superseded"]["bytes"] == 2 * plan.bytes
        assert 0 < entry["superseded"]["disk_bytes"] < 0.02 * plan.bytes


def test_the_total_is_what_all_deltas_save(
    store: Store, versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    found, saved = list_plans(store), deltas(store)
    models = [each.surgery.outputs["onnx"] for each in versions[:2]]  # packed, too
    assert saved["objects"] == 4 + 2
    assert saved["bytes"] == sum(entry["superseded"]["bytes"] for entry in found) + sum(each.bytes for each in models)
    disk_bytes = sum(entry["superseded"]["disk_bytes"] for entry in found) + sum(map(store.disk_bytes, models))
    assert saved["disk_bytes"] == disk_bytes
    print_plans(found, saved)
    said = capsys.readouterr().out
    assert "6 objects are kept as deltas" in said
    assert "on disk instead of 1.6 MB" in said


def test_listing_makes_no_delta_whole(store: Store, versions: list[Version]) -> None:
    list_plans(store)
    assert deltas(store)["objects"] == 6


def test_an_object_that_is_kept_as_a_delta_is_found_by_the_beginning_of_its_digest(
    store: Store, versions: list[Version]
) -> None:
    plan = versions[0].plans[0]
    path = lookup.find(plan.digest[:12], store)
    assert path == store.place(plan)
    assert path.read_bytes()


def test_the_input_of_a_record_is_a_whole_file_whatever_it_was_kept_as(store: Store, versions: list[Version]) -> None:
    (path,) = lookup.inputs(versions[0].publish, "plan", store)
    assert path.stat().st_size == versions[0].plans[0].bytes
