"""`publish` and `rollback`: what is published moves only when it is meant to, and every move is noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Event

import pytest

from artifacts import publications
from artifacts.errors import StoreError
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import releasing
from pipelines.reporting import Reporter
from tests.pipelines.conftest import Forge

pytestmark = pytest.mark.xdist_group("releasing")  # they share two builds

L4 = ("targets=[l4]", "flow=fp32")
TOO_LARGE = "gates.plan_bytes=1000"
OTHER = "steps.surgery.config.passes=[adopt,fold,drop_dead,infer_shapes]"
"""Another plan of the same name: without the fusions of surgery."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """A store in which the plan of `OTHER` was published first, and then the usual one."""
    forge = Forge(tmp_path_factory.mktemp("both"))
    for overrides in ((*L4, OTHER), L4):
        ran = forge.build(*overrides)
        assert ran.code == 0, ran.err
    return forge


@pytest.fixture
def forge(tmp_path: Path, both: Forge) -> Forge:
    shutil.copytree(both.store, tmp_path / ".trtforge", symlinks=True)
    return Forge(tmp_path)


def name_of(forge: Forge) -> str:
    (name,) = Store(forge.store).refs("published")
    return name.removeprefix("published/")


def published(forge: Forge) -> str:
    """The key that is published; link, ref and history agree on it."""
    store, name = Store(forge.store), name_of(forge)
    key = store.ref(f"published/{name}")
    assert key == (store.root / "published" / name).resolve().name == publications.history(store, name).current
    return str(key)


def test_what_is_built_is_published_and_publishing_it_again_moves_nothing(forge: Forge) -> None:
    before = published(forge)
    (release,) = forge("publish", "--json", *L4).document["published"]
    assert (release["key"], release["moved"], release["previous"]) == (before, False, before)
    assert len(publications.history(Store(forge.store), name_of(forge)).moves) == 2


def test_what_is_not_built_is_not_published_and_nothing_is_built(forge: Forge) -> None:
    records = forge.records()
    ran = forge("publish", *L4, "steps.build.config.tf32=false")
    assert ran.code == 1
    assert "is not built: build[l4] is missing" in ran.err
    assert "next: trtforge build" in ran.err
    assert forge.records() == records


def test_a_gate_refuses_marks_and_lets_itself_be_forced_with_a_reason(forge: Forge) -> None:
    before, name, store = published(forge), name_of(forge), Store(forge.store)
    assert forge.build(*L4, TOO_LARGE).code == 3
    mark = publications.refusal(store, name)
    assert mark is not None
    assert mark.key == store.ref(f"plans/{name}")
    (listed,) = forge("ls", "--json").document["plans"]
    assert listed["refused"] == list(mark.gates)
    assert "refused: plan_bytes" in forge("ls").out
    assert "refused: plan_bytes" in forge("status", *L4, TOO_LARGE).out

    ran = forge("publish", "--json", *L4, TOO_LARGE)
    assert ran.code == 3
    assert ran.document["refused"][name][0].startswith("plan_bytes")
    assert published(forge) == before

    ran = forge("publish", "--json", *L4, TOO_LARGE, "--force", "--reason", "the customer waits")
    assert ran.code == 0, ran.err
    (release,) = ran.document["published"]
    assert published(forge) == release["key"] != before
    manifest = json.loads((Path(release["path"]) / "manifest.json").read_text())
    assert manifest["forced"]["reason"] == "the customer waits"
    assert manifest["forced"]["gates"] == list(mark.gates)
    assert "@" in manifest["forced"]["by"]
    last = publications.history(store, name).moves[-1]
    assert (last.reason, last.gates, last.by) == ("the customer waits", mark.gates, manifest["forced"]["by"])

    assert forge.build(*L4, TOO_LARGE).code == 3
    assert published(forge) == release["key"]  # what somebody forced stays
    assert forge.build(*L4).code == 0
    assert published(forge) == before  # until a plan comes that the gates let pass
    assert publications.refusal(store, name) is None


@pytest.mark.parametrize("wrong", [("--force",), ("--force", "--reason", " "), ("--reason", "because")])
def test_force_and_reason_go_together(wrong: tuple[str, ...], forge: Forge) -> None:
    ran = forge("publish", *L4, *wrong)
    assert ran.code == 2
    assert "--force needs --reason TEXT" in ran.err


def test_what_was_rolled_back_stays_so_whatever_is_built_until_it_is_published_again(forge: Forge) -> None:
    new = published(forge)
    (release,) = forge("rollback", "--json", "digits", "--reason", "it hallucinates sevens").document["published"]
    old = published(forge)
    assert (release["key"], release["previous"], release["how"]) == (old, new, "rollback")
    plan = Path(release["path"]) / "model.plan"
    assert plan.stat().st_size == json.loads((plan.parent / "manifest.json").read_text())["plan"]["bytes"]

    ran = forge("build", "runner=local", *L4)
    assert ran.code == 0
    assert "it was rolled back" in ran.err
    assert "published/" not in ran.out
    assert published(forge) == old
    assert forge("publish", *L4).code == 0
    assert published(forge) == new
    assert forge("verify").code == 0


def rollback(forge: Forge, *what: str, to: str | None = None) -> releasing.Released:
    """The verb, in this process."""
    given = [*what, f"store.root='{forge.store}'"]
    return releasing.rollback(given, [], to, None, None, Reporter(), Event())


def test_a_key_to_go_back_to_is_named_by_its_beginning(forge: Forge) -> None:
    new = published(forge)
    rollback(forge, *L4)
    with pytest.raises(ConfigError, match="never meant one key that begins so") as caught:
        rollback(forge, "digits", to="0123abcd")
    assert new[:16] in caught.value.next_step
    rollback(forge, name_of(forge), to=new[:10])
    assert published(forge) == new


def test_a_name_that_meant_nothing_else_before_is_not_rolled_back(forge: Forge) -> None:
    rollback(forge, "digits")
    before = published(forge)
    with pytest.raises(ConfigError, match="nothing to go back to"):
        rollback(forge, "digits")
    assert published(forge) == before


def test_a_rollback_that_was_cut_off_is_finished_by_the_next(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Store, "publish", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rollback(forge, "digits")
    store, name = Store(forge.store), name_of(forge)
    goal = publications.history(store, name).current
    assert store.ref(f"published/{name}") != goal
    rollback(forge, "digits")
    assert published(forge) == goal
    assert len(publications.history(store, name).moves) == 3


@pytest.mark.parametrize("what", ["digit", "sm_89"])
def test_a_name_that_is_not_published_is_refused(what: str, forge: Forge) -> None:
    with pytest.raises(ConfigError, match="nothing is published under that name"):
        rollback(forge, what)


def test_a_rollback_moves_the_name_in_the_remote_too_though_it_means_a_later_plan_there(forge: Forge) -> None:
    remote = forge.home / "remote"
    assert forge("push", f"store.remote='{remote}'").code == 0
    theirs = remote / "refs/published" / name_of(forge)
    assert theirs.read_text().strip() == published(forge)
    rollback(forge, "digits", f"store.remote='{remote}'")
    assert theirs.read_text().strip() == published(forge)
    assert len(publications.history(Store(forge.store), name_of(forge)).moves) == 3


def test_what_triton_cannot_take_moves_nothing(forge: Forge) -> None:
    before, directory = published(forge), forge.home / "a file"
    directory.write_text("")
    arguments = (["digits", f"store.root='{forge.store}'"], [], None, None)
    with pytest.raises(ConfigError, match="--triton"):
        releasing.rollback(*arguments, directory, Reporter(), Event())
    assert published(forge) == before
    found = releasing.rollback(*arguments, forge.home / "repository", Reporter(), Event())
    assert [path.name for path in found.triton] == ["config.pbtxt", "sm_89.plan"]
    assert found.triton[1].read_bytes() == (found.releases[0].path / "model.plan").read_bytes()
    assert "max_batch_size: 32" in found.triton[0].read_text()


def test_what_was_published_before_and_is_gone_is_not_gone_back_to(forge: Forge) -> None:
    before, store = published(forge), Store(forge.store)
    store.record_path(publications.history(store, name_of(forge)).before[0]).unlink()
    with pytest.raises(StoreError, match="which it meant before, is not whole: its record is gone"):
        rollback(forge, "digits")
    assert published(forge) == before


@pytest.mark.parametrize("verb", [("publish", *L4), ("rollback", "digits")])
def test_a_damaged_plan_is_found_although_its_size_and_times_are_as_they_were(
    verb: tuple[str, ...], forge: Forge
) -> None:
    forge("status", *L4)  # so that digests are remembered
    store, name = Store(forge.store), name_of(forge)
    key = publications.history(store, name).before[0] if verb[0] == "rollback" else published(forge)
    record = store.record(key)
    assert record
    before, plan = published(forge), store.path(record.outputs["plan"])
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.chmod(0o644)
    plan.write_bytes(content)
    ran = forge(*verb)
    assert ran.code == 1
    assert "damaged" in ran.err or "not built" in ran.err
    assert published(forge) == before
