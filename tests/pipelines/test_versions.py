"""`watch` and `status --versions`: what published plans were built with, and what an upgrade does to them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import publications
from artifacts.record import Record
from artifacts.remote import Remote
from artifacts.store import Store
from conf.compose import compose
from conf.schema import StoreConfig
from pipelines import announced, versions
from pipelines.builders import Builders
from pipelines.session import published_files
from pipelines.versions import Published
from stages import backends
from tests.pipelines import simple_index
from tests.pipelines.conftest import Forge
from tests.pipelines.releases import OLDER, leave, rewrite

HERE = backends.installed_version("tensorrt_rtx") or ""
NEWER = "1.7.99.1"
INT8 = "digits/{}/rtx-{}/int8"
L4 = ("targets=[l4]", "runner=local")
LOCAL = Builders(StoreConfig(root=""))
"""Nobody shares anything with this machine."""


@pytest.fixture(scope="module")
def index() -> Iterator[dict[str, str]]:
    """Variables that make pip ask an index which has newer releases, one of them too new."""
    wheels = {"tensorrt-rtx": [HERE, "1.7.98.7", "1.8.0.1"], "onnxruntime": ["1.20.0"]}
    with simple_index.serving(wheels) as address:
        yield simple_index.variables(address)


def matrix(forge: Forge, *overrides: str) -> dict[str, Any]:
    """`status --versions`, in this process: each plan by its name."""
    found = versions.status([f"store.root='{forge.store}'", *overrides], [])
    return {plan["name"]: plan for plan in found["plans"]}


def standings(forge: Forge, *overrides: str) -> dict[str, str]:
    return {name: plan["standing"] for name, plan in matrix(forge, *overrides).items()}


def test_what_the_installed_release_built_is_current(built: Forge) -> None:
    ran = built("status", "--versions", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["installed"] == {"tensorrt_rtx": HERE}
    assert {plan["name"]: plan["standing"] for plan in ran.document["plans"]} == {
        INT8.format(arch, HERE): "current" for arch in ("sm_86", "sm_89", "sm_120")
    }
    plan = ran.document["plans"][0]
    move = publications.history(Store(built.store), plan["name"]).moves[-1]
    assert (plan["published"], plan["by"]) == (move.at, move.by)


@pytest.mark.parametrize(("version", "standing"), [(OLDER, "behind"), (NEWER, "ahead"), ("1.7.1", "behind")])
def test_what_another_release_built_is_behind_or_ahead(version: str, standing: str, built: Forge) -> None:
    assert set(standings(leave(built, version)).values()) == {standing}


def test_the_matrix_has_a_row_for_each_target_and_a_column_for_each_release(built: Forge) -> None:
    lines = leave(built, OLDER)("status", "--versions").out.splitlines()
    assert lines[0].split() == ["model", "flow", "target", f"rtx-{OLDER}"]
    assert "digits  int8  sm_89   behind, 2026-01-02" in [line.strip() for line in lines]
    assert lines[-1] == f"installed here: tensorrt_rtx {HERE}"


@pytest.mark.parametrize(
    ("override", "chosen"),
    [
        ("targets=[l4]", ["sm_89"]),
        ("targets=[l4,rtx5090]", ["sm_120", "sm_89"]),
        ("flow=int8", ["sm_120", "sm_86", "sm_89"]),
        ("flow=fp16", []),
        ("model.name=another", []),
        ("backend=tensorrt", []),
        ("steps.build.config.tf32=false", ["sm_120", "sm_86", "sm_89"]),
    ],
)
def test_overrides_of_model_flow_targets_and_backend_choose(override: str, chosen: list[str], built: Forge) -> None:
    assert sorted(plan["architecture"] for plan in matrix(built, override).values()) == chosen


def test_a_plan_for_one_gpu_is_chosen_by_that_gpus_target(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for target in ("l4", "l40s"):
        store.set_ref(f"published/net/sm_89/trt-10.16.1.11/fp16@{target}", "0" * 64)
    store.set_ref("published/net/export", "1" * 64)  # an ONNX file, which no version of TensorRT has built
    overrides = ["targets=[l40s]"]
    (found,) = versions.published(store, compose(overrides, []), overrides)
    assert (found.flow, found.target, found.backend, found.version) == ("fp16", "l40s", "tensorrt", "10.16.1.11")


def test_a_backend_that_is_not_installed_leaves_it_unknown_how_its_plans_stand(tmp_path: Path) -> None:
    assert backends.installed_version("tensorrt") is None, "this test is for an environment without it"
    Store(tmp_path).set_ref("published/net/sm_89/trt-10.16.1.11/fp16@l4", "0" * 64)
    found = versions.status([f"store.root='{tmp_path}'"], [])
    assert found["installed"] == {"tensorrt": None}
    assert [(plan["standing"], plan["published"]) for plan in found["plans"]] == [("unknown", None)]


def test_watch_names_what_is_installed_and_available_and_the_steps_that_a_rebuild_runs(
    built: Forge, index: dict[str, str]
) -> None:
    forge = leave(replace(built, environment=index), OLDER)
    ran = forge("watch", "--json")
    assert ran.code == 0, ran.err
    packages = ran.document["packages"]
    assert packages["tensorrt_rtx"] == {
        "installed": HERE,
        "available": "1.7.98.7",
        "newest": "1.8.0.1",  # which this trtforge does not take
        "reason": None,
    }
    assert packages["onnxruntime"]["available"] == "1.20.0"
    assert [(change["architecture"], change["from"], change["to"]) for change in ran.document["changes"]] == [
        (arch, OLDER, HERE) for arch in ("sm_120", "sm_86", "sm_89")
    ]
    assert {tuple(change["models"]) for change in ran.document["changes"]} == {("digits",)}
    assert ran.document["emitted"] is None
    for plan in ran.document["plans"]:
        assert plan["rebuild_due"]
        assert [(each["step"], each["package"]) for each in plan["reruns"]] == [
            (step, "tensorrt_rtx") for step in ("build", "publish", "validate")
        ]
    told = forge("watch").out
    assert f"tensorrt_rtx: installed {HERE}, available 1.7.98.7, and 1.8.0.1, which trtforge does not take" in told
    assert f"sm_89: tensorrt_rtx {OLDER} -> {HERE}: rebuild digits" in told


def test_watch_is_no_failure_where_no_index_answers(built: Forge) -> None:
    nobody = simple_index.variables("http://127.0.0.1:9/simple")
    ran = replace(built, environment=nobody)("watch")
    assert ran.code == 0, ran.err
    assert f"tensorrt_rtx: installed {HERE}, available unknown: pip index versions tensorrt-rtx: No matching" in ran.out
    assert "current   changes nothing" in ran.out


def test_ctrl_c_does_not_wait_for_a_silent_index(
    built: Forge, interrupt: Callable[[subprocess.Popen[str]], tuple[int, float]]
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = Forge(built.home, simple_index.variables(address)).start("watch")
        connection, _ = silent.accept()  # pip is asking
        code, seconds = interrupt(process)
        connection.close()
    assert code == 130
    assert seconds < 5.0  # two on a machine that does nothing else


def watched(forge: Forge, model: str = "model.name=digits") -> dict[str, Any]:
    """What `watch` says of the plan for the L4, without asking an index."""
    store = Store(forge.store)
    overrides = [f"store.root='{forge.store}'", "targets=[l4]", model]
    (plan,) = versions.published(store, compose(overrides, []), overrides)
    return versions.described([plan], store, {"tensorrt_rtx": versions.Package(HERE)}, LOCAL)[0]


def with_onnxruntime(version: str, *stages: str) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        tools = record.fields["tools"]
        if record.fields["stage"] not in stages or "onnxruntime" not in tools:
            return record
        return replace(record, fields={**record.fields, "tools": {**tools, "onnxruntime": version}})

    return change


def test_a_tool_that_was_upgraded_runs_the_steps_anew_whose_keys_hold_it(built: Forge) -> None:
    rewrite(Store(built.store), with_onnxruntime("1.20.0", "calibrate", "ranges"))
    plan = watched(built)
    assert plan["standing"] == "current"
    assert plan["rebuild_due"]
    assert {each["step"] for each in plan["reruns"]} == {"calibrate", "ranges"}
    assert {(each["package"], *each["built_with"]) for each in plan["reruns"]} == {("onnxruntime", "1.20.0")}


def test_bytes_that_came_out_with_the_installed_tool_too_need_no_rebuild(built: Forge) -> None:
    store = Store(built.store)
    today = {key: store.record(key) for key in store.recorded()}
    rewrite(store, with_onnxruntime("1.20.0", "calibrate"))
    for record in today.values():
        assert record
        store.put(record)  # a build of today, which gave the same bytes
    plan = watched(built)
    assert not plan["rebuild_due"]
    assert len(plan["tools"]["onnxruntime"]) == 2


def test_steps_that_another_model_of_the_same_content_ran_count_for_both(built: Forge) -> None:
    store = Store(leave(built, OLDER).store)
    first = store.record(store.ref("published/" + INT8.format("sm_89", OLDER)) or "")
    assert first
    second = replace(first, fields={**first.fields, "config": {**first.fields["config"], "model": "another"}})
    store.put(second)
    name = f"another/sm_89/rtx-{OLDER}/int8"
    publications.move(store, name, published_files(second), publications.Publication(second.key))
    plan = watched(built, "model.name=another")
    assert plan["name"] == name
    assert [each["step"] for each in plan["reruns"]] == ["build", "publish", "validate"]


def test_a_plan_whose_record_is_gone_is_due(built: Forge) -> None:
    store = Store(built.store)
    store.record_path(store.ref("published/" + INT8.format("sm_89", HERE)) or "").unlink()
    plan = watched(built)
    assert plan["rebuild_due"]
    assert plan["reruns"] == []


def named(version: str, flow: str = "int8") -> Published:
    name = f"net/sm_89/rtx-{version}/{flow}"
    return Published(name, "0" * 64, "net", "sm_89", f"rtx-{version}", flow, None, "tensorrt_rtx", version)


VERSIONS = st.lists(st.integers(0, 12), min_size=4, max_size=4).map(lambda numbers: ".".join(map(str, numbers)))


@given(st.sets(st.one_of(VERSIONS, st.just(HERE)), min_size=1, max_size=6))
def test_of_the_releases_of_one_plan_that_of_the_installed_counts_else_the_highest(found: set[str]) -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(map(int, version.split(".")))

    plans = [named(version) for version in sorted(found)]
    counts = HERE if HERE in found else max(found, key=numbers)
    told = versions.standings(plans, LOCAL)
    for version in found:
        standing = "current" if version == HERE else "behind" if numbers(version) < numbers(HERE) else "ahead"
        expected = "superseded" if numbers(version) < numbers(counts) else standing
        assert told[named(version).name] == expected
    due = [counts] if numbers(counts) < numbers(HERE) else []
    assert [change.before for change in versions.changes(plans, LOCAL)] == due


def test_a_plan_behind_beside_one_that_is_current_asks_for_no_rebuild() -> None:
    plans = [named(OLDER), named(HERE), named(OLDER, "fp16")]
    (change,) = versions.changes(plans, LOCAL)
    assert (change.before, change.after, change.models) == (OLDER, HERE, ("net",))
    assert versions.standings(plans, LOCAL)[named(OLDER).name] == "superseded"
    assert versions.changes(plans[:2], LOCAL) == []


def test_who_went_back_to_an_older_release_whose_plans_are_there_has_nothing_to_rebuild(tmp_path: Path) -> None:
    plans = [named(HERE), named(NEWER)]
    told = versions.described(plans, Store(tmp_path), {"tensorrt_rtx": versions.Package(HERE)}, LOCAL)
    assert [plan["standing"] for plan in told] == ["current", "ahead"]
    assert [plan["rebuild_due"] for plan in told] == [True, False]  # the first for its record, which is not here


def test_an_upgrade_leaves_the_old_plan_published_whether_or_not_the_gates_let_the_new_one(built: Forge) -> None:
    forge = leave(built, OLDER)
    old, new = (INT8.format("sm_89", version) for version in (OLDER, HERE))
    plan = forge.store / "published" / old / "model.plan"
    content = plan.read_bytes()

    assert forge("build", *L4, "gates.plan_bytes=1000").code == 3
    assert standings(forge, "targets=[l4]") == {old: "behind"}
    assert forge("build", *L4).code == 0
    assert standings(forge, "targets=[l4]") == {old: "superseded", new: "current"}

    assert forge("gc", "--older-than", "0s", "--pack-after", "0s").code == 0
    assert plan.read_bytes() == content
    assert forge("gc", "--forget", f"published/{old}").code == 2
    back = forge("rollback", *L4)
    assert (back.code, "meant nothing else before" in back.err) == (2, True)  # the old plan has a name of its own


@pytest.mark.parametrize("other", ["-m", "--remote"])
def test_versions_go_with_nothing_else_of_status(other: str, forge: Forge) -> None:
    ran = forge("status", "--versions", other)
    assert ran.code == 2
    assert "--versions is about what is published" in ran.err


def test_an_empty_store_has_nothing_to_say(forge: Forge) -> None:
    assert forge("status", "--versions").out == "no such plan is published\n"
    assert not forge.store.exists() or not forge.records()


def test_what_a_queues_workers_build_stands_to_their_version(tmp_path: Path) -> None:
    """TensorRT is not installed here, and its plans are built by workers that have announced themselves."""
    remote = Remote(str(tmp_path / "remote"), 60.0)
    for host, version in (("one", "11.4.0.106"), ("two", "11.3.0.99")):
        worker = announced.own(f"{host} sm_90", "sm_90", None)
        announced.announce(remote, replace(worker, versions={"tensorrt": version, "tensorrt_rtx": NEWER}))
    builders = Builders(StoreConfig(root="", remote=remote.url))
    old = Published("net/sm_90/trt-11.3.0.99/fp16@h100", "0" * 64, "net", "sm_90", "trt-11.3.0.99", "fp16", "h100",
                    "tensorrt", "11.3.0.99")  # fmt: skip
    other = replace(old, name="net/sm_80/trt-11.3.0.99/fp16@a100", architecture="sm_80", target="a100")
    plans = [old, other, named(HERE)]
    assert [*versions.standings(plans, builders).values()] == ["behind", "unknown", "current"]
    (change,) = versions.changes(plans, builders)
    assert (change.architecture, change.before, change.after) == ("sm_90", "11.3.0.99", "11.4.0.106")
