"""What plans were made from, as events of assets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from artifacts import digest
from pipelines import lineage
from tests.pipelines.planning import plan


@pytest.fixture(scope="module")
def session(default_store):
    """The default build, of which only the plan of the L4 was made by this run."""
    found = plan(default_store, ["targets=[l4,a10]"])
    for name in ("quantize", "build[l4]"):
        found.outcomes[name] = replace(found.outcomes[name], state="built")
    return found


def test_a_plan_that_was_built_comes_from_the_users_own_files_by_their_content(session):
    (event,) = lineage.events(session)
    target = next(target for target in session.targets if target.name == "l4")
    assert event["event"] == "prefect.asset.materialization.succeeded"
    assert event["resource"] == {
        "prefect.resource.id": f"trtforge://digits/sm_89/{target.release}/int8",
        "prefect.resource.name": "digits-l4-int8",
    }
    record = session.outcomes["build[l4]"].record
    assert event["payload"]["sha256"] == record.outputs["plan"].digest
    assert event["payload"]["key"] == record.key
    files = {name: session.outcomes[name].node.files for name in ("export", "calibrate")}
    assert {(each["prefect.resource.name"], each["prefect.resource.id"]) for each in event["related"][:-1]} == {
        ("model.onnx", f"trtforge://objects/{digest.of_file(files['export']['onnx'][0])}"),
        ("model.calibration", f"trtforge://objects/{digest.of_file(files['calibrate']['calibration'][0])}"),
    }
    assert event["related"][-1]["prefect.resource.role"] == "asset-materialized-by"


def test_prefect_takes_its_name_for_an_assets_key(session):
    from prefect.assets import Asset

    for flow in ("int8", "int 8 [mine]"):
        session.config.flow, before = flow, session.config.flow
        (event,) = lineage.events(session)
        session.config.flow = before
        assert Asset(key=event["resource"]["prefect.resource.id"]).key.startswith("trtforge://digits/sm_89/rtx-")


def test_what_was_cached_is_told_by_nobody(default_store):
    assert list(lineage.events(plan(default_store, ["targets=[l4,a10]"]))) == []
