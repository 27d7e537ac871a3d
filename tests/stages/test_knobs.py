"""The table of knobs: whole, true to the API of every version, and what it makes of a config."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import build_config, knobs
from stages.build_config import BuildConfig, MemoryPools, PreviewFeatures, TacticSources
from stages.knobs import KNOBS, NOT_KNOBS, Effect, Knob
from stages.stage import StageError
from tests.stages.knob_values import OTHER, configured

API = json.loads((Path(__file__).parents[2] / "docs/tensorrt_api.json").read_text())
VERSIONS = [tuple(name.split()) for name in API["versions"]]
RTX, OLD, NEW = ("tensorrt_rtx", "1.7.1.116"), ("tensorrt", "10.13.3.9"), ("tensorrt", "11.4.0.106")


def paths(config: type[Any]) -> list[str]:
    """Every field of `config`, those of dataclasses within it by their own names."""
    found: list[str] = []
    for each in fields(config):
        inner: Any = each.default_factory
        found += [f"{each.name}.{name}" for name in paths(inner)] if is_dataclass(inner) else [each.name]
    return found


def has(name: str, backend: str, version: str) -> bool:
    """Whether this version's API has the name."""
    having = API["names"].get(name, ())
    return having == "all" or f"{backend} {version}" in having


def refused(config: BuildConfig, backend: str, version: str) -> StageError:
    with pytest.raises(StageError) as caught:
        knobs.require_had(config, backend, version)
    return caught.value


def test_every_field_is_a_knob_and_every_knob_a_field() -> None:
    # Asks nothing of TensorRT: what is done with the plan it made.
    assert sorted({*paths(BuildConfig)} - {"allow_fake_quant"}) == sorted(knob.path for knob in KNOBS)


def test_every_name_of_every_version_is_a_knob_or_says_why_it_is_none() -> None:
    known = {name for knob in KNOBS for name in knob.api}
    words = {knob.enum for knob in KNOBS if knob.enum}
    for name in API["names"]:
        is_word = name.partition(".")[0] in words
        assert (name in known) + is_word + (knobs.why_no_knob(name) is not None) == 1, name


def test_a_name_that_a_later_version_brings_is_noticed() -> None:
    assert knobs.why_no_knob("BuilderFlag.NEW_IN_12") is None
    assert knobs.why_no_knob("IBuilderConfig.new_in_12") is None


def test_what_is_no_knob_is_a_name_of_some_version() -> None:
    for pattern in NOT_KNOBS:
        assert any(fnmatchcase(name, pattern) for name in API["names"]), pattern


@pytest.mark.parametrize(("backend", "version"), VERSIONS)
def test_the_table_says_of_each_version_what_its_api_has(backend: str, version: str) -> None:
    for knob in KNOBS:
        there = all(has(name, backend, version) for name in knob.api)
        # RTX shares its API with TensorRT, and has names in it that lead nowhere.
        nominal = backend == "tensorrt_rtx" and knob.rtx.effect is Effect.LACKING
        assert knob.on(backend).has(version) == there or (nominal and there), knob.path


@pytest.mark.parametrize("knob", [knob for knob in KNOBS if knob.enum], ids=lambda knob: knob.path)
def test_the_words_of_a_knob_are_the_members_of_its_enum_in_every_version(knob: Knob) -> None:
    members = {name.partition(".")[2]: having for name, having in API["names"].items() if name.startswith(knob.enum)}
    names = {"TensorFormat": "TENSOR_FORMAT", "DeviceType": "DEVICE_TYPE"}
    words = getattr(build_config, names.get(knob.enum, knob.path.upper()))
    assert {word.upper() for word in words} == {*members}
    assert {*map(str, members.values())} == {"all"}


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.path)
def test_a_setting_is_in_the_key_of_a_backend_where_it_has_an_effect_there(knob: Knob) -> None:
    config = configured(knob.path)
    for backend in ("tensorrt_rtx", "tensorrt"):
        changed = knobs.keyed(config, backend) != knobs.keyed(BuildConfig(), backend)
        alone = [path for path in OTHER[knob.path] if path != knob.path]  # what it does not go without
        takes = knob.on(backend).effect is Effect.TAKEN
        assert changed == (
            (takes and not knob.only_fails)
            or any(knobs.find(path).on(backend).effect is Effect.TAKEN for path in alone)
        )
        assert (knob.path in knobs.effective(config, backend)) == takes
        assert (knob.path in knobs.without_effect(config, backend)) == (
            knob.on(backend).effect in (Effect.WITHOUT, Effect.IGNORED)
        )


