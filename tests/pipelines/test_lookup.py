"""What people name: files, keys, digests, names of plans, a model and a target."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from artifacts import digest
from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import lookup


@pytest.fixture(scope="module")
def store(default_store: Path) -> Store:
    return Store(default_store)


@pytest.fixture(scope="module")
def plan(store: Store) -> str:
    """The key of the plan for the L4."""
    name = next(name for name in store.refs("plans") if "sm_89" in name)
    key = store.ref(name)
    assert key
    return key


@pytest.mark.parametrize(
    "what",
    [
        "plans/digits/sm_89/rtx-{version}/int8",
        "digits/sm_89/rtx-{version}/int8",
        "{key}",
        "{short}",
        "digits@l4",
        "digits/int8@l4",
    ],
)
def test_a_plan_is_found_by_name_key_beginning_or_target(what: str, store: Store, plan: str) -> None:
    record = store.record(plan)
    assert record
    named = what.format(version=record.fields["facts"]["backend_version"], key=plan, short=plan[:12])
    assert lookup.find(named, store) == plan


def test_what_is_published_is_the_step_that_published_it(store: Store) -> None:
    (name,) = (name for name in store.refs("published") if "sm_89" in name)
    found = lookup.find(name, store)
    assert isinstance(found, str)
    record = store.record(found)
    assert record and record.fields["stage"] == "publish"


def test_a_file_comes_before_all_else_and_a_digest_is_an_object(store: Store, plan: str, tmp_path: Path) -> None:
    record = store.record(plan)
    assert record
    blob = record.outputs["plan"]
    assert lookup.find(blob.digest[:16], store) == store.path(blob)
    copy = Path(shutil.copy(store.path(blob), tmp_path / "copy.plan"))
    assert lookup.find(str(copy), store) == copy and lookup.is_plan(copy)
    made = lookup.maker(digest.of_file(copy), store, lookup.PLAN_MAKERS)
    assert made and made.key == plan


@pytest.mark.parametrize("what", ["nothing", "digits@h100", "digits/fp16@l4", "@l4", "digits@", "0123456789abcdef"])
def test_what_is_not_there_is_one_line(what: str, store: Store) -> None:
    with pytest.raises(ConfigError, match="no file, no key or digest of the store") as raised:
        lookup.find(what, store)
    assert "trtforge ls" in raised.value.next_step


def test_a_record_is_found_by_its_beginning_and_several_are_refused(store: Store, plan: str) -> None:
    assert lookup.record(plan[:12], store).key == plan
    with pytest.raises(ConfigError, match="no readable record"):
        lookup.record("0" * 12, store)
    with pytest.raises(ConfigError, match="records begin so"):
        lookup.record("", store)


def test_the_inputs_of_a_record_are_files_of_the_store_or_none(store: Store, plan: str) -> None:
    record = store.record(plan)
    assert record
    (onnx,) = lookup.inputs(record, "onnx", store)
    assert onnx.is_file() and not lookup.is_plan(onnx)
    assert lookup.inputs(record, "plugins", store) == []
    taken = lookup.takers(record.outputs["plan"].digest, "validate", store)
    assert [each.provenance["target"] for each in taken] == ["l4"]


def test_of_a_plan_built_and_refitted_within_a_second_the_refitted_one_is_meant(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    about = {"target": "l4", "model": "net", "flow": "fp32", "finished": "2026-01-01T00:00:00+00:00"}
    keys = {}
    for stage in ("build", "refit"):
        with store.scratch() as directory:
            (directory / "model.plan").write_bytes(stage.encode())
            blob = store.add(directory / "model.plan")
        record = Record({"stage": stage}, {"plan": blob}, provenance={**about, "step": stage})
        store.put(record)
        keys[stage] = record.key
    assert lookup.find("net@l4", store) == keys["refit"] == lookup.find("net/fp32@l4", store)
