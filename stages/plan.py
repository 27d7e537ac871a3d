"""Reads the header of a plan, without a GPU and without TensorRT.

TensorRT (as `trtexec --getPlanVersionOnly` reads it, which knows serialization version 0 alone):

====== ===== =========================================
offset bytes field
====== ===== =========================================
0      4     `ftrt`
4      4     serialization version
24     4     TensorRT's version, one byte a number
====== ===== =========================================

TensorRT-RTX (undocumented; read off the plans of 1.7.1.116 for every capability, with no exception):

====== ===== =========================================
offset bytes field
====== ===== =========================================
0      4     `vtrt`
8      8     number of sections
16     8     size of the whole plan
24     4     TensorRT-RTX's version, one byte a number
28     4     `vtrt`
32     4     the capabilities, one bit each
56     8     bytes of weights
64     24    for each section: tag, offset, size
====== ===== =========================================

Integers are little-endian. Of a TensorRT-RTX whose layout nobody has read off yet, only tag and version are read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages import backends
from stages.gpus import capabilities
from stages.stage import StageError

HEADER_BYTES = 64
"""What RTX's `Runtime.engine_header_size` says; TensorRT needs the first 28 of them."""

CAPABILITY_BITS: Mapping[int, str] = {
    0x01: "7.5",
    0x02: "8.0",
    0x04: "8.6",
    0x08: "8.9",
    0x10: "12.0",
    0x20: "12.1",
    # Set, with 8.0 and later, where nobody told the builder its target; what it stands for is not known.
    0x40: "other",
}

LAYOUT_KNOWN = "1.7"
"""The TensorRT-RTX whose plans lie as the table says; others may lie otherwise."""

_SECTION = struct.Struct("<8sQQ")
_MOST_SECTIONS = 64
"""Two have been seen; a header that claims more than this is damaged."""


