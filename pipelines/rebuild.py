"""Brings a catalog up to date, model by model: all of the user's own config directories, or those of a list."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from artifacts.errors import StoreError
from conf.errors import ConfigError, suggest
from pipelines.configs import Configs
from pipelines.document import bare_table, console, document
from pipelines.errors import CannotBuildError, Exit, exit_of
from pipelines.reporting import Reporter
from pipelines.session import Session
from pipelines.updating import Run, update
from stages.stage import StageError


@dataclass(frozen=True)
class Rebuilt:
    """How it went with one model.

    Attributes:
        model: Its name in the catalog.
        seconds: What it took.
        session: The run; None where there was none to plan.
        error: Why not.
        next_step: What the user can do about that.
        exit: The exit code of the model alone.
    """

    model: str
    seconds: float
    session: Session | None = None
    error: str = ""
    next_step: str = ""
    exit: Exit = Exit.DONE

    @property
    def state(self) -> str:
        """`cached`, `built`, `refused` by a gate, `failed`, or `wrong` where it could not be planned."""
        if self.session is None:
            return "wrong"
        if self.session.exit is not Exit.DONE:
            return "refused" if self.session.exit is Exit.GATE_SAID_NO else "failed"
        return "built" if self._count("built") else "cached"

    def row(self) -> dict[str, Any]:
        """The model in the summary."""
        why = self.error
        for outcome in self.session.outcomes.values() if self.session else ():
            refusals = [f"{outcome.node.id}: {refusal}" for refusal in self.session.refusals(outcome)]  # type: ignore[union-attr]
            why = why or outcome.error or "; ".join(refusals)
        return {
            "model": self.model,
            "state": self.state,
            "steps": len(self.session.outcomes) if self.session else 0,
            "built": self._count("built"),
            "seconds": round(self.seconds, 1),
            "why": why,
        }

    def document(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        if self.session is None:
            found: dict[str, Any] = {"ok": False, "error": self.error, "next": self.next_step or None}
        else:
            found = document(self.session)
        return {"model": self.model, "state": self.state, "seconds": round(self.seconds, 3), **found}

    def _count(self, state: str) -> int:
        return sum(outcome.state == state for outcome in self.session.outcomes.values()) if self.session else 0


def choose(overrides: Sequence[str], models: Sequence[str] | None, config_dirs: Sequence[Path]) -> list[str]:
    """The models of a catalog.

    Args:
        overrides: Hydra overrides, for every model.
        models: Their names; None for all of the user's own config directories.
        config_dirs: The user's own config directories.

    Raises:
        ConfigError: There is no such model, or none.
    """
    from conf.compose import options

    if chosen := [line for line in overrides if line.partition("=")[0] == "model"]:
        raise ConfigError(f"{chosen[0]}: a catalog has its models from --models", "or build the one: trtforge build …")
    known = options("model", overrides, config_dirs)
    if models is None:
        own = [name for name in known if name not in options("model")]
        if not own:
            raise ConfigError("there is no model of your own", "--config-dir DIR, or --models NAME,NAME")
        return own
    for name in models:
        if name not in known:
            raise ConfigError(f"--models: there is no model {name!r}", suggest(name, known))
    if not models:
        raise ConfigError("--models names none", f"there are {', '.join(known)}")
    return list(dict.fromkeys(models))


def of_architecture(architecture: str | None, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Sequence[str]:
    """`overrides`, with those of their targets alone that are of an architecture, where one is named.

    Args:
        architecture: Such as `sm_89`; None for all targets.
        overrides: Hydra overrides, for every model.
        config_dirs: The user's own config directories.

    Raises:
        ConfigError: No target is of it.
        CannotBuildError: A target is `local`, and this machine has no GPU.
    """
    if not architecture:
        return overrides
    from conf.compose import compose
    from pipelines.targets import architectures

    found = architectures(compose(overrides, config_dirs))
    own = [name for name, its in found.items() if its == architecture]
    if not own:
        told = ", ".join(f"{name} ({its})" for name, its in found.items())
        raise ConfigError(f"no target is of {architecture}: there are {told}", "name others: targets=[l4]")
    return [*overrides, f"targets=[{','.join(own)}]"]


def rebuild(
    overrides: Sequence[str],
    models: Sequence[str],
    config_dirs: Sequence[Path],
    reporter: Reporter,
    stop: Event,
    run: Run,
    told: Callable[[Rebuilt], None] = lambda rebuilt: None,
) -> list[Rebuilt]:
    """Brings each of `models` up to date; one that fails or cannot be planned does not keep the others from it.

    Args:
        overrides: Hydra overrides, for every model.
        models: Their names.
        config_dirs: The user's own config directories.
        reporter: What tells the user.
        stop: Set when the user wants to stop.
        run: Runs the steps of a model that has some to run.
        told: Hears of each model when it is over.

    Raises:
        EngineError: The server that the user named cannot be reached: it could not for the next model either.
        InterruptedBuildError: The user asked to stop.
    """
    configs, found = Configs(config_dirs), []

    def bring_up_to_date(model: str) -> Session:
        return update([f"model={model}", *overrides], config_dirs, reporter, stop, run, configs)

    for model in models:
        found.append(_one(model, bring_up_to_date))
        told(found[-1])
    return found


def _one(model: str, bring_up_to_date: Callable[[str], Session]) -> Rebuilt:
    started = time.monotonic()

    def wrong(error: ConfigError | CannotBuildError | StoreError | StageError) -> Rebuilt:
        return Rebuilt(model, time.monotonic() - started, None, error.what, error.next_step, exit_of(error))

    try:
        session = bring_up_to_date(model)
    except (ConfigError, CannotBuildError, StoreError, StageError) as error:
        return wrong(error)
    except OSError as error:  # such as a name that is too long
        return wrong(ConfigError(str(error), "check the paths of its config"))
    return Rebuilt(model, time.monotonic() - started, session, exit=session.exit)


def total(found: Iterable[Rebuilt]) -> str:
    """`12 models: 9 cached, 2 built, 1 failed`."""
    counted = Counter(each.state for each in found)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counted.items()))
    return f"{sum(counted.values())} models: {told}"


def code(found: Iterable[Rebuilt]) -> Exit:
    """The exit code of the catalog: that of the first model that is not up to date."""
    return next((each.exit for each in found if each.exit is not Exit.DONE), Exit.DONE)


def print_catalog(found: Sequence[Rebuilt]) -> None:
    """Prints the catalog as a table, and the total."""
    from rich.text import Text

    screen = console()
    texts, numbers = ("model", "state"), ("steps", "built", "seconds")
    table = bare_table(*texts, *numbers, right=numbers)
    for each in found:
        row = each.row()
        table.add_row(*(Text(str(row[column])) for column in (*texts, *numbers)))
    screen.print(table)
    screen.print(total(found), markup=False, highlight=False)
