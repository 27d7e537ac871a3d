import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import plan
from stages.plan import PlanHeader, Section
from stages.stage import StageError

RTX = PlanHeader("tensorrt_rtx", "1.7.1.116", ("8.9",), 10, 0)


def rtx_plan(mask: int = 8, body: bytes = b"engine" + b"weights") -> bytes:
    """A plan of two sections, as TensorRT-RTX 1.7.1.116 lays it out."""
    table_end = 64 + 2 * 24
    sections = struct.pack("<8sQQ", b"NGNE", table_end, 6) + struct.pack("<8sQQ", b"THGW", table_end + 6, 7)
    head = bytearray(64)
    head[0:4] = head[28:32] = b"vtrt"
    struct.pack_into("<QQ", head, 8, 2, table_end + len(body))
    head[24:28] = bytes((1, 7, 1, 116))
    struct.pack_into("<I", head, 32, mask)
    struct.pack_into("<Q", head, 56, 7)
    return bytes(head) + sections + body


def tensorrt_plan() -> bytes:
    head = bytearray(200)
    head[0:4] = b"ftrt"
    head[24:28] = bytes((10, 13, 3, 9))
    return bytes(head)


def test_an_rtx_header_gives_version_capability_and_sizes() -> None:
    content = rtx_plan()
    sections = (Section("NGNE", 112, 6), Section("THGW", 118, 7))
    header = PlanHeader("tensorrt_rtx", "1.7.1.116", ("8.9",), len(content), 7, sections)
    assert plan.parse(content, len(content)) == header


def test_a_plan_for_several_capabilities_lists_them_all() -> None:
    assert plan.parse(rtx_plan(0x3F), len(rtx_plan())).compute_capabilities == (
        "7.5",
        "8.0",
        "8.6",
        "8.9",
        "12.0",
        "12.1",
    )


def test_a_tensorrt_header_gives_the_version_and_no_capability() -> None:
    content = tensorrt_plan()
    assert plan.parse(content, len(content)) == PlanHeader("tensorrt", "10.13.3.9", (), len(content), None)


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(rtx_plan())
    header = plan.read(tmp_path / "object")
    assert header.version == "1.7.1.116"
    assert [plan.content(tmp_path / "object", section) for section in header.sections] == [b"engine", b"weights"]


def test_of_a_release_whose_layout_is_not_known_only_the_version_is_read() -> None:
    content = rtx_plan()[:24] + bytes((1, 8, 0, 3)) + b"else" + bytes(100)
    header = plan.parse(content, len(content))
    assert header.unknown == "the layout of TensorRT-RTX 1.8.0.3's plans is not known, only that of 1.7"
    assert header == PlanHeader("tensorrt_rtx", "1.8.0.3", (), len(content), None, unknown=header.unknown)
    plan.check(header, "tensorrt_rtx", "1.8.0.3", "8.9")
    with pytest.raises(StageError, match=r"built by tensorrt_rtx 1\.8\.0\.3"):
        plan.check(header, "tensorrt_rtx", "1.7.1.116", "8.9")


@pytest.mark.parametrize("content", [b"", b"\x08\x0a", b"PK\x03\x04 a zip", b"vtr"])
def test_what_is_no_plan_is_shown_by_its_first_bytes(content: bytes) -> None:
    with pytest.raises(StageError, match="not a plan") as caught:
        plan.parse(content, len(content))
    assert repr(content[:4]) in caught.value.what


@pytest.mark.parametrize("length", [4, 63, 64, 111, 112, len(rtx_plan()) - 1])
def test_a_truncated_plan_is_refused(length: int) -> None:
    with pytest.raises(StageError, match=r"truncated|the plan has"):
        plan.parse(rtx_plan()[:length], length)


def test_a_longer_plan_than_its_header_says_is_refused_with_both_sizes() -> None:
    with pytest.raises(StageError, match=r"offset 16 says 125 bytes, the plan has 126"):
        plan.parse(rtx_plan() + b"x", len(rtx_plan()) + 1)


def test_an_unknown_capability_bit_is_refused() -> None:
    with pytest.raises(StageError, match="offset 32 are 0x80"):
        plan.parse(rtx_plan(0x80), len(rtx_plan()))


def test_an_unknown_serialization_version_of_tensorrt_is_refused() -> None:
    content = b"ftrt\x01" + tensorrt_plan()[5:]
    with pytest.raises(StageError, match="serialization version 1"):
        plan.parse(content, len(content))


@given(st.binary(max_size=300))
def test_junk_raises_nothing_but_stage_error(content: bytes) -> None:
    with pytest.raises(StageError):
        plan.parse(content, len(content))


@given(st.integers(0, 8 * 112 - 1), st.sampled_from([rtx_plan(), tensorrt_plan()]))
def test_a_flipped_bit_is_refused_or_seen_in_a_field_and_never_crashes(bit: int, content: bytes) -> None:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        header = plan.parse(bytes(flipped), len(flipped))
    except StageError:
        return
    assert header.bytes == len(flipped)


@given(st.integers(0, len(rtx_plan())), st.binary(max_size=64))
def test_an_overwritten_stretch_never_crashes(at: int, junk: bytes) -> None:
    content = (rtx_plan()[:at] + junk + rtx_plan()[at + len(junk) :])[: len(rtx_plan())]
    try:
        plan.parse(content, len(content))
    except StageError as error:
        assert error.next_step


def test_a_plan_agrees_with_its_own_target() -> None:
    plan.check(RTX, "tensorrt_rtx", "1.7.1.116", "8.9")


@pytest.mark.parametrize(
    ("backend", "version", "capability", "words"),
    [
        ("tensorrt_rtx", "1.7.1.116", "8.6", "plan was built for sm_89, the target is sm_86"),
        ("tensorrt_rtx", "1.7.2.3", "8.9", "built by tensorrt_rtx 1.7.1.116, the target takes 1.7.2.3"),
        ("tensorrt", "10.13.3.9", "8.9", "built by tensorrt_rtx 1.7.1.116, the target takes tensorrt 10.13.3.9"),
    ],
)
def test_a_plan_for_another_target_is_refused_by_name(backend: str, version: str, capability: str, words: str) -> None:
    with pytest.raises(StageError) as caught:
        plan.check(RTX, backend, version, capability)
    assert words in caught.value.what


@given(st.sets(st.sampled_from(["7.5", "8.0", "8.6", "8.9", "12.0"]), min_size=1), st.integers(1, 31))
def test_a_plan_fits_a_target_of_several_capabilities_exactly_when_it_was_built_for_each(
    target: set[str], mask: int
) -> None:
    header = plan.parse(rtx_plan(mask), len(rtx_plan()))
    if target <= set(header.compute_capabilities):
        plan.check(header, "tensorrt_rtx", "1.7.1.116", ",".join(target))
    else:
        with pytest.raises(StageError, match=r"plan was built for sm_.*, the target is sm_"):
            plan.check(header, "tensorrt_rtx", "1.7.1.116", ",".join(target))
