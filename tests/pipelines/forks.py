"""Runs of the command line, each in a process that is forked from one that has imported it.

To start the interpreter and to import what composes a config takes 0.3 s of processor time, more than most commands
take themselves, and the tests run hundreds. What runs is the real `main`, with arguments, an environment, a directory,
streams and an exit code of its own; what it is forked from has composed one config and has one thread, so that a fork
is as good as a start. Tests of starting itself, and those that send signals, start the command: `Forge.start`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

COMMAND = Path(sys.executable).with_name("trtforge")
_MESSAGE_BYTES = 1 << 17


def run(
    arguments: Sequence[str], home: Path, environment: Mapping[str, str], limit_s: float = 240
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in `home`; the code is negative for the signal that ended it.

    What takes longer than `limit_s` is ended by SIGALRM.
    """
    words = [str(COMMAND), *arguments]
    asked = {"words": words, "home": str(home), "environment": dict(environment), "limit_s": limit_s}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        socket.send_fds(_server(), [json.dumps(asked).encode()], [out.fileno(), err.fileno()])
        code = int(_server().recv(_MESSAGE_BYTES))
        return code, _text(out), _text(err)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@cache
def _server() -> socket.socket:
    """The way to the process that is forked. It ends when this one does, and with it its end of the way."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return ours


def _serve(connection: socket.socket) -> None:
    sys.path[0] = str(COMMAND.parent)  # as where the command is started
    import pipelines.document
    import pipelines.schedule
    import pipelines.session  # noqa: F401 - what most commands import
    from conf.compose import compose
    from pipelines.__main__ import main

    compose()  # the first time, Hydra looks for its plugins; a sweep is where there is a second time
    while True:
        text, streams, *_ = socket.recv_fds(connection, _MESSAGE_BYTES, 2)
        if not text:
            return
        child = os.fork()
        if child == 0:
            connection.close()
            _become(streams, **json.loads(text))
            main()
        for stream in streams:
            os.close(stream)
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _become(
    streams: Sequence[int], words: list[str], home: str, environment: Mapping[str, str], limit_s: float
) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.setsid()
    os.chdir(home)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = words
    signal.setitimer(signal.ITIMER_REAL, limit_s)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
