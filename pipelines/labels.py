"""How a flow run is called in Prefect, and the tags by which it is found.

Task runs have no tags: before one with tags begins Prefect asks its server whether limits hold it up. That takes 2.5 ms
of processor time here and more there, and who is killed may hold a slot of a tag's limit for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.deployments import POOL
from pipelines.session import Session

OURS = POOL
"""The tag of every run of ours."""

MOST_OF_A_KIND = 20
"""More models, or targets, than this are no tags of one run: a rebuild of 1,000 models would have 1,000 of them."""


def name(session: Session) -> str:
    """`digits-int8`."""
    return f"{session.config.model.name}-{session.config.flow}"


def name_of_rebuild(models: Sequence[str]) -> str:
    """`rebuild of 12 models`; of one it is the model's own name that says something."""
    return f"rebuild of {models[0]}" if len(models) == 1 else f"rebuild of {len(models):,} models"


def tags(sessions: Iterable[Session], models: Iterable[str] = ()) -> list[str]:
    """What the runs are about: `model:digits`, `flow:int8`, `target:l4`, `sm_89`, `rtx-1.7.1.116`, and `trtforge`.

    Args:
        sessions: The runs.
        models: Names of models beside theirs, such as of those that could not be planned.
    """
    runs = list(sessions)
    targets = [target for run in runs for target in run.targets]
    kinds = (
        {f"model:{model}" for model in (*models, *(run.config.model.name for run in runs))},
        {f"flow:{run.config.flow}" for run in runs},
        {f"target:{target.name}" for target in targets},
        {target.architecture for target in targets},
        {target.release for target in targets},
    )
    return [OURS, *(tag for kind in kinds if len(kind) <= MOST_OF_A_KIND for tag in sorted(kind))]
