"""`python -m benchmarks.scale`: measures, prints, and exits with 1 where a promise is not kept."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.scale import catalog, claims
from benchmarks.scale.catalog import FLOW, QUEUES, name_of
from benchmarks.scale.chaos import Chaos, Workers, sweep
from benchmarks.scale.claims import FINAL, Claim
from benchmarks.scale.services import DATABASES, Machine, Server
from benchmarks.scale.usage import Usage
from benchmarks.scale.witness import Witness

CRASHED_AFTER_SECONDS = 70
"""Of the automation that ends runs without heartbeats, which come every 30 s."""

STUCK_SECONDS = 95
"""A run that is pending for longer has lost the worker that was about to start it; `resume` takes it from 90 s on."""

SETTLED_SECONDS = 5
"""Two tell the server of a crash, the second up to 2 s later; a run that is back on its queue would crash again."""

_LOOK_SECONDS = 2.0
_IDLE_SECONDS = 40.0
_PREFECT_YAML = """name: trtforge
pull:
- prefect.deployments.steps.set_working_directory: {{directory: .}}
definitions:
  trtforge:
    work_pool: {{name: trtforge, type: process}}
    work_queues: {{{queues}}}
    crashed_after_seconds: {crashed_after}
deployments:
"""
_DEPLOYMENT = """- name: {queue}
  entrypoint: pipelines.flows.rebuild
  tags: [trtforge]
  parameters: {{overrides: [flow={flow}, "targets=[{target}]"], config_dirs: ["{directory}"]}}
  work_pool:
    name: trtforge
    work_queue_name: {queue}
    job_variables: {{working_dir: ".", env: {{PREFECT_FLOWS_HEARTBEAT_FREQUENCY: "30"}}}}
"""

Run = Mapping[str, Any]


@dataclass
class Measurement:
    """One catalog through one server.

    Attributes:
        asked: What was asked for.
        home: Its directory.
        machines: The two machines, and a third that builds without Prefect.
    """

    asked: argparse.Namespace
    home: Path
    server: Server
    machines: Sequence[Machine]
    usage: Usage
    directory: Path

    @cached_property
    def deployments(self) -> dict[str, str]:
        """Queue -> id of its deployment."""
        return {queue: self.api.get(f"deployments/name/trtforge-rebuild/{queue}")["id"] for queue in QUEUES}

    @property
    def api(self) -> Any:
        """The server's."""
        return self.server.api

    @property
    def builders(self) -> Sequence[Machine]:
        """The machines with workers."""
        return self.machines[:2]

    @property
    def plans(self) -> int:
        """How many there will be."""
        return len(QUEUES) * int(self.asked.models)

    def of_queue(self, queue: str) -> Machine:
        """The machine that serves a queue: two queues each."""
        return self.builders[list(QUEUES).index(queue) // 2]

    def deploy(self) -> None:
        """Tells the server of the queues and a deployment for each, as a user does."""
        text = _PREFECT_YAML.format(
            queues=", ".join(f"{name}: {{}}" for name in QUEUES), crashed_after=CRASHED_AFTER_SECONDS
        )
        text += "".join(
            _DEPLOYMENT.format(queue=queue, flow=FLOW, target=target, directory=self.directory)
            for queue, target in QUEUES.items()
        )
        file = self.home / "prefect.yaml"
        file.write_text(text)
        _require(self.builders[0].trtforge("deploy", "--file", str(file)))

    def submit(self) -> None:
        """Asks for all models on each queue, some of them a run, in the same order everywhere, as a schedule would."""
        for start in range(0, self.asked.models, self.asked.models_a_run):
            names = [name_of(n) for n in range(start, min(start + self.asked.models_a_run, self.asked.models))]
            for queue, target in QUEUES.items():
                self.api.post(
                    f"deployments/{self.deployments[queue]}/create_flow_run",
                    name=f"{queue} {names[0]}",
                    idempotency_key=f"{queue} {names[0]}",
                    state={"type": "SCHEDULED"},
                    parameters={
                        "overrides": [f"flow={FLOW}", f"targets=[{target}]"],
                        "models": names,
                        "config_dirs": [str(self.directory)],
                    },
                )

    def asked_for(self) -> list[Run]:
        """The runs that were asked for, as they stand; those that they started themselves are not among them."""
        found: list[Run] = self.api.all("flow_runs", deployments={"id": {"any_": list(self.deployments.values())}})
        return found

    def put_back(self, run: Run) -> bool:
        """Puts a run on its queue again: `trtforge resume`, without 2 s of imports beside what is measured."""
        from conf.errors import ConfigError
        from pipelines.resuming import resume

        try:
            return resume(run["id"]).next == "queued"
        except ConfigError:  # it gave a sign of life
            return False


def main() -> int:
    """Measures what is asked for."""
    asked = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: asked to end"))  # and what was started ends with it
    name = f"{asked.database}-{os.getpid()}"
    home = (asked.work / name).resolve()
    home.mkdir(parents=True)
    directory = catalog.write(home, asked.models)
    server = Server(name, home / "server", asked.database)
    os.environ["PREFECT_API_URL"] = server.api.url  # for `resume`
    try:
        machines = []
        for machine in ("a", "b", "alone"):
            remote = home / ("remote" if machine != "alone" else "remote-alone")
            machines.append(Machine(name, home / machine, server.api.url, remote.as_uri()))
            (machines[-1].store / "records").mkdir(parents=True)
        database = server.database.process
        with Usage(name, database.pid if database else None) as usage:
            found, figures = _measure(Measurement(asked, home, server, machines, usage, directory))
    finally:
        server.end()
    (home / "results.json").write_text(json.dumps(figures | {"claims": [vars(claim) for claim in found]}, indent=1))
    for what, figure in figures.items():
        print(f"{what}: {figure}")
    for claim in found:
        print(f"{'holds' if claim.holds else 'FAILS'}  {claim.what}: {claim.figure}")
    return 0 if all(claim.holds for claim in found) else 1


def _asked() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, required=True, help="a directory for stores, databases and logs")
    arguments.add_argument("--models", type=int, default=200)
    arguments.add_argument("--models-a-run", type=int, default=10, help="of a flow run")
    arguments.add_argument("--chaos", type=float, default=20.0, help="mean seconds between kills; 0 kills nothing")
    arguments.add_argument("--seed", type=int, default=9)
    arguments.add_argument("--database", choices=sorted(DATABASES), default="sqlite")
    arguments.add_argument("--idle", type=int, default=8, help="workers that wait for work afterwards, to be measured")
    arguments.add_argument("--limit", type=float, default=3600.0, help="seconds after which it is given up")
    asked = arguments.parse_args()
    if asked.database == "postgresql" and not all(map(shutil.which, ("initdb", "postgres", "psql"))):
        arguments.error(
            "initdb, postgres and psql are not all on the PATH: apt-get install postgresql, and add its bin"
        )
    return asked


