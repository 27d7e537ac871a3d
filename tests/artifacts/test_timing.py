"""Timing caches: handed from build to build without loss, and looked after as the rest of a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import digest, gc, timing
from artifacts.errors import RemoteError
from artifacts.exchange import Exchange
from artifacts.record import Record
from artifacts.remote import Remote
from artifacts.store import Store
from artifacts.verify import repair, verify
from tests.artifacts.processes import running, said

PLACE = "gpu/trt-10.16.1.11/NVIDIA-L4/580"


def nobody(holder: str) -> None:
    raise AssertionError(f"waits for {holder}")


def take(store: Store, into: Path, place: str = PLACE, told: Callable[[str], None] = nobody) -> set[str]:
    """The entries of all caches of a place: a cache is a file of words here."""
    into.mkdir()
    return {word for path in timing.take(store, place, into, nobody, told) for word in path.read_text().split()}


def keep(store: Store, entries: set[str], merged: set[str] = frozenset(), place: str = PLACE) -> str:  # type: ignore[assignment]
    with store.scratch() as aside:
        (aside / "cache").write_text(" ".join(sorted(entries)))
        return timing.keep(store, place, aside / "cache", merged, nobody)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_a_build_puts_back_the_next_one_takes_and_what_went_into_it_is_gone(store: Store, tmp_path: Path) -> None:
    assert take(store, tmp_path / "0") == set()
    first = keep(store, {"conv"})
    assert take(store, tmp_path / "1") == {"conv"}
    second = keep(store, {"conv", "gemm"}, {first})
    assert timing.names(store) == [f"{PLACE}/{second}"]
    assert keep(store, {"conv", "gemm"}, {second}) == second
    assert take(store, tmp_path / "2") == {"conv", "gemm"}


def test_a_cache_that_a_build_did_not_take_stays_for_others(store: Store) -> None:
    foreign = keep(store, {"of another CUDA"})
    own = keep(store, {"conv"})
    assert timing.names(store) == sorted(f"{PLACE}/{name}" for name in (foreign, own))


def test_places_do_not_mix(store: Store, tmp_path: Path) -> None:
    keep(store, {"conv"})
    assert take(store, tmp_path / "other", f"{PLACE}0") == set()
    assert timing.names(store, "gpu/trt-10.16.1.11/NVIDIA-L4") == timing.names(store)


# Each step is a builder's, who begins, then ends, well or not, then begins again.
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([True, True, False])), min_size=6, max_size=14))
@settings(max_examples=25, deadline=None)
def test_whoever_ends_first_nothing_that_was_measured_is_lost(
    steps: list[tuple[int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("builds")
    store, taken, kept = Store(home / "store"), dict[int, tuple[set[str], set[str]]](), set[str]()
    for number, (builder, ends_well) in enumerate(steps):
        if builder not in taken:
            names = {name.rpartition("/")[2] for name in timing.names(store)}
            taken[builder] = (take(store, home / str(number)), names)
            continue
        entries, names = taken.pop(builder)
        if ends_well:
            keep(store, {*entries, f"entry{number}"}, names)
            kept.add(f"entry{number}")
    assert take(store, home / "end") == kept


BUILDS = """
    import sys, time
    from pathlib import Path
    from artifacts import timing
    from artifacts.store import Store
    store, own, place = Store(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(8):
        with store.scratch() as aside:
            (aside / "known").mkdir()
            known = timing.take(store, place, aside / "known", lambda holder: None, sys.exit)
            words = {word for path in known for word in path.read_text().split()} | {f"{own}.{number}"}
            time.sleep(0.06)  # a build takes longer than it waits for the lock
            (aside / "cache").write_text(" ".join(sorted(words)))
            timing.keep(store, place, aside / "cache", {path.name for path in known}, lambda holder: None)
"""


def test_builds_at_the_same_time_lose_nothing_to_each_other(store: Store, tmp_path: Path) -> None:
    with ExitStack() as stack:
        builds = [stack.enter_context(running(BUILDS, store.root, name, PLACE)) for name in "abc"]
        assert [said(build) for build in builds] == ["ready"] * 3
        for build in builds:
            assert build.stdin
            build.stdin.write("go\n")
            build.stdin.flush()
        ended = [build.communicate(timeout=60) for build in builds]
    assert [err for _, err in ended] == ["", "", ""]
    assert take(store, tmp_path / "end") == {f"{name}.{number}" for name in "abc" for number in range(8)}
    assert len(timing.names(store)) <= 3
    assert not list((store.root / "tmp").iterdir())


def test_who_takes_waits_for_who_puts_back_lest_it_misses_what_is_just_moved(store: Store, tmp_path: Path) -> None:
    keep(store, {"conv"})
    with timing._alone(store, PLACE, nobody), pytest.raises(AssertionError, match="reads or writes a timing cache"):
        take(store, tmp_path / "1")
    assert take(store, tmp_path / "2") == {"conv"}


# Damage


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"!")


def test_a_damaged_cache_is_set_aside_told_and_done_without(store: Store, tmp_path: Path) -> None:
    whole, broken = keep(store, {"conv"}), keep(store, {"gemm"})
    damage(timing.directory(store, PLACE) / broken)
    told: list[str] = []
    assert take(store, tmp_path / "1", told=told.append) == {"conv"}
    assert len(told) == 1
    assert f"timing/{PLACE}/{broken} is damaged: its content has another digest" in told[0]
    assert timing.names(store) == [f"{PLACE}/{whole}"]
    assert [path.name.rpartition("-")[2] for path in (store.root / "damaged").iterdir()] == [broken]


def test_verify_names_a_damaged_cache_and_repair_costs_no_answer(store: Store) -> None:
    key = digest.of_bytes(b"a plan")
    names = {place: keep(store, {place}, place=place) for place in (PLACE, f"pinned/{key}")}
    assert verify(store).findings == []
    for place, name in names.items():
        damage(timing.directory(store, place) / name)
    found = verify(store).findings
    assert [finding.path.as_posix() for finding in found] == [f"timing/{place}/{name}" for place, name in names.items()]
    assert "timing cache is damaged: " in found[0].what
    assert f"which pins the tactics of {key}, is damaged: " in found[1].what
    assert all(finding.records == finding.refs == () for finding in found)
    assert len(repair(store, found)) == 2
    assert verify(store).findings == []
    assert timing.names(store) == []


# gc


def wasted(store: Store, days: int = 30, budget: int | None = None) -> list[str]:
    return [waste.name for waste in gc.look(store, days * 86400, budget).waste if waste.kind == "timing"]


def test_gc_takes_a_cache_that_no_build_has_used_for_long_and_never_for_the_budget(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = keep(store, {"conv"})
    assert wasted(store) == wasted(store, budget=0) == []
    later = time.time() + 31 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert wasted(store) == [f"timing/{PLACE}/{name}"]
    gc.collect(store, 30 * 86400, None, "test", nobody)
    assert timing.names(store) == []


def test_gc_keeps_what_pins_a_plan_as_long_as_the_plans_record(store: Store) -> None:
    record = Record({"stage": "build"}, {})
    store.put(record)
    store.set_ref("plans/net", record.key)
    keep(store, {"conv"}, place=f"pinned/{record.key}")
    assert wasted(store, days=-1) == []
    store.delete_ref("plans/net")
    gc.collect(store, -86400, None, "test", nobody)
    assert store.record(record.key) is None
    assert len(wasted(store, days=-1)) == 1


# A remote


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Callable[[str], Exchange]:
    """Machines that share one remote, by name."""
    return lambda name: Exchange(Store(tmp_path / name), Remote(url, 60))


@pytest.fixture
def neighbour(tmp_path: Path) -> Callable[[str], Exchange]:
    """Machines that share a directory, by name."""
    return lambda name: Exchange(Store(tmp_path / name), Remote(str(tmp_path / "shared"), 60))


def test_machines_hand_each_other_their_caches_and_merge_them_without_loss(
    machine: Callable[[str], Exchange], tmp_path: Path
) -> None:
    one, two = machine("one"), machine("two")
    first = keep(one.store, {"conv"})
    assert one.send_timing(PLACE) == 1
    # Both build from it at the same time.
    assert two.fetch_timing(PLACE, nobody) == 1
    keep(one.store, {"conv", "gemm"}, {first})
    keep(two.store, {"conv", "pool"}, {first})
    assert (one.send_timing(PLACE, {first}), two.send_timing(PLACE, {first})) == (1, 1)
    assert len(one.remote.names("timing")) == 2
    three = machine("three")
    assert three.fetch_timing("", nobody) == 2
    assert take(three.store, tmp_path / "3") == {"conv", "gemm", "pool"}
    merged = {name.rpartition("/")[2] for name in timing.names(three.store)}
    last = keep(three.store, {"conv", "gemm", "pool"}, merged)
    three.send_timing(PLACE, merged)
    assert three.remote.names("timing") == [f"timing/{PLACE}/{last}"]
    assert (three.send_timing(""), three.fetch_timing("", nobody)) == (0, 0)


def test_a_damaged_cache_of_the_remote_is_not_taken_and_goes_there(neighbour: Callable[[str], Exchange]) -> None:
    one, two = neighbour("one"), neighbour("two")
    name = keep(one.store, {"conv"})
    one.send_timing(PLACE)
    one.remote.write(f"timing/{PLACE}/{name}", b"something else")
    told: list[str] = []
    assert two.fetch_timing(PLACE, told.append) == 0
    assert f"timing/{PLACE}/{name} in the remote" in told[0]
    assert timing.names(two.store) == two.remote.names("timing") == []


def test_a_damaged_cache_is_not_sent(neighbour: Callable[[str], Exchange]) -> None:
    one = neighbour("one")
    damage(timing.directory(one.store, PLACE) / keep(one.store, {"conv"}))
    assert one.send_timing("") == 0
    assert one.remote.names("timing") == []


@pytest.mark.parametrize("name", ["../../records/{}", "gpu/../../{}", "{}", "gpu/.hidden/{}", "gpu/a b/{}", "gpu/x/y"])
def test_a_name_in_the_remote_that_leads_elsewhere_is_no_cache(name: str) -> None:
    assert not timing.is_name(name.format(digest.of_bytes(b"x")))
    assert timing.is_name(f"{PLACE}/{digest.of_bytes(b'x')}")


def test_a_remote_that_is_gone_is_an_error_of_the_remote(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one = Exchange(Store(tmp_path / "one"), Remote(str(tmp_path / "file" / "below"), 60))
    keep(one.store, {"conv"})
    with pytest.raises(RemoteError):
        one.send_timing("")
