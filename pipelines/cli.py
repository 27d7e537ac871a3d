"""The command line: `trtforge VERB [OVERRIDE …]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from pipelines.command import INTERRUPTED, end, fail, verbs
from pipelines.errors import Exit
from pipelines.verbs import building, judging, keeping, looking, serving  # noqa: F401 - they add themselves


def main() -> NoReturn:
    """Runs the command line and ends the process."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller: what is said goes nowhere
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the end
    as_json = "--json" in sys.argv
    try:
        verbs(standalone_mode=False)
        code = Exit.DONE
    except click.UsageError as error:
        usage = error.ctx.get_usage() if error.ctx else "trtforge --help"
        code = fail(Exit.WRONG_CALL, error.format_message(), usage, as_json)
    except (click.Abort, KeyboardInterrupt):
        code = fail(Exit.INTERRUPTED, *INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader of a pipe has read enough
        os._exit(Exit.DONE)
    except OSError as error:
        code = fail(Exit.WRONG_CALL, str(error), "check the paths of the call", as_json)
    end(code)
