"""Every file of a store is flipped, truncated and removed: `verify` names it, and no wrong byte is handed out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.store import Hit, Store
from artifacts.verify import repair, verify
from tests.faults.small_build import PLACE, build, forked
from tests.faults.sweep import EXPECTED


def flip_first(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 0x41
    rewrite(path, bytes(content))


def flip_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(path, bytes(content))


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    rewrite(path, bytes(content))


def truncate(path: Path) -> None:
    rewrite(path, path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    rewrite(path, b"")


def lengthen(path: Path) -> None:
    rewrite(path, path.read_bytes() + b"\0")


def rewrite(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = (flip_first, flip_middle, flip_last, truncate, empty, lengthen, remove)
NOT_LOOKED_AT = ("index.sqlite", "records.sqlite", "locks/", "claims/", "tmp/")
"""What may hold anything: it is remembered digests, found again by hashing, or of no meaning at all."""


@pytest.fixture
def whole(quick_path: Path) -> Path:
    """A store after a build."""
    root = quick_path / "whole"
    assert forked(lambda: int(build(root).exit)) == 0
    assert not verify(Store(root)).findings
    return root


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def hands_out_only_the_right_bytes(root: Path) -> bool:
    """Whether each plan of a build's answer, and the published one, has the bytes that it should have."""
    found = build(root)
    record = found.outcomes["second"].record
    assert record
    assert isinstance(found.store.lookup(record.key), Hit)
    plan = found.store.path(record.outputs["file"]).read_bytes()
    return found.exit == 0 and plan == (root / "published" / PLACE / "model.plan").read_bytes() == EXPECTED


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_repaired(damage: Callable[[Path], None], whole: Path) -> None:
    names = [name for name in files(whole) if (whole / name).stat().st_size or damage in (remove, lengthen)]
    assert len(names) > 12
    for name in names:
        root = whole.with_name("damaged")
        shutil.copytree(whole, root, symlinks=True)
        damage(root / name)
        check_named(root, name, damage)
        repaired = root.with_name("repaired")
        shutil.copytree(root, repaired, symlinks=True)
        assert forked(lambda root=root: 0 if hands_out_only_the_right_bytes(root) else 1) == 0, name
        repair(Store(repaired), verify(Store(repaired)).findings)
        assert not verify(Store(repaired)).findings, name
        assert forked(lambda root=repaired: 0 if hands_out_only_the_right_bytes(root) else 1) == 0, name
        assert not verify(Store(repaired)).findings, name
        shutil.rmtree(root)
        shutil.rmtree(repaired)


def check_named(root: Path, name: str, damage: Callable[[Path], None]) -> None:
    found = [finding.path.as_posix() for finding in verify(Store(root)).findings]
    if name.startswith(NOT_LOOKED_AT) or (name.startswith(("records/", "refs/", "publications/")) and damage is remove):
        # A record that is gone is a question that was never asked; where a ref means it, the ref is named.
        return
    assert any(name == path or name.startswith(f"{path}/") for path in found), (name, found)
