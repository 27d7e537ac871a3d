"""Objects that are kept as what they have beyond others: a plan, beyond the weights that went into it.

```
<root>/deltas/ab/cdef…           one line of JSON, then a zstd frame; named by the sha256 of the object
```

Measured with TensorRT-RTX 1.7.1 on plans whose weights all differ by 1 %: of MiniLM's plan 89 % are left when it is
compressed beside another plan of the same structure, and 0.1 % beside its own weights, which the store has anyway; of
ResNet-50's 92 % and 41 %, or 0.04 % where the weights are also there channels last (`artifacts.channels_last`). So the
bases of a delta are what the object was made from (`artifacts.packing` chooses), they are always whole objects, and no
chain can form.

The line names bases and size, and holds the digests of itself and of the frame: out of the right frame and the right
bases comes what came when the delta was made, which was read back then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts import digest
from artifacts.channels_last import channels_last
from artifacts.errors import NewerFormatError, StoreError
from artifacts.record import Blob

FORMAT = 1

LARGEST_BYTES = 1 << 30
"""Object and bases together. All are in memory at once, the bases up to twice, and zstd reaches back 2 GiB at most."""

_LINE_BYTES = 4096
_LEVEL = 1
"""Level 3 made the deltas of six plans no smaller, and took up to half as long again."""
_SHORTEST_MATCH = 32


@dataclass(frozen=True)
class Delta:
    """What the line says.

    Attributes:
        bytes: The size of the object.
        bases: What it is kept beside, in the order in which the frame reaches back into them.
        frame: The digest of all that follows the line.
    """

    bytes: int
    bases: tuple[Blob, ...]
    frame: str


def place(root: Path, name: str) -> Path:
    """Where the delta of the object with the digest `name` lies in the store at `root`."""
    return root / "deltas" / name[:2] / name[2:]


def files(root: Path) -> dict[str, Path]:
    """The files of all deltas of the store at `root`, by the digests of their objects."""
    found = {path.parent.name + path.name: path for path in (root / "deltas").glob("*/*")}
    return {name: path for name, path in found.items() if digest.is_digest(name)}


def read(path: Path) -> Delta:
    """What the delta at `path` is, by its line alone.

    Raises:
        OSError: It cannot be read.
        NewerFormatError: It is of a newer format.
        StoreError: It is damaged.
    """
    with path.open("rb") as file:
        return _parsed(file.readline(_LINE_BYTES), path)


def check(path: Path) -> Delta:
    """What the delta at `path` is, all of which is read; its bases are not looked at.

    Raises:
        OSError: It cannot be read.
        NewerFormatError: It is of a newer format.
        StoreError: It is damaged.
    """
    return _content(path)[0]


def pack(blob: Blob, bases: Sequence[Blob], path: Callable[[Blob], Path], delta: Path) -> int:
    """Writes to `delta` what the object `blob` has beyond `bases`, syncs it and reads it back.

    Args:
        blob: The object.
        bases: What it is kept beside.
        path: Where each of them lies.
        delta: The file to write.

    Returns:
        The size of `delta`.

    Raises:
        OSError: A file cannot be read or written.
        StoreError: An object is damaged, or what is read back is something else.
    """
    from backports import zstd  # 6 ms

    content, prefix = _read(blob, path), _prefix(bases, path)
    option = zstd.CompressionParameter
    options: dict[int, int] = {
        option.compression_level: _LEVEL,
        option.window_log: max(10, _bytes(blob, *bases, *bases).bit_length()),
        option.enable_long_distance_matching: 1,
        option.ldm_min_match: _SHORTEST_MATCH,
    }
    frame = zstd.compress(content, options=options, zstd_dict=prefix)
    known = Delta(blob.bytes, tuple(bases), digest.of_bytes(frame))
    body = json.loads(json.dumps({"format": FORMAT, **asdict(known)}))
    with delta.open("wb") as file:
        file.write(json.dumps({**body, "seal": digest.of_json(body)}).encode() + b"\n" + frame)
        file.flush()
        os.fsync(file.fileno())
    if unpacked(delta, path) != content:
        what = f"object {blob.digest} does not come out of its delta as it went in"
        raise StoreError(what, "run `trtforge verify`: the disk or the memory may be broken")
    return delta.stat().st_size


def unpacked(delta: Path, path: Callable[[Blob], Path]) -> bytes:
    """The object that is kept at `delta`.

    Args:
        delta: Its file.
        path: Where each of its bases lies.

    Raises:
        OSError: A file cannot be read.
        StoreError: The delta or a base is damaged.
    """
    from backports import zstd

    known, frame = _content(delta)
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}
    try:
        content = zstd.decompress(frame, zstd_dict=_prefix(known.bases, path), options=options)
    except zstd.ZstdError as error:
        raise _damaged(delta, str(error)) from error
    if len(content) != known.bytes:
        raise _damaged(delta, f"{len(content)} bytes come out, not {known.bytes}")
    return content


def _prefix(bases: Sequence[Blob], path: Callable[[Blob], Path]) -> Any:
    from backports import zstd

    contents = [_read(base, path) for base in bases]
    return zstd.ZstdDict(b"".join(each + channels_last(each) for each in contents), is_raw=True).as_prefix


def _read(blob: Blob, path: Callable[[Blob], Path]) -> bytes:
    content = path(blob).read_bytes()
    if digest.of_bytes(content) != blob.digest:
        what = f"object {blob.digest} is damaged: its content has another digest"
        raise StoreError(what, "run `trtforge verify --repair`, then the build again")
    return content


def _bytes(*blobs: Blob) -> int:
    return sum(blob.bytes for blob in blobs)


def _content(path: Path) -> tuple[Delta, bytes]:
    with path.open("rb") as file:
        known = _parsed(file.readline(_LINE_BYTES), path)
        frame = file.read()
    if digest.of_bytes(frame) != known.frame:
        raise _damaged(path, "its frame has another digest")
    return known, frame


def _parsed(line: bytes, path: Path) -> Delta:
    try:
        body = json.loads(line)
        seal = body.pop("seal")
        if seal != digest.of_json(body):
            raise _damaged(path, "its seal does not match its line")
        if body["format"] > FORMAT:
            raise NewerFormatError(f"{path} was written by a newer trtforge", "upgrade trtforge")
        return Delta(body["bytes"], tuple(Blob(**base) for base in body["bases"]), body["frame"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, repr(error)) from error


def _damaged(path: Path, why: str) -> StoreError:
    what = f"object {path.parent.name}{path.name} is damaged: its delta: {why}"
    return StoreError(what, "run `trtforge verify --repair`, then the build again")
