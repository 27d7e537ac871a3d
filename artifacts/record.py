"""A record: the answer to one question, and the question in full.

The question is the key's fields; the answer is the outputs by digest. Everything else (metrics, log, provenance) is
there for people and may differ between two machines that answered the same question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from artifacts import digest
from artifacts.errors import NewerFormatError, StoreError

FORMAT = 1


@dataclass(frozen=True)
class Blob:
    """Content in the store, by what it is."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class Record:
    """What a step was asked and what it answered.

    Attributes:
        fields: The question: `{stage, version, config, inputs, facts, tools}`, all of it in the key.
        outputs: The answer, by output name.
        metrics: What the stage measured, plain JSON.
        provenance: Who made it, when, where and with what: recorded, not keyed.
        log: What the stage and the libraries under it printed.
    """

    fields: Mapping[str, Any]
    outputs: Mapping[str, Blob]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    log: Blob | None = None

    @property
    def key(self) -> str:
        """`sha256` of the question, 64 hex digits."""
        return digest.of_json(self.fields)

    @property
    def blobs(self) -> set[Blob]:
        """All content that it names: outputs and log."""
        return {*self.outputs.values(), *([self.log] if self.log else [])}

    def dumps(self) -> str:
        """The record as JSON, sealed with a digest of itself so that damage shows."""
        body = {"format": FORMAT, "key": self.key, **asdict(self)}
        return json.dumps({**body, "seal": digest.of_json(body)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str) -> Record:
        """Reads what `dumps` wrote.

        Raises:
            NewerFormatError: The text is of a newer format.
            StoreError: The text is damaged.
        """
        try:
            body = json.loads(text)
            seal = body.pop("seal")
            if body["format"] > FORMAT:
                raise NewerFormatError(
                    f"record format {body['format']} is newer than {FORMAT}, which this trtforge reads",
                    "upgrade trtforge",
                )
            if seal != digest.of_json(body) or body["key"] != digest.of_json(body["fields"]):
                raise StoreError("its seal does not match its content")
            return cls._of(body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"not a record: {error!r}") from error

    @classmethod
    def loads_checked(cls, text: str) -> Record:
        """Reads what `loads` has read before, byte for byte, without a look at the seal: a quarter of the time.

        Raises:
            StoreError: The text is damaged.
        """
        try:
            return cls._of(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"not a record: {error!r}") from error

    @classmethod
    def _of(cls, body: Mapping[str, Any]) -> Record:
        return cls(
            fields=body["fields"],
            outputs={name: Blob(**blob) for name, blob in body["outputs"].items()},
            metrics=body["metrics"],
            provenance=body["provenance"],
            log=None if body["log"] is None else Blob(**body["log"]),
        )
