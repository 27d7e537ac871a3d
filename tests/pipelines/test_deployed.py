"""Deployments of a file in Prefect's own types, and the file that is there or not: no server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import ConfigError
from pipelines.deployed import Made, shipped_flows
from pipelines.deploying import asked
from pipelines.deployments import FLOWS, parsed

pytestmark = [pytest.mark.xdist_group("prefect")]  # which has imported it already


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "prefect.yaml"
    asked(path, ["flow=int8", "targets=[l4]"], [], ("30 1 * * *", "Europe/Berlin"))
    return path.read_text()


def made(text):
    wanted = parsed(text, Path("prefect.yaml"))
    return {deployment.name: Made(wanted, deployment) for deployment in wanted.deployments}


def test_a_new_file_deploys_the_flows_that_there_are_and_prefect_takes_it(text):
    assert list(made(text)) == [name for name, flow in FLOWS.items() if flow in shipped_flows()]
    schedule = made(text)["rebuild-nightly"].schedules[0].schedule
    assert (schedule.cron, schedule.timezone) == ("30 1 * * *", "Europe/Berlin")


def test_a_served_deployment_is_imported_by_name_and_so_needs_no_directory_of_sources(text):
    served = made(text)["build"].served()
    assert served.entrypoint == "pipelines.flows.build"
    assert served.work_pool_name is None
    assert served.parameters == {"overrides": ["flow=int8", "targets=[l4]"]}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("overrides: [flow=int8, 'targets=[l4]']", "overrides: flow=int8", "overrides: Input should be a valid list"),
        ("{overrides:", "{override:", "override"),
        ("30 1 * * *", "30 1 x * *", "cron"),
        ("cron: 30 1 * * *", "cron: 30 1 * * *, interval: 5", "one of cron, interval and rrule"),
        ("cron: 30 1 * * *, ", "", "not none"),
        ("Europe/Berlin", "Europe/Bärlin", "imezone"),
        ("pipelines.flows.build", "pipelines.flows.bild", "there are pipelines.flows.build"),
        ("pipelines.flows.build", "os.path.join", "no flow 'os.path.join'"),
        ("ENQUEUE", "WAIT", "collision_strategy"),
        ("expect: [", "within: soon\n    expect: [", "within"),
    ],
)
def test_what_prefect_or_the_flow_does_not_take_is_refused_with_its_line(text, before, after, words):
    assert before in text
    with pytest.raises(ConfigError) as refused:
        made(text.replace(before, after, 1))
    assert refused.value.what.startswith("prefect.yaml:")
    assert words in refused.value.what


def test_overrides_beside_a_file_are_refused_as_they_would_be_lost(tmp_path, text):
    path = tmp_path / "prefect.yaml"
    path.write_text(text)
    assert asked(path, [], [])[1] is False
    for call in ((["flow=fp32"], [], None), ([], [tmp_path], None), ([], [], ("0 3 * * *", "UTC"))):
        with pytest.raises(ConfigError, match="is there already"):
            asked(path, *call)
    assert path.read_text() == text


def test_the_models_of_a_rebuild_are_those_of_the_users_groups_or_else_that_of_the_build(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/own.yaml").write_text("defaults: [digits]\nname: own\n")
    for overrides, config_dirs, models in (
        (["flow=fp16"], [], ["digits"]),
        (["model=digits"], [], ["digits"]),
        (["model=own"], [tmp_path], None),
    ):
        found, _ = asked(tmp_path / "prefect.yaml", overrides, config_dirs, write=False)
        rebuild = next(each for each in found.deployments if each.name == "rebuild-nightly")
        assert rebuild.said["parameters"].get("models") == models


def test_a_dry_run_writes_no_file(tmp_path):
    found, new = asked(tmp_path / "prefect.yaml", [], [], write=False)
    assert new and found.deployments
    assert list(tmp_path.iterdir()) == []


def test_wrong_overrides_are_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(ConfigError, match="int9"):
        asked(tmp_path / "prefect.yaml", ["flow=int9"], [])
    assert list(tmp_path.iterdir()) == []
