"""What the processes of the contract tests share: stages run on stand-ins of TensorRT, and what is noted of them."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import onnx

from stages import backends, network
from stages.stage import StageError
from tests.stages import stand_ins
from tests.stages.stand_ins import Api

ASKED: set[tuple[str, int, str]] = set()
"""Where every stand-in of this process was asked for what."""


class Current:
    """A module `tensorrt` that is the `Api` of the run under way: Polygraphy keeps the module that it finds first."""

    api: Api

    def __getattr__(self, name: str) -> Any:
        return getattr(self.api, name)


def run(api: Api, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns or says of its failure, what was called, and how much of TensorRT's is held afterwards."""
    Current.api = api
    with mock.patch.object(backends, "load", lambda backend: api), watched_models(api):
        try:
            answer = work()
        except StageError as error:
            answer = {"error": error.what, "next": error.next_step}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
    ASKED.update(api.asked)
    return {**answer, "calls": api.calls, "held": api.alive()}


@contextlib.contextmanager
def watched_models(api: Api) -> Iterator[None]:
    """Counts models, and weights that lie beside them, to what TensorRT needs: it copies none."""
    check = network.checked

    def watched(model: onnx.ModelProto) -> network.Model:
        found = check(model)
        api.used += [weakref.ref(each) for each in (found, *found.weights.values())]
        return found

    with mock.patch.object(network, "checked", watched):
        yield


@contextlib.contextmanager
def behaving(**attributes: Any) -> Iterator[None]:
    """`Builder_says="…"`: the stand-ins of builders say so."""
    with contextlib.ExitStack() as stack:
        for path, value in attributes.items():
            kind, _, name = path.partition("_")
            stack.enter_context(mock.patch.object(getattr(stand_ins, kind), name, value))
        yield


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These variables, for the libraries too that stand in for CUDA's."""
    with mock.patch.dict(os.environ, variables):
        yield
