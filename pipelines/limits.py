"""How many steps use the GPUs of an architecture at a time, over all hosts: Prefect's global concurrency limits.

`trtforge deploy` creates them. On one machine a GPU takes one step at a time whatever they say (`pipelines.gpu_turns`);
they are what an operator turns to keep a fleet's GPUs for other work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pipelines.prefect_settings  # noqa: F401 - Prefect reads them on import

# isort: split
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from pipelines.deployments import POOL
from stages.gpus import architecture
from stages.stage import StageError

LEASE_SECONDS = 60.0
"""A slot whose holder was killed is free again after so long: the least that Prefect takes, where 300 s are usual."""

_TELL_SECONDS = 10.0


@contextmanager
def slot(compute_capability: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds a slot of the limit of an architecture, which must be there.

    Args:
        compute_capability: The GPU's, such as `8.9`.
        waiting: Called again and again while none is free; it may raise to give up.

    Raises:
        StageError: There is no such limit, or the server does not answer.
    """
    name = f"{POOL}-{architecture(compute_capability)}"
    with ExitStack() as held:
        while True:
            # A server that is away for a while does not end a step that runs.
            taking = concurrency(
                name, timeout_seconds=_TELL_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
                raise_on_lease_renewal_failure=False,
            )  # fmt: skip
            try:
                held.enter_context(taking)
                break
            except TimeoutError:
                waiting(f"a slot of the concurrency limit {name}")
            except ConcurrencySlotAcquisitionError as error:
                raise StageError(
                    f"the concurrency limit {name} cannot be taken: {error}",
                    "`trtforge deploy` creates it; `prefect gcl inspect` says who holds it",
                ) from error
        yield
