"""`trtforge deploy` against a real Prefect server."""

from __future__ import annotations

import json
import urllib.request

import pytest

from pipelines.deploying import asked
from tests.pipelines.conftest import Forge
from tests.pipelines.test_flows import ask

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

ZOMBIES = "trtforge: runs without heartbeats are Crashed"


def get(api, path):
    with urllib.request.urlopen(f"{api}/{path}", timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def deployed(server, tmp_path_factory):
    """A project that is deployed, and what the first deploy said."""
    forge = Forge(tmp_path_factory.mktemp("project"), {"PREFECT_API_URL": server})
    path = forge.home / "prefect.yaml"
    asked(path, ["flow=int8", "targets=[l4]"], [], ("30 1 * * *", "UTC"))
    # Active schedules would make 200 runs in advance, among which other tests look for theirs.
    path.write_text(path.read_text().replace("active: true", "active: false"))
    dry = forge("deploy", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert get(server, "health") is True and ask(server, "work_pools/filter") == []  # nothing was changed
    first = forge("deploy", "--json")
    assert first.code == 0, first.err
    return forge, dry.document, first.document


def states(document):
    return {change["what"]: change["state"] for change in document["changes"]}


def test_a_dry_run_says_what_a_deploy_then_does(deployed):
    _, dry, first = deployed
    assert states(dry) == states(first)
    assert set(states(dry).values()) == {"create"}
    assert (dry["applied"], first["applied"]) == (False, True)


def test_the_server_has_the_pool_its_queues_the_limits_and_the_deployments_as_the_file_has_them(deployed, server):
    assert get(server, "work_pools/trtforge")["type"] == "process"
    queues = {queue["name"] for queue in ask(server, "work_pools/trtforge/queues/filter")}
    assert {"cpu", "sm_75", "sm_89", "sm_121"} <= queues
    assert get(server, "v2/concurrency_limits/trtforge-sm_89")["limit"] == 1
    build = get(server, "deployments/name/trtforge-build/build")
    assert build["entrypoint"] == "pipelines.flows.build"
    assert (build["work_pool_name"], build["work_queue_name"]) == ("trtforge", "cpu")
    assert build["parameters"] == {"overrides": ["flow=int8", "targets=[l4]"]}
    assert build["enforce_parameter_schema"] is True
    assert sorted(build["tags"]) == ["digits", "int8", "trtforge"]
    nightly = get(server, "deployments/name/trtforge-rebuild/rebuild-nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "30 1 * * *"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_runs_whose_process_is_gone_are_ended_and_another_tensorrt_starts_a_rebuild(deployed, server):
    automations = {each["name"]: each for each in ask(server, "automations/filter")}
    zombies = automations[ZOMBIES]
    assert (zombies["trigger"]["posture"], zombies["trigger"]["within"]) == ("Proactive", 90)
    assert zombies["actions"][0]["state"] == "CRASHED"
    # Nor does a run stay Pending whose worker died while it started it.
    assert {"prefect.flow-run.Pending", "prefect.flow-run.heartbeat"} <= {*zombies["trigger"]["after"]}
    assert "prefect.flow-run.AwaitingConcurrencySlot" in zombies["trigger"]["expect"]
    changed = automations["rebuild-nightly__automation_1"]
    assert changed["trigger"]["expect"] == ["trtforge.tensorrt.version.changed"]
    nightly = get(server, "deployments/name/trtforge-rebuild/rebuild-nightly")
    assert changed["actions"][0]["deployment_id"] == nightly["id"]


def test_a_second_deploy_changes_nothing(deployed):
    forge, _, _ = deployed
    assert forge("deploy").out.strip() == "nothing to change"


def test_what_the_user_edits_is_kept_and_is_what_is_deployed(deployed, server):
    forge, _, _ = deployed
    path = forge.home / "prefect.yaml"
    before = path.read_text()
    edits = {
        "trtforge-sm_89: 1": "trtforge-sm_89: 4",
        "sm_75: {concurrency_limit: null}": "sm_75: {concurrency_limit: 3}",
        "30 1 * * *": "45 1 * * *",
        "limit: 16": "limit: 8",
        "crashed_after_seconds: 90": "crashed_after_seconds: 120",
        "expect: [": "expect: [mine, ",
    }
    text = before
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    ran = forge("deploy", "--json")
    assert ran.code == 0, ran.err
    assert path.read_text() == text
    changed = {change["what"]: list(change["fields"]) for change in ran.document["changes"] if change["fields"]}
    assert changed == {
        "concurrency limit trtforge-sm_89": ["limit"],
        "work queue sm_75": ["concurrency_limit"],
        "deployment trtforge-rebuild/rebuild-nightly": ["schedules"],
        "deployment trtforge-build/build": ["concurrency_limit"],
        f"automation {ZOMBIES}": ["trigger", "actions"],
        "automation rebuild-nightly__automation_1": ["trigger"],
    }
    assert get(server, "v2/concurrency_limits/trtforge-sm_89")["limit"] == 4
    path.write_text(before)
    assert forge("deploy").code == 0


def test_what_the_file_does_not_name_any_more_is_told_and_left_alone(deployed):
    forge, _, _ = deployed
    text = (forge.home / "prefect.yaml").read_text().replace("crashed_after_seconds: 90", "crashed_after_seconds: null")
    lines = text[: text.index("- name: watch-versions")].splitlines()
    (forge.home / "less.yaml").write_text("\n".join(lines[: next(n for n, x in enumerate(lines) if "triggers" in x)]))
    ran = forge("deploy", "--dry-run", "--json", "--file", "less.yaml")
    assert ran.code == 0, ran.err
    left = {change["what"] for change in ran.document["changes"] if not change["in_file"]}
    assert left == {
        "deployment trtforge-watch/watch-versions", "deployment trtforge-target/target",
        "automation rebuild-nightly__automation_1", f"automation {ZOMBIES}",
    }  # fmt: skip
    assert set(states(ran.document).values()) == {"left"}


def test_one_machine_does_not_serve_what_a_work_pool_has(deployed):
    forge, _, _ = deployed
    ran = forge("serve")
    assert ran.code == 2
    assert "trtforge worker" in ran.err


def test_a_worker_for_a_pool_that_nobody_deployed_is_refused(deployed):
    forge, _, _ = deployed
    ran = forge("worker", "--pool", "other")
    assert ran.code == 2
    assert "trtforge deploy" in ran.err


def test_without_a_server_it_is_one_line(tmp_path):
    ran = Forge(tmp_path)("deploy", "flow=int8")
    assert ran.code == 2
    assert ran.err.count("error: ") == 1
    assert "PREFECT_API_URL" in ran.err
    assert not (tmp_path / "prefect.yaml").exists()


def test_a_server_that_does_not_answer_is_one_line(tmp_path):
    ran = Forge(tmp_path, {"PREFECT_API_URL": "http://127.0.0.1:9/api"})("deploy")
    assert ran.code == 1
    assert ran.err.count("error: ") == 1
    assert "127.0.0.1:9" in ran.err
