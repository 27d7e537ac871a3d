"""A process that has the same things at the same addresses whenever it is started.

TensorRT-RTX orders some of what it writes into a plan by address, which shows in the names of temporaries and in the
order of shape arithmetic: an OCR detector, an OCR recognizer and a YOLOv8n with dynamic shapes never gave the same
bytes twice without this. What it takes, each measured by leaving it out:

- no address-space randomization;
- a thread of its own for the work, whose heap holds nothing yet: the main thread's depends on the lengths of paths and
  of the environment;
- memory that a thread frees stays with it (`tcache`), and there are no BLAS threads: else it is a matter of timing what
  the builder's thread gets next, since workers of TensorRT's compiler free what it has allocated.

Which of two threads drops the last reference to something remains a matter of timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

# ADDR_NO_RANDOMIZE is inherited over exec and must be set before. Docker's default seccomp profile forbids it.
_LAUNCHER = """\
import ctypes, os, sys
personality = ctypes.CDLL(None, use_errno=True).personality
now = personality(0xFFFFFFFF)
if now == -1 or personality(now | 0x0040000) == -1:
    why = os.strerror(ctypes.get_errno())
    print(f"[WARNING] address-space randomization stays on ({why}): plans may differ in some bytes", file=sys.stderr)
os.execv(sys.argv[1], sys.argv[1:])
"""

_TUNABLE = "glibc.malloc.tcache_count=65535"
_STACK_BYTES = 64 * 2**20
"""More than the main thread's usual 8 MiB, whatever `ulimit -s` says; what is not touched costs nothing."""


def command(program: Sequence[str]) -> list[str]:
    """What to start instead of the Python program `program`, whose first word is the interpreter: it becomes it."""
    return [program[0], "-I", "-S", "-c", _LAUNCHER, *program]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """`given` with what such a process needs."""
    tunables = [*filter(None, [given.get("GLIBC_TUNABLES")]), _TUNABLE]
    return {
        **given,
        "GLIBC_TUNABLES": ":".join(tunables),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",  # the order of a set decides what is allocated first
    }


def in_own_thread(work: Callable[[], Result]) -> Result:
    """What `work` returns, called in a new thread; what it raises is raised here."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # `exit()` too
            done.set_exception(error)

    # Not an executor: whether its thread has to wait for work, and so allocates a lock, is a matter of timing.
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return done.result()
