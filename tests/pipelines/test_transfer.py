"""The verbs `push` and `pull`, and `status --remote`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.remote import Remote
from tests.pipelines.conftest import Forge
from tests.s3 import S3, aws, free_port

EXPORT = ("flow=export", "runner=local")


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Forge, Forge]:
    """Two machines, each with a store of its own."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return Forge(tmp_path / "one"), Forge(tmp_path / "two")


def test_what_was_built_without_a_remote_is_pushed_pulled_and_then_cached(
    machines: tuple[Forge, Forge], url: str
) -> None:
    one, two = machines
    remote = f"store.remote='{url}'"  # quoted: the name has a space in it
    assert one.build(*EXPORT).code == 0
    status = one("status", "--remote", "--json", *EXPORT, remote).document
    assert status["remote"] == {"url": url, "reachable": True, "error": None, "there": [], "unsent": 3}

    pushed = one("push", "--json", *EXPORT, remote).document
    assert (pushed["ok"], pushed["sent"], pushed["damaged"]) == (True, 3, [])
    assert one("push", "--json", *EXPORT, remote).document["sent"] == 0
    status = one("status", "--remote", *EXPORT, remote)
    assert f"{url} has 2 of these 2 steps" in status.out

    missing = two("status", "--remote", *EXPORT, remote)
    assert "export: in the remote: `trtforge build` fetches it" in missing.out
    pulled = two("pull", "--json", *EXPORT, remote)
    assert (pulled.code, pulled.document["fetched"], pulled.document["missing"]) == (0, 2, [])
    assert two.status(*EXPORT).states() == {"export": "cached", "surgery": "cached"}
    assert two("build", *EXPORT).code == 0


def test_pull_says_what_the_remote_lacks_and_exits_with_1(machines: tuple[Forge, Forge], tmp_path: Path) -> None:
    one, two = machines
    remote = f"store.remote={tmp_path}/shared"
    assert one.build(*EXPORT, remote).code == 0
    ran = two("pull", "flow=export", remote, "steps.surgery.config.passes=[]")
    assert ran.code == 1
    assert "fetched 1 records" in ran.out
    assert "not in the remote: surgery: `trtforge build` builds them" in ran.out


def test_pull_all_brings_every_record_and_name(machines: tuple[Forge, Forge], tmp_path: Path) -> None:
    one, two = machines
    remote = f"store.remote={tmp_path}/shared"
    assert one.build("flow=fp16", "targets=[l4]", "runner=local", remote).code == 0
    assert one("push", remote).code == 0  # the signature, which builds do not share
    assert two("pull", "--all", remote).code == 0
    assert two.records() == one.records()
    listed = [machine("ls", "--json").document["plans"] for machine in machines]
    named = [[(plan["name"], plan["key"], plan["state"]) for plan in plans] for plans in listed]
    assert named[0] == named[1] != []


def test_a_build_fetches_before_it_starts_an_engine(machines: tuple[Forge, Forge], tmp_path: Path) -> None:
    one, two = machines
    remote = f"store.remote={tmp_path}/shared"
    assert one.build(*EXPORT, remote).code == 0
    ran = two("build", "flow=export", remote)  # runner=prefect
    assert ran.code == 0
    assert f"surgery: cached, from {tmp_path}/shared" in ran.err
    assert "Prefect server" not in ran.err


def test_a_remote_that_is_down_fails_push_and_pull_and_status_says_so(
    machines: tuple[Forge, Forge], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _two = machines
    for name, value in aws(free_port()).items():
        monkeypatch.setenv(name, value)
    remote = "store.remote=s3://bucket/x"
    for verb in ("push", "pull"):
        ran = one(verb, *EXPORT, remote)
        assert ran.code == 1
        assert "error: the remote s3://bucket/x cannot be used: " in ran.err
        assert ran.out == ""
    ran = one("status", "--remote", "--json", *EXPORT, remote)
    assert (ran.code, ran.document["remote"]["reachable"]) == (0, False)


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_without_a_remote_there_is_nothing_to_push_to(forge: Forge, verb: str) -> None:
    ran = forge(verb, *EXPORT)
    assert ran.code == 2
    assert ran.err.startswith("error: there is no remote\nnext: name one: store.remote=s3://")


@pytest.mark.parametrize(
    ("given", "told"),
    [("s4://bucket/x", "fsspec knows no s4://"), ("s3://me:hidden@bucket/x", "the URL holds credentials")],
)
def test_a_url_that_can_be_no_remote_is_refused_before_anything_runs(forge: Forge, given: str, told: str) -> None:
    ran = forge.build(*EXPORT, f"store.remote={given}")
    assert ran.code == 2
    assert told in ran.err
    assert "hidden" not in ran.out + ran.err


def test_no_credential_is_written_anywhere(machines: tuple[Forge, Forge], s3: S3) -> None:
    one, two = machines
    remote = f"store.remote={s3.url}"
    assert one.build(*EXPORT, remote, "--debug").code == 0
    ran = two("build", "--debug", *EXPORT, remote, "steps.export.time_limit_s=0.001")
    secrets = [s3.environment[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    for home in (one.home, two.home):
        for file in home.rglob("*"):
            assert not file.is_file() or not any(secret.encode() in file.read_bytes() for secret in secrets), file
    assert not any(secret in ran.out + ran.err for secret in secrets)
    there = Remote(remote.removeprefix("store.remote="), 60)
    for name in there.names(""):
        assert not any(secret.encode() in (there.read(name) or b"") for secret in secrets), name
