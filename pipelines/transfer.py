"""Sends to and fetches from the remote without building: `push`, `pull`, and what `status --remote` adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any, TypeVar

from artifacts.errors import DamagedRemoteError, RemoteError, StoreError
from artifacts.exchange import Exchange
from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import StoreConfig
from pipelines import sharing
from pipelines.errors import InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.reporting import Reporter
from pipelines.session import Session

AT_ONCE = 4
"""Records at a time; each has several objects, and `artifacts.remote.AT_ONCE` limits the transfers of them all."""

T = TypeVar("T")


def push(config: StoreConfig, store: Store, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Sends every record that the remote lacks, with its objects, every name and every timing cache.

    Raises:
        ConfigError: There is no remote.
        RemoteError: The remote cannot be used.
        StoreError: The store cannot be read.
    """
    exchange = _exchange(config, store)
    started = time.monotonic()
    reporter.started("push")
    missing = sorted(set(store.recorded()) - exchange.recorded())
    damaged: list[dict[str, str]] = []
    sent: list[Record] = []

    def send(key: str) -> None:
        record = store.record(key)
        try:
            if record is None:
                raise StoreError("its record cannot be read")
            exchange.send(record)
        except RemoteError:
            raise
        except StoreError as error:
            if store.record_path(key).exists():  # else gc took it meanwhile, the record before its objects
                damaged.append({"key": key, "what": error.what})
            return
        sent.append(record)

    _each(missing, send, "push", reporter, stop)
    refs = {name: key for name, key in store.refs("").items() if not name.startswith("signatures/")}
    exchange.send_refs(refs)
    caches = exchange.send_timing("")
    seconds = round(time.monotonic() - started, 3)
    return {
        "ok": not damaged,
        "remote": config.remote,
        "sent": len(sent),
        "bytes": _bytes(sent),
        "damaged": damaged,
        "names": len(refs),
        "timing_caches": caches,
        "seconds": seconds,
    }


