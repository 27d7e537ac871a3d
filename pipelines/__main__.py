"""Starts the command line.

Ctrl-C is answered from the first moment on: the imports behind `pipelines.cli` take a tenth of a second.
"""

from __future__ import annotations

import os
import signal

signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from pipelines.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