def _measure(of: Measurement) -> tuple[list[Claim], dict[str, Any]]:
    of.deploy()
    alone = _alone(of)
    of.submit()
    witness = Witness([machine.store / "records" for machine in of.builders])
    workers = Workers(lambda queue: of.of_queue(queue).worker(queue), tuple(QUEUES))
    chaos = Chaos(of.asked.seed, of.asked.chaos, workers, of.usage)
    before, started = of.usage.seconds(), time.monotonic()
    if of.asked.chaos:
        chaos.begin()
    try:
        put_back = _supervise(of, workers, started + of.asked.limit)
        seconds, took = time.monotonic() - started, _less(of.usage.seconds(), before)
        if of.asked.chaos:
            chaos.end()
        hanging = _wait_for_all(of)
    finally:
        workers.end()
        left = sweep(of.usage, QUEUES)
    witness.end()
    print(f"all runs have ended after {seconds:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    figures = {
        "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load": [round(each, 1) for each in os.getloadavg()],
        "models": of.asked.models,
        "database": of.asked.database,
        "seconds": round(seconds),
        "plans_a_minute": round(60 * of.plans / seconds, 1),
        "killed": dict(chaos.killed),
        "put_back": dict(put_back),
        "worker_starts": workers.starts,
        "processes_left_at_the_end": left,
        "export_keys_and_built_by_both": claims.shared_again(witness.seen, "export"),
        "waited_for_zombies_s": hanging,
        "cpu_s": {kind: round(value, 1) for kind, value in took.items()},
        **_shares(of, took, alone),
        "peak_MB": {kind: round(value / 1e6) for kind, value in of.usage.peak_bytes.items()},
        **_waits(of),
        "database_MB": round(of.server.database.size_bytes() / 1e6, 1),
        "rows": of.server.database.rows(),
        "server_log": of.server.complaints(),
        "answers_503": of.api.busy,
    }
    found = [*_claims(of, witness), *_looked_at_afterwards(of, figures)]
    if of.asked.idle:
        figures["idle"] = _idle(of)
    return found, figures