def pull(session: Session, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Fetches what the session's steps lack and the remote has, as far as the graph can be followed.

    Raises:
        ConfigError: There is no remote.
        RemoteError: The remote cannot be used.
        StoreError: The store cannot be written.
    """
    exchange = _exchange(session.config.store, session.store)
    damaged: list[dict[str, str]] = []
    session.claim()
    try:
        fetched = _follow(session, lambda key: _fetch(exchange, key, damaged, stop), reporter, stop)
        if session.up_to_date:
            session.settle()
    finally:
        session.store.release()
    missing = [name for name, outcome in session.outcomes.items() if not outcome.done]
    return {
        "ok": not damaged and not missing,
        "remote": exchange.remote.url,
        "fetched": len(fetched),
        "bytes": _bytes(fetched),
        "damaged": damaged,
        "missing": missing,
    }


def fetch_first(session: Session, reporter: Reporter, stop: Event) -> None:
    """Fetches what others have built already, so that a run has only to be started for the rest."""
    shared = session.workshop.sharing
    if shared is not None:
        _follow(session, lambda key: shared.fetch(key, _patience(stop)), reporter, stop)


def _follow(session: Session, fetch: Callable[[str], Record | None], reporter: Reporter, stop: Event) -> list[Record]:
    """Fetches the missing steps' records, then those of the steps whose keys are known thereby, and so on."""
    fetched: list[Record] = []

    def one(outcome: Outcome) -> None:
        record = fetch(outcome.key or "")
        if record is not None:
            fetched.append(record)
            reporter.finished(replace(outcome, state="cached", reason=sharing.from_remote(session.config.store.remote)))

    asked: set[str | None] = set()
    while wanted := [o for o in session.outcomes.values() if o.state == "missing" and o.key not in asked]:
        asked |= {outcome.key for outcome in wanted}
        _each(wanted, one, "pull", reporter, stop)
        session.claim()
    return fetched


def pull_all(config: StoreConfig, store: Store, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Fetches every record and timing cache that the store lacks, and every name that means nothing here yet.

    Raises:
        ConfigError: There is no remote.
        RemoteError: The remote cannot be used.
        StoreError: The store cannot be written.
    """
    exchange = _exchange(config, store)
    damaged: list[dict[str, str]] = []
    fetched: list[Record] = []

    def fetch(key: str) -> None:
        record = _fetch(exchange, key, damaged, stop)
        if record is not None:
            fetched.append(record)

    _each(sorted(exchange.recorded() - set(store.recorded())), fetch, "pull", reporter, stop)
    caches = exchange.fetch_timing("", reporter.note)
    return {
        "ok": not damaged,
        "remote": exchange.remote.url,
        "fetched": len(fetched),
        "bytes": _bytes(fetched),
        "damaged": damaged,
        "names": len(exchange.fetch_refs()),
        "timing_caches": caches,
    }


def _fetch(exchange: Exchange, key: str, damaged: list[dict[str, str]], stop: Event) -> Record | None:
    """Fetches a record; what the remote holds of it in vain is noted in `damaged`."""
    try:
        return exchange.fetch(key, _patience(stop))
    except DamagedRemoteError as error:
        damaged.append({"key": key, "what": error.what})
    return None


def compare(session: Session) -> dict[str, Any]:
    """Which of the session's steps the remote can answer, and how many records it lacks.

    Raises:
        ConfigError: There is no remote.
    """
    exchange = _exchange(session.config.store, session.store)
    try:
        there = exchange.recorded()
    except RemoteError as error:
        return {"url": exchange.remote.url, "reachable": False, "error": error.what, "there": [], "unsent": None}
    steps = [name for name, outcome in session.outcomes.items() if outcome.key in there]
    unsent = len(set(session.store.recorded()) - there)
    return {"url": exchange.remote.url, "reachable": True, "error": None, "there": steps, "unsent": unsent}


def print_comparison(found: dict[str, Any], session: Session) -> None:
    """Prints what `compare` found, for people."""
    if not found["reachable"]:
        print(found["error"])
        return
    asked = [outcome for outcome in session.outcomes.values() if outcome.key]
    print(f"{found['url']} has {len(found['there'])} of these {len(asked)} steps")
    for outcome in asked:
        if outcome.state == "missing" and outcome.node.id in found["there"]:
            print(f"{outcome.node.id}: in the remote: `trtforge build` fetches it")
    if found["unsent"]:
        print(f"{found['unsent']} records of this store are not in it: `trtforge push` sends them")


def print_transfer(found: dict[str, Any], verb: str) -> None:
    """Prints what `push` or `pull` did, for people."""
    from pipelines.document import in_bytes

    for each in found["damaged"]:
        print(f"damaged: {each['key']}: {each['what']}")
    count = found["sent" if verb == "push" else "fetched"]
    done = f"{'sent' if verb == 'push' else 'fetched'} {count} records, {in_bytes(found['bytes'])}"
    print(f"{done}, {'to' if verb == 'push' else 'from'} {found['remote']}")
    if caches := found.get("timing_caches"):
        print(f"and {caches} timing caches")
    if missing := found.get("missing"):
        print(f"not in the remote: {', '.join(missing)}: `trtforge build` builds them")


def _exchange(config: StoreConfig, store: Store) -> Exchange:
    shared = sharing.opened(config, store, lambda text: None)
    if shared is None:
        raise ConfigError(
            "there is no remote", "name one: store.remote=s3://bucket/prefix, or the variable TRTFORGE_REMOTE"
        )
    return shared.exchange


def _each(items: Iterable[T], action: Callable[[T], None], name: str, reporter: Reporter, stop: Event) -> None:
    """Does `action` to all items, some at a time; ends with the first error."""
    todo = list(items)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(_unless, stop, action, item) for item in todo]
        try:
            for number, future in enumerate(futures):
                reporter.progressed(name, f"{number} of {len(todo)} records", number / len(todo))
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _unless(stop: Event, action: Callable[[T], None], item: T) -> None:
    if stop.is_set():
        raise InterruptedBuildError
    action(item)


def _patience(stop: Event) -> Callable[[str], None]:
    def waiting(holder: str) -> None:
        if stop.is_set():
            raise InterruptedBuildError

    return waiting


def _bytes(records: Iterable[Record | None]) -> int:
    return sum(blob.bytes for record in records if record for blob in record.blobs)
