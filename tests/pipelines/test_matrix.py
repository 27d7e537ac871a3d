"""A rebuild's models and targets as one table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines import matrix
from pipelines.execute import Outcome
from pipelines.rebuild import Rebuilt
from stages.gates import Gates
from tests.pipelines.planning import plan


@pytest.fixture
def session(default_store):
    """The default build for two targets, all of it cached."""
    return plan(default_store, ["targets=[l4,a10]"])


def built(session, name, seconds):
    session.outcomes[name] = replace(session.outcomes[name], state="built", seconds=seconds)


def fail(session, name, error):
    session.outcomes[name] = Outcome(session.outcomes[name].node, "failed", error=error)


def rows(session):
    return {row["target"]: row for row in matrix.table([Rebuilt("digits", 1.0, session)])}


def test_each_target_of_a_model_is_a_row_with_its_version_gates_and_seconds(session):
    built(session, "quantize", 7.0)
    built(session, "build[l4]", 2.04)
    built(session, "validate[l4]", 1.0)
    found = rows(session)
    release = session.targets[0].release
    assert found["l4"] == {
        "model": "digits", "flow": "int8", "target": "l4", "architecture": "sm_89", "version": release,
        "state": "built", "gates": "none asked", "seconds": 3.0, "why": "",
    }  # fmt: skip
    assert (found["a10"]["state"], found["a10"]["seconds"]) == ("cached", 0)  # shared steps make no plan new


def test_what_failed_says_why_and_comes_first(session):
    built(session, "build[l4]", 1.0)
    fail(session, "build[a10]", "build[a10]: no\nluck " + 300 * "x")
    other = Rebuilt("net_b", 0.0, error="net_b: nowhere.onnx is not there")
    table = matrix.table([Rebuilt("digits", 1.0, session), other])
    assert [(row["model"], row["target"], row["state"]) for row in table] == [
        ("digits", "a10", "failed"), ("net_b", "", "wrong"), ("digits", "l4", "built")
    ]  # fmt: skip
    assert table[0]["why"].startswith("build[a10]: no luck xxx")
    assert len(table[0]["why"]) == matrix.LONGEST_REASON
    assert table[1]["why"] == "net_b: nowhere.onnx is not there"
    assert len({tuple(row) for row in table}) == 1  # Prefect takes the columns from the first row


def test_a_shared_step_that_failed_fails_every_target(session):
    fail(session, "quantize", "quantize: no")
    assert {(row["state"], row["why"]) for row in rows(session).values()} == {("failed", "quantize: no")}


def test_a_gate_that_says_no_refuses_the_target_and_one_that_holds_is_told(session):
    session.config.gates = Gates(max_abs_error=1e9)
    assert {row["gates"] for row in rows(session).values()} == {"hold"}
    session.config.gates = Gates(max_abs_error=0.0)
    found = rows(session)["l4"]
    assert (found["state"], found["gates"]) == ("refused", "no")
    assert "max_abs_error" in found["why"]


def test_a_thousand_models_make_no_table_of_megabytes(session):
    fail(session, "build[l4]", "build[l4]: " + 1000 * "x")
    table = matrix.table([Rebuilt(f"net_{number}", 1.0, session) for number in range(1000)])
    assert len(table) == matrix.MOST_ROWS + 1
    assert {row["state"] for row in table[:-1]} == {"failed"}
    assert (table[-1]["model"], table[-1]["why"]) == ("and 1,500 more", "500 failed, 1,000 cached")
    assert len(json.dumps(table)) < 250_000
