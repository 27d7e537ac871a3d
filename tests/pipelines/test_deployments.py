"""What `prefect.yaml` says, read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import ConfigError
from pipelines.deployments import CPU, FLOWS, GPU_QUEUES, parsed, read, written

PATH = Path("prefect.yaml")
TEXT = written(["flow=int8", "targets=[l4]"], [], ["digits", "int8"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(), min_size=1), st.lists(st.text(min_size=1)))
def test_overrides_and_tags_come_back_as_they_were_written(overrides, tags):
    if any("{{" in text for text in (*overrides, *tags)):
        return
    for deployment in parsed(written(overrides, [], tags, flows=["build"]), PATH).deployments:
        assert deployment.said["parameters"] == {"overrides": overrides}
        assert deployment.said["tags"] == ["trtforge", *tags]


def test_a_new_file_has_a_queue_per_architecture_a_limit_for_each_and_the_deployments_that_have_a_flow():
    found = parsed(TEXT, PATH)
    assert (found.pool, found.pool_type) == ("trtforge", "process")
    assert list(found.queues) == [CPU, *GPU_QUEUES]
    assert found.limits == {f"trtforge-{name}": 1 for name in GPU_QUEUES}
    assert [each.name for each in found.deployments] == list(FLOWS)
    only = parsed(written([], [], [], flows=["build"]), PATH)
    assert [(each.name, each.entrypoint) for each in only.deployments] == [("build", "pipelines.flows.build")]


def test_directories_of_own_configs_are_parameters():
    build = parsed(written([], [Path("/own")], []), PATH).deployments[0]
    assert build.said["parameters"] == {"overrides": [], "config_dirs": ["/own"]}


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ("work_queues:", "work_queue:", 10, ("'work_queue' in definitions.trtforge is not understood", "work_queues")),
        ("- name: build", "- nmae: build", 39, ("'nmae'", "name")),
        ("name: trtforge", "nom: trtforge", 2, ("'nom' is not understood", "name")),
        ("sm_75: {", "sm_7: {", 12, ("no queue 'sm_7'", "sm_75")),
        ("{concurrency_limit: null}", "{limit: 1}", 11, ("queue cpu takes concurrency_limit alone",)),
        ("{concurrency_limit: null}", "{concurrency_limit: -1}", 11, ("whole number from 0", "-1")),
        ("trtforge-sm_75: 1", "trtforge-sm_75: many", 25, ("trtforge-sm_75", "'many'")),
        ("{limit: 16,", "{limit: '16',", 43, ("deployments.0.concurrency_limit.limit must be a whole number", "'16'")),
        ("targets=[l4]", "{{ $TARGETS }}", 42, ("not expanded",)),
        ("work_queue_name: cpu", "work_queue_name: gpu", 39, ("deployment build", "'gpu'")),
        ("    name: trtforge", "    name: other", 39, ("'other'", "'trtforge'")),
        ("- name: rebuild-nightly", "- name: build", 51, ("the name is taken",)),
        ("entrypoint: pipelines.flows.build", "entrypoint: ''", 39, ("has no entrypoint",)),
        ("[trtforge,", "[7, trtforge,", 41, ("deployments.0.tags.0 must be text, not 7",)),
        ("crashed_after_seconds: 90", "crashed_after_seconds: 30", None, ("crashed_after_seconds is 30", "every 30 s")),
        ("definitions:", "definitions: [", 9, ("no YAML",)),
        ("deployments:", "deployments: &again\n- *again", 38, ("contains itself",)),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_line(before, after, line, words):
    assert before in TEXT
    with pytest.raises(ConfigError) as refused:
        parsed(TEXT.replace(before, after, 1), PATH)
    told = f"{refused.value.what} {refused.value.next_step}"
    assert all(word in told for word in words), told
    if line:
        assert f"prefect.yaml:{line}: " in told or f"line {line} " in told, told


@pytest.mark.parametrize("text", ["", "[]", "text", "\0", "a: b: c", "- x"])
def test_what_is_no_prefect_yaml_at_all_is_one_error(text):
    with pytest.raises(ConfigError, match=r"prefect\.yaml"):
        parsed(text, PATH)


def test_a_file_that_cannot_be_read_is_one_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "latin")


def test_a_catalog_is_rebuilt_and_watched_without_the_model_of_the_build():
    text = written(["model=digits", "flow=fp16"], [], [], ["digits"])
    build, rebuild, watch, _ = (each.said["parameters"] for each in parsed(text, PATH).deployments)
    assert build == {"overrides": ["model=digits", "flow=fp16"]}
    assert rebuild == {"overrides": ["flow=fp16"], "models": ["digits"]}
    assert watch == {"overrides": ["flow=fp16"]}


def test_definitions_of_the_users_own_and_anchors_are_his():
    text = TEXT.replace("definitions:", "definitions:\n  mine: &tags [a, b]", 1)
    text = text.replace("tags: [trtforge, digits, int8]", "tags: *tags", 1)
    assert parsed(text, PATH).deployments[0].said["tags"] == ["a", "b"]


def test_triggers_may_hold_what_prefect_fills_in():
    assert "{{ event.resource.name }}" in str(parsed(TEXT, PATH).deployments[1].said["triggers"])
