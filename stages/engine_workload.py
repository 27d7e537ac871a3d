"""A plan as a workload: its engine with a context for each stream, and buffers for what goes in and out.

Only what TensorRT 10.13 to 11.4 and TensorRT-RTX 1.7 have in common is called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import backends, network
from stages.builder_log import make_logger, plain, start
from stages.cuda_device import Device
from stages.gpu_timing import Copy
from stages.stage import StageError

if TYPE_CHECKING:
    from stages.batches import Array


class Engine:
    """The engine of a plan, and the objects that it needs alive.

    Args:
        backend: `tensorrt_rtx` or `tensorrt`.
        plan: The plan's file.
        plugins: Libraries that it needs.

    Raises:
        StageError: The plan or a library cannot be loaded.
    """

    def __init__(self, backend: str, plan: Path, plugins: Sequence[Path]) -> None:
        self.trt: Any = backends.load(backend)
        self.logger = make_logger(self.trt)
        self.runtime = start(self.trt.Runtime, self.logger, self.logger.noise)
        # A plan that was built with version_compatible brings the runtime of its version, which is host code.
        self.runtime.engine_host_code_allowed = True
        network.load_plugins(self.runtime.get_plugin_registry(), plugins)
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            raise self.failed("the plan cannot be loaded")

    def workload(self, device: Device, stream: int, profile: int, feed: Mapping[str, Array]) -> EngineWorkload:
        """A context of its own for this stream, with buffers of `device`, ready to run on `feed`.

        Args:
            device: Whose memory is taken; it gives it back.
            stream: The stream.
            profile: The number of the profile, as it was built in.
            feed: The inputs by name. Shapes, and the numbers in shape tensors, lie within the profile.

        Raises:
            StageError: There is no memory, the engine takes other inputs, or refuses the shapes.
        """
        context = self.engine.create_execution_context()
        if context is None:
            raise self.failed("the plan cannot be executed")
        if not context.set_optimization_profile_async(profile, stream):
            raise self.failed(f"the plan does not take its profile number {profile}")
        device.synchronize(stream)
        buffers = _Buffers(self, context, device, profile)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT]
        if {*inputs} != {*feed}:
            raise StageError(
                f"the plan takes {', '.join(inputs)}, and the ONNX file {', '.join(feed)}",
                "give bench the ONNX file that the plan was built from",
            )
        copies_in = [copy for name in inputs if (copy := buffers.fill(name, feed[name])) is not None]
        copies_out = [copy for name in names if name not in feed if (copy := buffers.receive(name)) is not None]
        for copy in copies_in:
            device.copy_in(copy.device, copy.host, copy.bytes, stream)
        device.synchronize(stream)
        return EngineWorkload(context, self, copies_in, copies_out)

    def failed(self, what: str) -> StageError:
        """An error with what TensorRT said last."""
        said = plain(self.logger.errors[-1]) if self.logger.errors else "TensorRT gives no reason"
        return StageError(f"{what}: {said}", "trtforge doctor says what this machine can run")


@dataclass(frozen=True)
class EngineWorkload:
    """One context; see `stages.gpu_timing.Workload`.

    NOTE: fields go in their order, and a context must not outlive its engine.
    """

    context: Any
    engine: Engine
    inputs: Sequence[Copy]
    outputs: Sequence[Copy]

    def enqueue(self, stream: int) -> None:
        """One inference.

        Raises:
            StageError: TensorRT refuses it.
        """
        if not self.context.execute_async_v3(stream):
            raise self.engine.failed("TensorRT cannot run the plan")


@dataclass(frozen=True)
class _Buffers:
    """Makes the buffers of one context, and tells it of them."""

    of: Engine
    context: Any
    device: Device
    profile: int

    def fill(self, name: str, array: Array) -> Copy | None:
        """A buffer for an input with what `array` holds; None for one that TensorRT reads on the host: a shape."""
        import numpy as np

        content = np.ascontiguousarray(array)
        if self._is_on_host(name):
            host = self.device.pinned(content.nbytes)
            ctypes.memmove(host, content.ctypes.data, content.nbytes)
            self._place(name, host)
            return None
        if not self.context.set_input_shape(name, tuple(content.shape)):
            raise self.of.failed(f"the plan does not take {name!r} of {tuple(content.shape)}")
        copy = self._buffer(name, self._input_bytes(name, content.shape))
        # A format that pads takes more bytes than the array has: then they come round again.
        padded = np.resize(content.reshape(-1).view(np.uint8), copy.bytes)
        ctypes.memmove(copy.host, padded.ctypes.data, copy.bytes)
        return copy

    def receive(self, name: str) -> Copy | None:
        """A buffer for an output, as large as the inputs allow; None for one that TensorRT writes on the host."""
        size = self.context.get_max_output_size(name)
        if size < 0:
            raise self.of.failed(f"the plan does not say how large {name!r} can be")
        if self._is_on_host(name):
            self._place(name, self.device.pinned(size))
            return None
        return self._buffer(name, size)

    def _is_on_host(self, name: str) -> bool:
        return bool(self.of.engine.get_tensor_location(name) == self.of.trt.TensorLocation.HOST)

    def _input_bytes(self, name: str, shape: Sequence[int]) -> int:
        engine, sizes = self.of.engine, list(shape)
        vectorized = engine.get_tensor_vectorized_dim(name, self.profile)
        if vectorized >= 0:
            lanes = engine.get_tensor_components_per_element(name, self.profile)
            sizes[vectorized] = -(-sizes[vectorized] // lanes) * lanes
        return int(prod(sizes) * engine.get_tensor_dtype(name).itemsize)

    def _buffer(self, name: str, size: int) -> Copy:
        copy = Copy(self.device.pinned(size), self.device.memory(size), size)
        self._place(name, copy.device)
        return copy

    def _place(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise self.of.failed(f"the plan does not take the address of {name!r}")
