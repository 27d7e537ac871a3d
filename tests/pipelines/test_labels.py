"""Names and tags of flow runs."""

from __future__ import annotations

from pipelines import labels
from tests.pipelines.planning import plan


def test_a_run_is_found_by_its_model_flow_targets_architectures_and_release(tmp_path):
    session = plan(tmp_path, ["flow=fp32", "targets=[l4,a10]"])
    assert labels.name(session) == "digits-fp32"
    (release,) = {target.release for target in session.targets}
    assert release.startswith("rtx-1.")
    found = labels.tags([session])
    assert found == [
        "trtforge", "model:digits", "flow:fp32", "target:a10", "target:l4", "sm_86", "sm_89", release
    ]  # fmt: skip


def test_a_run_without_targets_has_none_in_its_tags(tmp_path):
    assert labels.tags([plan(tmp_path, ["flow=export"])]) == ["trtforge", "model:digits", "flow:export"]


def test_a_rebuild_of_many_models_is_found_by_what_they_have_in_common(tmp_path):
    session = plan(tmp_path, ["flow=fp32", "targets=[l4]"])
    names = [f"net_{number}" for number in range(1000)]
    assert labels.name_of_rebuild(names) == "rebuild of 1,000 models"
    assert labels.tags([], names) == ["trtforge"]
    assert labels.tags([session] * 1000, names) == [
        "trtforge", "flow:fp32", "target:l4", "sm_89", session.targets[0].release
    ]  # fmt: skip


def test_a_rebuild_of_a_few_models_is_found_by_each(tmp_path):
    names = [f"net_{number:02}" for number in range(labels.MOST_OF_A_KIND)]
    assert labels.tags([], names) == ["trtforge", *(f"model:{name}" for name in names)]
    assert labels.name_of_rebuild(["net_a"]) == "rebuild of net_a"