def _alone(of: Measurement) -> dict[str, float]:
    """What one run's models take without Prefect: processor seconds of trtforge itself, and of its children."""
    machine = of.machines[2]
    count = min(of.asked.models, of.asked.models_a_run)
    names = ",".join(name_of(number) for number in range(count))
    arguments = ["rebuild", "-q", "--config-dir", str(of.directory), "--models", names, f"flow={FLOW}"]
    target = f"targets=[{next(iter(QUEUES.values()))}]"
    own_s, children_s = machine.seconds_of(*arguments, target, "runner=local")
    return {"models": count, "own_s": own_s, "children_s": children_s}


def _supervise(of: Measurement, workers: Workers, until: float) -> Counter[str]:
    """Keeps the workers alive and puts back what did not complete, until everything has. Returns how often what.

    When that takes too long it is given up; the claims then say what is missing.
    """
    put_back: Counter[str] = Counter()
    while True:
        workers.tend()
        runs = of.asked_for()
        for run in runs:
            state, patience = run["state_type"], STUCK_SECONDS if run["state_type"] == "PENDING" else SETTLED_SECONDS
            if state in ("CRASHED", "FAILED", "PENDING") and _age_s(run) > patience:
                put_back[state.lower()] += of.put_back(run)
        if all(run["state_type"] == "COMPLETED" for run in runs):
            return put_back
        if time.monotonic() > until:
            print(f"given up after {of.asked.limit:g} s", flush=True)
            return put_back
        time.sleep(_LOOK_SECONDS)


def _wait_for_all(of: Measurement) -> float:
    """Waits until every flow run has ended, as long as the automation may take that ends the dead. Returns seconds."""
    started = time.monotonic()
    while time.monotonic() - started < 2 * CRASHED_AFTER_SECONDS:
        if all(run["state_type"] in FINAL for run in of.api.all("flow_runs")):
            break
        time.sleep(_LOOK_SECONDS)
    return round(time.monotonic() - started, 1)


def _age_s(run: Run) -> float:
    return (datetime.now(timezone.utc) - _time(run["state"]["timestamp"])).total_seconds()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _shares(of: Measurement, took: Mapping[str, float], alone: Mapping[str, float]) -> dict[str, Any]:
    """Whose the processor seconds were. What trtforge takes in a run is taken from a run without Prefect."""
    records = [record for machine in of.builders for record in _records(machine)]
    builder = sum(each["provenance"]["cpu_s"] for each in records if each["fields"]["stage"] == "build")
    models = Counter(each["provenance"]["model"] for each in records if each["fields"]["stage"] == "build")
    ours_in_runs = min(alone["own_s"] / alone["models"] * sum(models.values()), took["run"])
    told = {
        "builder": builder,
        "other stages": took["stage"] - builder,
        "trtforge in runs": ours_in_runs,
        "Prefect in runs": took["run"] - ours_in_runs,
        "Prefect's workers": took["worker"],
        "Prefect's server": took["server"] + took.get("database", 0.0),
    }
    total = sum(told.values())
    return {
        "alone": {name: round(value, 2) for name, value in alone.items()},
        "cpu_shares": {name: f"{value:.0f} s, {value / total:.0%}" for name, value in told.items()},
    }


def _waits(of: Measurement) -> dict[str, Any]:
    """How long runs were scheduled before they ran, and how long queues that had more to do did nothing, in seconds."""
    waited, busy = [], {deployment: [] for deployment in of.deployments.values()}
    for run in of.asked_for():
        states = sorted(of.api.get(f"flow_run_states/?flow_run_id={run['id']}"), key=lambda state: state["timestamp"])
        scheduled = running = None
        for state in states:
            at = _time(state["timestamp"])
            if state["type"] == "SCHEDULED":
                scheduled = scheduled or at
            elif state["type"] == "RUNNING":
                waited += [(at - scheduled).total_seconds()] if scheduled else []
                scheduled, running = None, at
            elif state["type"] in FINAL and running:
                busy[run["deployment_id"]].append((running, at))
                running = None
    gaps = [gap for spans in busy.values() for gap in _gaps(spans)]
    return {"queue_wait_s": _spread(waited), "between_runs_of_a_queue_s": _spread(gaps)}


def _gaps(spans: Sequence[tuple[datetime, datetime]]) -> Iterator[float]:
    ordered = sorted(spans)
    for (_, end), (begin, _) in pairwise(ordered):
        if begin > end:
            yield (begin - end).total_seconds()


