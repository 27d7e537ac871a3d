"""`trtforge verify` and `trtforge gc`, as users call them."""

from __future__ import annotations

import os
import time

import pytest

from tests.pipelines.test_build import digest, flip_a_byte


def make_old(forge, days=90):
    then = time.time() - days * 86400
    for path in (forge.store / "records").iterdir():
        os.utime(path, (then, then))


def test_a_healthy_store_is_said_to_be_so(built):
    ran = built("verify", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["ok"] is True
    assert ran.document["damaged"] == []
    assert ran.document["bytes"] > 1_000_000
    assert "healthy" in built("verify", "-q").out


def test_damage_is_named_repaired_and_built_again(built):
    plan = built.status().document["plans"][0]
    flip_a_byte(plan["path"])
    ran = built("verify", "--json", "-q")
    assert ran.code == 1
    (damaged,) = ran.document["damaged"]
    assert plan["digest"] in damaged["what"]
    assert {record["step"].split("[")[0] for record in damaged["records"]} == {"build", "publish"}
    assert any(name.startswith("plans/digits/") for name in damaged["refs"])
    said = built("verify", "--repair", "-q")
    assert said.code == 1
    assert "lost: build[a10] of digits" in said.out
    assert "set aside in damaged/" in said.out
    assert built("verify", "-q").code == 0
    again = built.build()
    assert again.code == 0, again.err
    assert again.step("build", "a10")["state"] == "built"
    assert all(digest(plan["path"]) == plan["digest"] for plan in again.document["plans"])
    assert built("verify", "-q").code == 0


def test_gc_keeps_what_was_published_and_all_it_was_made_from(built):
    make_old(built)
    before = built.records()
    would = built("gc", "--json", "-n").document
    assert would["dry_run"] is True
    assert would["deleted"] == []
    assert built("gc", "--json", "--older-than", "0s", "store.budget=1kB").document["deleted"] == []
    assert built.records() == before
    assert set(built.build().states().values()) == {"cached"}


def test_gc_deletes_what_nothing_reaches_and_says_how_much(built):
    assert built.build("gates.min_cosine=0.9999999", "steps.surgery.config.compare_max_bytes=0").code in (0, 3)
    extra = built.records()
    make_old(built)
    dry = built("gc", "--dry-run")
    assert "would delete" in dry.out
    ran = built("gc", "--json", "-q")
    assert ran.code == 0, ran.err
    freed = ran.document["bytes_before"] - ran.document["bytes_after"]
    assert freed == sum(waste["bytes"] for waste in ran.document["deleted"])
    assert built.records() == extra - {waste["name"] for waste in ran.document["deleted"]}
    assert set(built.build().states().values()) == {"cached"}
    assert built("verify", "-q").code == 0


def test_gc_forgets_a_plan_by_name_and_never_a_published_one(built):
    assert built.build("flow=fp32", "targets=[l4]", "gates.plan_bytes=1").code == 3
    plans = built("gc", "--json", "-n", "--older-than", "0s", "--forget", "plans/digits/*/fp32").document
    assert [waste["what"] for waste in plans["deleted"]].count("build[l4] of digits") == 1
    refused = built("gc", "--forget", "published/*")
    assert refused.code == 2
    assert "is published" in refused.err
    _is_packed_listed_and_whole_again_for_the_next_build(built)


def _is_packed_listed_and_whole_again_for_the_next_build(built):
    status = built.status("flow=fp32", "targets=[l4]", "gates.plan_bytes=1")
    (plan,) = status.document["plans"]
    forget = ("--pack-after", "0s", "--forget", "plans/digits/*/fp32")
    would = built("gc", "-n", *forget)
    assert "would pack 1 objects" in would.out
    ran = built("gc", "--json", "-q", *forget)
    assert ran.code == 0, ran.err
    (packed,) = ran.document["packed"]
    assert (packed["name"], packed["what"]) == (plan["digest"], "build[l4] of digits")
    assert ran.document["bytes_before"] - ran.document["bytes_after"] == packed["bytes"] - packed["disk_bytes"]
    assert (
        packed["disk_bytes"] < 0.5 * packed["bytes"]
    )  # a real plan: its kernels shrink, its weights lie in the ONNX file
    assert built("ls", "--json").document["deltas"] == {
        "objects": 1,
        "bytes": packed["bytes"],
        "disk_bytes": packed["disk_bytes"],
    }
    assert "1 objects are kept as deltas" in built("ls").out
    assert built("verify", "-q").code == 0
    again = built.build("flow=fp32", "targets=[l4]", "gates.plan_bytes=1")
    assert set(again.states().values()) == {"cached", "skipped"}
    assert digest(again.document["plans"][0]["path"]) == plan["digest"]


@pytest.mark.parametrize(
    "wrong", [("--older-than", "soon"), ("--older-than", "-3d"), ("--pack-after", "1y"), ("store.budget=50", "x=1")]
)
def test_a_wrong_age_or_size_is_a_wrong_call(forge, wrong):
    ran = forge("gc", *wrong)
    assert ran.code == 2
    assert ran.err.startswith("error: ")


def test_verbs_of_a_store_that_is_not_there_make_none(forge):
    assert forge("verify", "-q").code == 0
    assert forge("gc", "-q").code == 0
    assert forge("gc", "-n", "-q").code == 0
    assert not forge.store.exists()
