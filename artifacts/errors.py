"""What can go wrong in a store."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what it was asked.

    Args:
        what: One line: what, where, what it got and what is allowed.
        next_step: One line: what the user can do about it.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return self.what


class NewerFormatError(StoreError):
    """Written by a newer trtforge: not damage, and not to be touched."""


class RemoteError(StoreError):
    """The remote cannot be used: unreachable, too slow, or it says no."""


class ReadOnlyRemoteError(RemoteError):
    """The remote may be read, and not written."""


class LostLeaseError(RemoteError):
    """Somebody else has taken over, since this process was not heard of for too long."""


class DamagedRemoteError(RemoteError):
    """The remote answers with other bytes than it promises."""
