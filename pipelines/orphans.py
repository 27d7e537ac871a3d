"""What becomes of a process whose parent dies, however that comes about: the kernel sees to it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with(parent: int, number: signal.Signals) -> None:
    """Has the kernel send this process `number` when `parent` dies; where it has died already, it ends here.

    The kernel watches the thread that started this process: for who starts it from a thread that ends, that is death.

    Args:
        parent: The process that started this one.
        number: SIGKILL ends it at once, SIGTERM lets it say so.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
