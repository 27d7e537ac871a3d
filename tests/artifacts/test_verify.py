"""verify: every damaged file is named, with what is lost by it, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts.record import Blob, Record
from artifacts.store import Hit, Store
from artifacts.verify import Report, repair, verify
from tests.artifacts.test_store import add, answer, flip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def whats(report: Report) -> list[str]:
    return [finding.what for finding in report.findings]


def test_a_store_that_is_not_there_is_healthy(store: Store) -> None:
    assert verify(store) == Report()
    assert not store.root.exists()


def test_a_healthy_store_has_no_findings_and_all_of_it_was_read(store: Store) -> None:
    record = answer(store)
    store.set_ref("plans/net", record.key)
    store.publish("net", record.key, {f"{name}.bin": blob for name, blob in record.outputs.items()})
    heard: list[float | None] = []
    report = verify(store, lambda phase, fraction: heard.append(fraction))
    assert report.findings == []
    assert report.bytes == 2 * sum(blob.bytes for blob in record.outputs.values())
    assert report.files == 2 + 1 + 1 + 1 + 1  # objects, record, ref, link, published directory
    assert heard[-1] == 1.0


def test_damage_is_named_with_the_records_and_names_that_are_lost(store: Store) -> None:
    record = answer(store)
    store.set_ref("plans/net", record.key)
    path = store.path(record.outputs["plan"])
    flip(path)
    path.chmod(0o444)
    (finding,) = verify(store).findings
    assert finding.path == path.relative_to(store.root)
    assert "its content has the digest" in finding.what
    assert (finding.records, finding.refs, finding.logs) == ((record.key,), ("plans/net",), ())


def test_damage_that_the_memo_cannot_see_is_seen(store: Store) -> None:
    """A disk that rots leaves size and times; here the memo is told so."""
    record = answer(store)
    blob = record.outputs["plan"]
    flip(store.path(blob))
    believe(store, blob)
    assert store.problem(blob) == ""
    assert len(verify(store).findings) == 1


def believe(store: Store, blob: Blob) -> None:
    """Has the memo remember the object of `blob` as whole, as it is now."""
    stat = store.path(blob).stat()
    store.memo._learn("files", stat, stat, stat.st_mtime_ns + 10**10, blob.digest)


def test_repair_sets_all_that_is_lost_aside_and_leaves_a_healthy_store(store: Store) -> None:
    record, other = answer(store), Record({"stage": "other"}, {"file": add(store, b"other")})
    store.put(other)
    store.set_ref("plans/net", record.key)
    flip(store.path(record.outputs["plan"]))
    kept = repair(store, verify(store).findings)
    assert len(kept) == 3
    assert all(path.parent == store.root / "damaged" for path in kept)
    assert not verify(store).findings
    assert store.ref("plans/net") is None
    assert store.lookup(other.key) == Hit(other)


def test_a_lost_log_costs_the_record_nothing_but_its_log(store: Store) -> None:
    record = Record({"stage": "x"}, {"file": add(store)}, log=add(store, b"what was printed"))
    store.put(record)
    assert record.log
    store.path(record.log).unlink()
    (finding,) = verify(store).findings
    assert (finding.records, finding.logs) == ((), (record.key,))
    repair(store, [finding])
    assert not verify(store).findings
    mended = store.record(record.key)
    assert mended
    assert mended.log is None
    assert mended.outputs == record.outputs


def test_an_object_that_can_be_written_is_named_and_made_read_only(store: Store) -> None:
    path = store.path(add(store))
    path.chmod(0o644)
    (finding,) = verify(store).findings
    assert "can be written: mode 644" in finding.what
    repair(store, [finding])
    assert path.stat().st_mode & 0o777 == 0o444
    assert not verify(store).findings


@pytest.mark.parametrize("name", ["objects/ab/stray", "objects/stray", f"records/{'0' * 64}.json", "published/a/file"])
def test_what_does_not_belong_there_is_named_and_set_aside(name: str, store: Store) -> None:
    answer(store)
    (store.root / name).parent.mkdir(parents=True, exist_ok=True)
    (store.root / name).write_text("stray")
    assert [finding.path for finding in verify(store).findings] == [Path(name)]
    repair(store, verify(store).findings)
    assert not verify(store).findings


def test_a_ref_to_a_record_that_is_gone_is_named(store: Store) -> None:
    store.set_ref("plans/net", "0" * 64)
    assert whats(verify(store)) == [f"ref plans/net means record {'0' * 64}, which is gone"]


def test_a_record_of_a_newer_format_is_no_damage_and_is_left_alone(store: Store) -> None:
    record = answer(store)
    path = store.record_path(record.key)
    newer = json.dumps({**json.loads(path.read_text()), "format": 99})
    path.write_text(newer)
    store.set_ref("plans/net", record.key)
    report = verify(store)
    assert report.findings == []
    assert report.newer == [path.relative_to(store.root)]
    store.put(record)
    repair(store, report.findings)
    assert path.read_text() == newer


def test_a_published_directory_is_held_against_its_record_and_without_one_against_its_manifest(store: Store) -> None:
    plan = add(store)
    manifest = add(store, json.dumps({"plan": {"file": "model.plan", "sha256": plan.digest}}).encode())
    record = Record({"stage": "publish"}, {"plan": plan, "manifest": manifest})
    store.put(record)
    link = store.publish("net", record.key, {"model.plan": plan, "manifest.json": manifest})
    store.set_ref("published/net", record.key)
    for gone in (False, True):
        if gone:
            (store.root / "refs/published/net").unlink()
            store.record_path(record.key).unlink()
        assert not verify(store).findings
        content = (link / "model.plan").read_bytes()
        flip(link / "model.plan")
        assert "is damaged: its files are not those that were published" in whats(verify(store))[0]
        (link / "model.plan").write_bytes(content)
    (link / "model.plan").unlink()
    assert len(verify(store).findings) == 1
    repair(store, verify(store).findings)
    assert not verify(store).findings
    assert not link.is_symlink()