@dataclass(frozen=True)
class Section:
    """A part of a plan of TensorRT-RTX.

    Attributes:
        tag: `NGNE`, the operations and kernels, or `THGW`, the weights.
        offset: Where it begins, in bytes.
        bytes: How long it is.
    """

    tag: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself.

    Attributes:
        backend: `tensorrt_rtx` or `tensorrt`.
        version: The backend's full version, such as `1.7.1.116`.
        compute_capabilities: Those it was built for; empty where the header does not say (TensorRT).
        bytes: The size of the plan.
        weight_bytes: The weights' share of it; None where the header does not say (TensorRT).
        sections: Its parts; none where the header does not say (TensorRT).
        unknown: What of the header was not read, and why; None where all of it was.
    """

    backend: str
    version: str
    compute_capabilities: tuple[str, ...]
    bytes: int
    weight_bytes: int | None
    sections: tuple[Section, ...] = ()
    unknown: str | None = None


def read(path: Path) -> PlanHeader:
    """Reads the header of the plan at `path`.

    Raises:
        StageError: The file is missing, no plan, truncated, or its header contradicts itself.
    """
    if not path.is_file():
        raise StageError(f"{path}: no such plan", "build it: trtforge build")
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES + _MOST_SECTIONS * _SECTION.size)
    return parse(head, path.stat().st_size, str(path))


def content(path: Path, section: Section) -> bytes:
    """The bytes of one section of the plan at `path`."""
    with path.open("rb") as file:
        file.seek(section.offset)
        return file.read(section.bytes)


def parse(head: bytes, size: int, where: str = "plan") -> PlanHeader:
    """Reads a header out of the first bytes of a plan of `size` bytes.

    Raises:
        StageError: As `read` does.
    """
    tag = head[:4]
    if tag not in (b"vtrt", b"ftrt"):
        raise _damaged(where, f"bytes 0 to 3 are {tag!r}, and a plan begins with b'vtrt' or b'ftrt' ({size} bytes)")
    if len(head) < HEADER_BYTES:
        raise _damaged(where, f"truncated: {size} bytes, and the header alone has {HEADER_BYTES}")
    return _rtx(head, size, where) if tag == b"vtrt" else _tensorrt(head, size, where)


def check(header: PlanHeader, backend: str, version: str, compute_capability: str) -> None:
    """Holds a plan against the target it is meant for.

    Raises:
        StageError: It was built by another backend or version, or not for every capability of the target.
    """
    built_by = f"plan was built by {header.backend} {header.version}"
    again = "build it again for this target: trtforge build"
    if header.backend != backend:
        raise StageError(f"{built_by}, the target takes {backend} {version}", again)
    if not backends.same_version(header.version, version):
        raise StageError(f"{built_by}, the target takes {version}: plans do not cross versions", again)
    wanted = capabilities(compute_capability)
    if header.compute_capabilities and not set(wanted) <= set(header.compute_capabilities):
        built_for, target = (", ".join(map(_sm, each)) for each in (header.compute_capabilities, wanted))
        raise StageError(f"plan was built for {built_for}, the target is {target}", again)


def _rtx(head: bytes, size: int, where: str) -> PlanHeader:
    version = _version(head, where)
    if not version.startswith(f"{LAYOUT_KNOWN}."):
        unknown = f"the layout of TensorRT-RTX {version}'s plans is not known, only that of {LAYOUT_KNOWN}"
        return PlanHeader("tensorrt_rtx", version, (), size, None, unknown=unknown)
    count, claimed = struct.unpack_from("<QQ", head, 8)
    (mask,) = struct.unpack_from("<I", head, 32)
    (weight_bytes,) = struct.unpack_from("<Q", head, 56)
    if head[28:32] != b"vtrt":
        raise _damaged(where, f"bytes 28 to 31 are {head[28:32]!r}, and should be b'vtrt'")
    if claimed != size:
        raise _damaged(where, f"the header at offset 16 says {claimed} bytes, the plan has {size}")
    if weight_bytes > size:
        raise _damaged(where, f"the header at offset 56 says {weight_bytes} bytes of weights, the plan has {size}")
    sections = _sections(head, count, size, where)
    return PlanHeader("tensorrt_rtx", version, _capabilities(mask, where), size, weight_bytes, sections)


def _tensorrt(head: bytes, size: int, where: str) -> PlanHeader:
    (serialization,) = struct.unpack_from("<I", head, 4)
    if serialization != 0:
        raise _damaged(where, f"the header at offset 4 says serialization version {serialization}, only 0 is known")
    return PlanHeader("tensorrt", _version(head, where), (), size, None)


def _version(head: bytes, where: str) -> str:
    if head[24] == 0:
        raise _damaged(where, f"the version at offset 24 is {head[24:28].hex(' ')}, and no version begins with 0")
    return ".".join(str(number) for number in head[24:28])


def _capabilities(mask: int, where: str) -> tuple[str, ...]:
    unknown = mask & ~sum(CAPABILITY_BITS)
    if mask == 0 or unknown:
        known = f"{sum(CAPABILITY_BITS):#x}"
        raise _damaged(where, f"the capabilities at offset 32 are {mask:#x}, and the known bits are {known}")
    return tuple(name for bit, name in CAPABILITY_BITS.items() if mask & bit)


def _sections(head: bytes, count: int, size: int, where: str) -> tuple[Section, ...]:
    if not 1 <= count <= _MOST_SECTIONS:
        raise _damaged(where, f"the header at offset 8 says {count} sections")
    end = HEADER_BYTES + count * _SECTION.size
    if len(head) < end:
        raise _damaged(where, f"truncated: the table of {count} sections ends at {end}, the plan at {size}")
    found = []
    for at in range(HEADER_BYTES, end, _SECTION.size):
        tag, offset, length = _SECTION.unpack_from(head, at)
        name = tag.rstrip(b"\0")
        if offset < end or offset + length > size:
            raise _damaged(where, f"section {name!r} at {at} claims bytes {offset} to {offset + length} of {size}")
        found.append(Section(name.decode(errors="replace"), offset, length))
    return tuple(found)


def _damaged(where: str, what: str) -> StageError:
    return StageError(f"{where}: not a plan, or a damaged one: {what}", "build it again, or fetch it again")


def _sm(compute_capability: str) -> str:
    return "sm_" + compute_capability.replace(".", "")
