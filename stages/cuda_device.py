"""A GPU's memory, streams, events and graphs, through CUDA's driver API: what a block takes, it gives back at its end.

Addresses, streams, events and graphs are plain ints, as TensorRT takes them. All belong to the context that is current
in the calling thread: `stages.gpus.use` comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from stages.stage import StageError


class CudaError(StageError):
    """A call of CUDA's driver API failed."""


class Device:
    """The current GPU, as one block uses it: `with Device() as device`.

    Whatever was taken is given back at the end, the latest first, once the GPU has done all that was asked of it.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self._taken = ExitStack()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._taken.callback(self._driver.cuCtxSynchronize)  # the last to come is the first to go
        try:
            self._taken.close()
        except CudaError:
            if error is None:  # else the first error says more than what follows from it
                raise

    def memory(self, size: int) -> int:
        """The address of `size` bytes on the device.

        Raises:
            CudaError: There are not so many.
        """
        address = int(self._call(self._driver.cuMemAlloc, max(size, 1), what=f"{size} bytes of device memory"))
        self._give_back(self._driver.cuMemFree, address)
        return address

    def pinned(self, size: int) -> int:
        """The address of `size` bytes of the host's memory that are never paged out: the GPU copies from them itself.

        Raises:
            CudaError: There are not so many.
        """
        address = int(self._call(self._driver.cuMemAllocHost, max(size, 1), what=f"{size} bytes of pinned memory"))
        self._give_back(self._driver.cuMemFreeHost, address)
        return address

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        flag = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = int(self._call(self._driver.cuStreamCreate, flag))
        self._give_back(self._driver.cuStreamDestroy, stream)
        return stream

    def event(self) -> int:
        """An event that keeps its time."""
        event = int(self._call(self._driver.cuEventCreate, self._driver.CUevent_flags.CU_EVENT_DEFAULT))
        self._give_back(self._driver.cuEventDestroy, event)
        return event

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Copies `size` bytes from the host's address to the device's, in the stream's turn."""
        self._call(self._driver.cuMemcpyHtoDAsync, device, host, size, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Copies `size` bytes from the device's address to the host's, in the stream's turn."""
        self._call(self._driver.cuMemcpyDtoHAsync, host, device, size, stream)

    def record(self, event: int, stream: int) -> None:
        """Lets the event happen once the stream has done all that it was given so far."""
        self._call(self._driver.cuEventRecord, event, stream)

    def wait(self, event: int) -> None:
        """Returns once the event has happened; at once if it was never recorded."""
        self._call(self._driver.cuEventSynchronize, event)

    def synchronize(self, stream: int) -> None:
        """Returns once the stream has done all that it was given."""
        self._call(self._driver.cuStreamSynchronize, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have happened; CUDA resolves 0.5 us."""
        return float(self._call(self._driver.cuEventElapsedTime, start, end))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """A graph of what `work` gives the stream, which does none of it now.

        Raises:
            StageError: `work` failed, or gives what cannot be captured, such as a wait.
        """
        # Thread local: what other threads do meanwhile, such as allocating, ends no capture.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            # A stream that is left capturing takes nothing else; what this call says follows from the error.
            self._driver.cuStreamEndCapture(stream)
            raise
        graph = self._call(self._driver.cuStreamEndCapture, stream)
        try:
            executable = int(self._call(self._driver.cuGraphInstantiate, graph, 0))
        finally:
            self._call(self._driver.cuGraphDestroy, graph)
        self._give_back(self._driver.cuGraphExecDestroy, executable)
        return executable

    def launch(self, graph: int, stream: int) -> None:
        """Gives the stream a captured graph to do."""
        self._call(self._driver.cuGraphLaunch, graph, stream)

    def free_bytes(self) -> int:
        """How much of the device's memory nobody has."""
        free, _ = self._call(self._driver.cuMemGetInfo)
        return int(free)

    def _give_back(self, function: Any, taken: int) -> None:
        self._taken.callback(self._call, function, taken)

    def _call(self, function: Any, *arguments: Any, what: str = "") -> Any:
        code, *results = function(*arguments)
        if code == self._driver.CUresult.CUDA_SUCCESS:
            return results[0] if len(results) == 1 else results
        if code == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise CudaError(
                f"out of memory: {what or function.__name__}",
                "free memory on the GPU (nvidia-smi says who has it), or lower the max of the profiles",
            )
        _, text = self._driver.cuGetErrorString(code)
        said = text.decode() if text else "unknown error"
        raise CudaError(f"{function.__name__}: {code.name}: {said}", "nvidia-smi says in which state the GPU is")