@given(
    # Neither goes with all others: `refit` with refittable_weights, `disable_timing_cache` with pin_tactics.
    chosen=st.sets(
        st.sampled_from([knob.path for knob in KNOBS if knob.path not in ("refit", "disable_timing_cache")])
    ),
    version=st.sampled_from(VERSIONS),
)
@settings(max_examples=60, deadline=None)
def test_what_is_set_has_an_effect_or_is_said_to_have_none_or_is_refused_by_name(
    chosen: set[str], version: tuple[str, str]
) -> None:
    config, backend = configured(*chosen), version[0]
    asked = knobs.given(config)
    lacking = [path for path in asked if not knobs.find(path).on(backend).has(version[1])]
    needing = [path for path in asked if (need := knobs.find(path).on(backend).needs) and need not in asked]
    if lacking or needing:
        assert refused(config, *version).what.partition("=")[0] in {*lacking, *needing}
    else:
        knobs.require_had(config, *version)
        assert {*knobs.effective(config, backend), *knobs.without_effect(config, backend)} == {*asked}


def test_what_is_not_set_is_in_no_key() -> None:
    assert knobs.keyed(BuildConfig(), "tensorrt") == {"tf32": True}


def test_how_strict_a_build_is_with_pinned_tactics_does_not_make_it_another_plan() -> None:
    pinned = knobs.keyed(BuildConfig(pin_tactics=True), "tensorrt")
    for strict in (True, False):
        config = BuildConfig(pin_tactics=True, error_on_miss=strict)
        assert knobs.keyed(config, "tensorrt") == pinned
        assert knobs.effective(config, "tensorrt") == {**pinned, "error_on_miss": strict}


def test_a_size_is_in_the_key_in_bytes_however_it_is_written() -> None:
    for size in ("2GiB", "2048MiB", "2147483648"):
        config = BuildConfig(memory_pools=MemoryPools(workspace=size), l2_limit_for_tiling=size)
        found = knobs.effective(config, "tensorrt")
        assert found == {"memory_pools.workspace": 2**31, "l2_limit_for_tiling": 2**31, "tf32": True}


def test_a_setting_that_the_version_lacks_is_refused_with_the_versions_that_have_it() -> None:
    cublas = BuildConfig(tactic_sources=TacticSources(cublas=False))
    error = refused(cublas, *NEW)
    assert error.what == "tactic_sources.cublas=false: tensorrt 11.4.0.106 has no such setting"
    assert error.next_step == "leave it out for this target; tensorrt below 11 has it"
    assert "tensorrt_rtx 1.7.1.116 has no such setting" in refused(cublas, *RTX).what
    knobs.require_had(cublas, *OLD)

    route = BuildConfig(build_route="-a=b")
    assert refused(route, "tensorrt", "11.0.0.114").next_step.endswith(
        "tensorrt_rtx and tensorrt 11.1 and later have it"
    )
    knobs.require_had(route, *NEW)

    several = BuildConfig(preview_features=PreviewFeatures(multidevice_runtime_10_16=True))
    for version, lacks in (("10.15.1.29", True), ("10.16.1.11", False), ("11.0.0.114", True)):
        assert (knobs.find("preview_features.multidevice_runtime_10_16").tensorrt.has(version)) != lacks
    assert refused(several, *OLD).next_step.endswith("tensorrt 10.16 and later, below 11 has it")


def test_what_rtx_lacks_is_refused_with_the_reason() -> None:
    assert (
        refused(BuildConfig(dla_core=0), *RTX).what
        == "dla_core=0: tensorrt_rtx 1.7.1.116 has no such setting: it has no DLA"
    )
    knobs.require_had(BuildConfig(dla_core=0), *OLD)


def test_a_setting_that_a_backend_has_only_with_another_is_refused_without_it() -> None:
    assert refused(BuildConfig(version_compatible=True), *RTX).next_step == "add exclude_lean_runtime: true"
    knobs.require_had(BuildConfig(version_compatible=True, exclude_lean_runtime=True), *RTX)
    knobs.require_had(BuildConfig(version_compatible=True), *NEW)
