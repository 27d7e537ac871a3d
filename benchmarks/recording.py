"""What Prefect costs a build from an empty store, with a lasting and a temporary server: `make bench-recording`.

    python -m benchmarks.recording --work DIR

The digits model is built for four targets with `runner=local`, with a server on loopback, and with none, in turns; the
medians of the rounds' differences to `runner=local` are printed. Exits with 1 where a server costs more than a second.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 1.0
BUILD = ("build", "-q", "flow=fp32", "targets=[a10,l4,rtx5090,a100]")


def start_server(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server with a database of its own, and the address of its API, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("prefect"), "server", "start", "--port", str(port), "--no-ui"]
    quiet = {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    process = subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    api = f"http://127.0.0.1:{port}/api"
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{api}/health", timeout=1)  # noqa: S310 - loopback
            return process, api
        except OSError:
            time.sleep(0.2)
    sys.exit("error: the server does not start")


def seconds(home: Path, store: Path, **environment: str) -> float:
    """What a build with an empty store takes; `runner` among the variables is the runner."""
    runner = environment.pop("runner", "prefect")
    # The benchmark's environment may forbid bytecode; where trtforge is installed it is there.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "pipelines", *BUILD, f"store.root={store}", f"runner={runner}"]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=variables | {"PREFECT_HOME": str(home)} | environment, check=True)
    return time.perf_counter() - started


def main() -> int:
    """Measures, prints; 1 where it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory for stores and databases")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    home = asked.work.resolve() / "home"
    server, api = start_server(asked.work.resolve() / "server")
    try:
        rounds = []
        for number in range(-1, asked.rounds):  # the first one writes bytecode and makes databases
            store = asked.work.resolve() / f"store{os.getpid()}-{number}"
            rounds.append((
                seconds(home, store / "a", runner="local"),
                seconds(home, store / "b", PREFECT_API_URL=api),
                seconds(home, store / "c"),
            ))  # fmt: skip
            print(" ".join(f"{each:.1f}" for each in rounds[-1]), flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    local = statistics.median(each[0] for each in rounds[1:])
    with_server = statistics.median(each[1] - each[0] for each in rounds[1:])
    temporary = statistics.median(each[2] - each[0] for each in rounds[1:])
    print(f"load {os.getloadavg()[0]:.1f}, runner=local {local:.1f} s")
    print(f"a lasting server {with_server:+.2f} s, a temporary one {temporary:+.2f} s")
    return 1 if with_server > LIMIT_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
