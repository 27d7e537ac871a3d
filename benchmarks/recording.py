"""What Prefect costs a build from an empty store, with a lasting and a temporary server: `make bench-recording`.

    python -m benchmarks.recording --work DIR

The digits model is built for four targets with `runner=local`, with a server on loopback, and with none, in turns, in
fp32 (14 steps), in int8 (17) and in int8 with the weights apart (22, of ten kinds); the medians of the rounds'
differences to `runner=local` are printed. Exits with 1 where a server costs more than a second.
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
BUILD = ("build", "-q", "targets=[a10,l4,rtx5090,a100]")
FLOWS = ("flow=fp32", "flow=int8", "flow=int8 refit=true")


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


def seconds(flow: str, home: Path, store: Path, **environment: str) -> float:
    """What a build with an empty store takes; `runner` among the variables is the runner."""
    runner = environment.pop("runner", "prefect")
    # The benchmark's environment may forbid bytecode; where trtforge is installed it is there.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "pipelines", *BUILD, *flow.split(), f"store.root={store}", f"runner={runner}"]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=variables | {"PREFECT_HOME": str(home)} | environment, check=True)
    return time.perf_counter() - started


def main() -> int:
    """Measures, prints; 1 where it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory for stores and databases")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    home = asked.work.resolve() / "home"
    server, api = start_server(asked.work.resolve() / "server")
    try:
        rounds: dict[str, list[tuple[float, float, float]]] = {flow: [] for flow in FLOWS}
        for number in range(-1, asked.rounds):  # the first one writes bytecode and makes databases
            for flow in FLOWS:
                store = asked.work.resolve() / f"store{os.getpid()}-{FLOWS.index(flow)}-{number}"
                found = (
                    seconds(flow, home, store / "a", runner="local"),
                    seconds(flow, home, store / "b", PREFECT_API_URL=api),
                    seconds(flow, home, store / "c"),
                )
                print(flow, " ".join(f"{each:.1f}" for each in found), flush=True)
                if number >= 0:
                    rounds[flow].append(found)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    print(f"load {os.getloadavg()[0]:.1f}")
    return 1 if max(told(flow, rounds[flow]) for flow in FLOWS) > LIMIT_SECONDS else 0


def told(flow: str, rounds: list[tuple[float, float, float]]) -> float:
    """Prints the medians of the rounds, and gives what a lasting server costs."""
    local = statistics.median(each[0] for each in rounds)
    lasting, temporary = (statistics.median(each[i] - each[0] for each in rounds) for i in (1, 2))
    print(f"{flow}: runner=local {local:.1f} s, a lasting server {lasting:+.2f} s, a temporary one {temporary:+.2f} s")
    return lasting


if __name__ == "__main__":
    sys.exit(main())