def _spread(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"count": len(values)}
    cut = statistics.quantiles(values, n=20, method="inclusive")
    return {"count": len(values), "p50": round(cut[9], 1), "p95": round(cut[18], 1), "max": round(max(values), 1)}


def _claims(of: Measurement, witness: Witness) -> list[Claim]:
    stores = [machine.store for machine in of.builders]
    return [
        Claim("everything written was seen", f"{len(witness.seen)} records", not witness.lost),
        *claims.built_once(witness.seen, of.plans),
        claims.ended(of.api.all("flow_runs"), "flow run"),
        claims.ended(of.api.all("task_runs"), "task run"),
        claims.nothing_held(stores),
        claims.nobody_waits_for(of.home / "remote"),
    ]


def _looked_at_afterwards(of: Measurement, figures: dict[str, Any]) -> Iterator[Claim]:
    for machine in of.builders:
        ran = machine.trtforge("verify")
        yield Claim(f"verify of {machine.home.name}: healthy", _last(ran), ran.returncode == 0)
        sent = json.loads(_require(machine.trtforge("push", "--json")))["sent"]
        figures[f"pushed_afterwards_{machine.home.name}"] = sent
    targets = f"targets=[{','.join(QUEUES.values())}]"
    everything = ("rebuild", "--config-dir", str(of.directory), f"flow={FLOW}", "runner=local", targets)
    for what in ("fetching the other machine's half", "nothing to do"):
        started = time.monotonic()
        ran = of.builders[0].trtforge(*everything, "--json")
        seconds = time.monotonic() - started
        told = json.loads(ran.stdout)["models"]
        states = Counter(each["state"] for each in told)
        plans = sum(plan["path"] is not None for each in told for plan in each["plans"])
        figures[f"rebuild, {what}, s"] = round(seconds, 1)
        good = ran.returncode == 0 and states == {"cached": of.asked.models} and plans == of.plans
        yield Claim(
            f"a rebuild of all finds all cached ({what})", f"{dict(states)}, {plans} plans, {seconds:.1f} s", good
        )
    figures["rebuild, nothing to do, CPU s"] = round(sum(of.builders[0].seconds_of(*everything, "-q")), 2)
    published = len(list((of.builders[0].store / "published").rglob("model.plan")))
    yield Claim("all plans are published", f"{published} of {of.plans}", published == of.plans)
    left = [entry.name for machine in of.builders for entry in (machine.store / "tmp").glob("*")]
    # A builder's directory goes with the next build of its store.
    figures["scratch directories left"] = len(left)


def _idle(of: Measurement) -> dict[str, float]:
    """What workers that wait cost the server and themselves, in processor seconds a second."""
    alone = _rates(of, _IDLE_SECONDS)
    machine = of.builders[0]
    queues = random.Random(of.asked.seed).choices(list(QUEUES), k=of.asked.idle)  # noqa: S311 - no secret
    waiting = [machine.worker(queue) for queue in queues]
    try:
        time.sleep(_IDLE_SECONDS)  # they start, and say so
        busy = _rates(of, _IDLE_SECONDS)
        held = sum(_pss_bytes(process.pid) for process in of.usage.living("worker"))
    finally:
        for process in waiting:
            process.terminate()
        for process in waiting:
            process.wait(30)
    served = busy["server"] + busy.get("database", 0.0) - alone["server"] - alone.get("database", 0.0)
    return {
        "workers": of.asked.idle,
        "server_alone": round(alone["server"] + alone.get("database", 0.0), 4),
        "server_a_worker": round(served / of.asked.idle, 5),
        "worker": round(busy["worker"] / of.asked.idle, 5),
        "worker_MB": round(held / of.asked.idle / 1e6),
    }


def _rates(of: Measurement, seconds: float) -> dict[str, float]:
    of.usage.look()
    before = of.usage.seconds()
    time.sleep(seconds)
    of.usage.look()
    return {kind: value / seconds for kind, value in _less(of.usage.seconds(), before).items()}


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _less(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {kind: value - before.get(kind, 0.0) for kind, value in after.items()}


def _records(machine: Machine) -> Iterator[Any]:
    for path in (machine.store / "records").glob("*.json"):
        yield json.loads(path.read_text())


def _require(ran: Any) -> str:
    if ran.returncode:
        raise RuntimeError(f"{' '.join(ran.args[4:])} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return str(ran.stdout)


def _last(ran: Any) -> str:
    return (ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
