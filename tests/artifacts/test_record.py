"""Records: what was written is what is read, or it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import digest
from artifacts.errors import StoreError
from artifacts.record import FORMAT, Blob, Record
from tests.artifacts.test_digest import VALUES

MAPPINGS = st.dictionaries(st.text(), VALUES, max_size=4)
BLOBS = st.builds(Blob, digest=st.binary().map(digest.of_bytes), bytes=st.integers(0))
RECORDS = st.builds(
    Record,
    fields=MAPPINGS,
    outputs=st.dictionaries(st.text(), BLOBS, max_size=3),
    metrics=MAPPINGS,
    provenance=MAPPINGS,
    log=st.none() | BLOBS,
)
RECORD = Record(
    fields={"stage": "build", "version": 1, "config": {"level": 0.5}, "inputs": {"onnx": [digest.of_bytes(b"net")]}},
    outputs={"plan": Blob(digest.of_bytes(b"plan"), 4)},
    metrics={"größe": -1.5e300, "fine": True},
    log=Blob(digest.of_bytes(b"log"), 3),
)


@given(RECORDS)
def test_what_was_written_is_read(record: Record) -> None:
    assert Record.loads(record.dumps()) == record
    assert Record.loads(record.dumps()).key == record.key


@given(RECORDS, MAPPINGS)
def test_only_the_question_makes_the_key(record: Record, other: dict[str, Any]) -> None:
    assert Record(record.fields, {}, metrics=other).key == record.key
    assert (Record(other, record.outputs).key == record.key) == (digest.of_json(other) == digest.of_json(record.fields))


@settings(max_examples=1000)
@given(place=st.integers(0, len(RECORD.dumps().encode()) - 1), flip=st.integers(1, 255))
def test_a_flipped_byte_never_makes_another_record(place: int, flip: int) -> None:
    content = bytearray(RECORD.dumps().encode())
    content[place] ^= flip
    try:
        record = Record.loads(content.decode(errors="surrogateescape"))
    except StoreError:
        return
    # JSON has more than one spelling of white space, and of 1e300.
    assert chr(RECORD.dumps().encode()[place]) in " \ne"
    assert record == RECORD


def test_every_truncation_is_refused() -> None:
    text = RECORD.dumps().rstrip()
    for length in range(len(text)):
        with pytest.raises(StoreError):
            Record.loads(text[:length])


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "1", '"seal"', "{}", '{"seal": 1}', '{"seal": "", "format": "1"}', "[" * 200_000, "NaN", "\0"],
    ids=lambda text: str(text)[:12],
)
def test_other_json_is_no_record(text: str) -> None:
    with pytest.raises(StoreError):
        Record.loads(text)


@pytest.mark.parametrize(
    ("change", "value"),
    [("outputs", {}), ("outputs", {"plan": {"digest": "0" * 64, "bytes": 4}}), ("fields", {}), ("key", "0" * 64)],
)
def test_an_edited_record_is_refused(change: str, value: object) -> None:
    body = json.loads(RECORD.dumps())
    with pytest.raises(StoreError, match="seal"):
        Record.loads(json.dumps({**body, change: value}))


def test_a_record_that_answers_another_question_than_its_key_is_refused() -> None:
    body = json.loads(RECORD.dumps())
    del body["seal"]
    body["fields"] = {"stage": "cast"}
    with pytest.raises(StoreError, match="seal"):
        Record.loads(json.dumps({**body, "seal": digest.of_json(body)}))


def test_a_newer_format_is_refused_with_a_next_step() -> None:
    body = json.loads(RECORD.dumps())
    with pytest.raises(StoreError, match=f"record format {FORMAT + 1} is newer than {FORMAT}") as caught:
        Record.loads(json.dumps({**body, "format": FORMAT + 1}))
    assert caught.value.next_step == "upgrade trtforge"


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}])
def test_what_cannot_be_read_again_is_not_written(value: object) -> None:
    with pytest.raises(StoreError):
        Record({"stage": "x"}, {}, metrics={"a": value}).dumps()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fields": 1}', "{" * 100_000])
def test_damage_to_what_was_checked_before_is_damage_too(text: str) -> None:
    with pytest.raises(StoreError, match="not a record"):
        Record.loads_checked(text)
