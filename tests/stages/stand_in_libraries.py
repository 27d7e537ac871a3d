"""Shared libraries that stand in for NVIDIA's, made with gcc in a second: enough for real Python packages to run.

TensorRT's have the symbols that its bindings need, which answer nothing. CUDA's runtime keeps "device" memory in the
host's, for Polygraphy, and gives no more than STAND_IN_DEVICE_BYTES at once, where that is set; CUDA's driver has one
GPU, an L4, for cuda-python. Of its streams it knows whether they are there and whether they are done; where
STAND_IN_STREAM_FAILS is set, what they do fails. Its memory is the host's, and so is the time that its events tell;
the graphs that it captures do nothing, and where STAND_IN_CAPTURES_NOTHING is set it captures none.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SYMBOLS = {
    "nvinfer": ("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
                "getPluginRegistry", "getBuilderPluginRegistry"),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}  # fmt: skip
"""What `tensorrt.so` of the bindings needs of each library, from 10.3 to 11.4."""

CUDA_RUNTIME = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **at, size_t size) {
    const char *most = getenv("STAND_IN_DEVICE_BYTES");
    return most && size > strtoul(most, 0, 10) ? 2 : (*at = malloc(size)) ? 0 : 2;
}
int cudaFree(void *at) { free(at); return 0; }
int cudaMemcpy(void *to, void *from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, void *from, size_t size, int kind, void *stream) { memcpy(to, from, size); return 0; }
int cudaStreamCreate(void **stream) { *stream = (void *)1; return 0; }
int cudaStreamDestroy(void *stream) { return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
"""

CUDA_DRIVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static long current = 0;
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA L4", size); return 0; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, 0xab, 16); return 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 0xab, 16); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = 24ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)7; return 0; }
int cuCtxSetCurrent(void *context) { current = (long)context; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)current; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *all) { *free = *all = 24ul << 30; return 0; }
int cuMemAlloc_v2(void **at, size_t size) { *at = malloc(size); return 0; }
int cuMemFree_v2(void *at) { free(at); return 0; }
int cuMemAllocHost_v2(void **at, size_t size) { *at = malloc(size); return 0; }
int cuMemFreeHost(void *at) { free(at); return 0; }
int cuMemcpyHtoDAsync_v2(void *to, void *from, size_t size, void *stream) { memcpy(to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, void *from, size_t size, void *stream) { memcpy(to, from, size); return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return 0; }
int cuStreamEndCapture(void *stream, void **graph) {
    *graph = malloc(1);
    return getenv("STAND_IN_CAPTURES_NOTHING") ? 900 : 0;
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) { *made = malloc(1); return 0; }
int cuGraphDestroy(void *graph) { free(graph); return 0; }
int cuGraphExecDestroy(void *made) { free(made); return 0; }
int cuGraphLaunch(void *made, void *stream) { return 0; }
int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(struct timespec)); return 0; }
int cuEventDestroy_v2(void *event) { free(event); return 0; }
int cuEventRecord(void *event, void *stream) { return clock_gettime(CLOCK_MONOTONIC, event); }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime(float *ms, struct timespec *start, struct timespec *end) {
    *ms = (end->tv_sec - start->tv_sec) * 1e3 + (end->tv_nsec - start->tv_nsec) / 1e6;
    return 0;
}
static long stream = 0, streams = 0, busy = 0;
int cuStreamCreate(void **made, unsigned flags) { *made = (void *)(stream = 16 * ++streams); return 0; }
int cuStreamDestroy_v2(void *given) { stream = 0; return 0; }
int cuStreamSynchronize(void *given) { busy = 0; return getenv("STAND_IN_STREAM_FAILS") ? 700 : 0; }
int cuCtxSynchronize(void) { busy = 0; return 0; }
int stand_in_enqueue(long given) { busy = 1; return stream && given == stream; }
int stand_in_busy(void) { return busy; }
int cuGetErrorString(int code, const char **text) { *text = "stand-in"; return 0; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, int *status) {
    char versioned[100];
    void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_NOW);
    strcat(strncpy(versioned, name, 90), "_v2");
    *found = dlsym(self, versioned);
    if (!*found) *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""
"""Attribute 75 is the capability's major number; 500 is CUDA_ERROR_NOT_FOUND, 700 CUDA_ERROR_ILLEGAL_ADDRESS,
900 CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED."""


def make_libraries(directory: Path, major: str) -> None:
    """Writes them into `directory`, TensorRT's as those of this major version: put it on LD_LIBRARY_PATH."""
    for name, symbols in SYMBOLS.items():
        text = "\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols)
        _make(directory / f"lib{name}.so.{major}", text)
    _make(directory / "libcudart.so.13", CUDA_RUNTIME)
    _make(directory / "libcuda.so.1", CUDA_DRIVER)


def _make(library: Path, text: str) -> None:
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, "-x", "c", "-"]
    subprocess.run(command, input=text, text=True, check=True)


PACKAGE = """
import sys
import tensorrt_bindings
from tests.stages.stand_ins import Api
sys.modules[__name__] = Api(tensorrt_bindings)
"""

STARTUP = """
from pathlib import Path
import pipelines.targets
pipelines.targets.NVIDIA_DRIVER = Path(__file__)
"""
"""CUDA is asked for GPUs only where the kernel has its driver."""


def make_machine(directory: Path, bindings: Path) -> dict[str, str]:
    """Makes what a process takes for a machine with an L4 and the TensorRT of these bindings.

    Args:
        directory: Where to; empty.
        bindings: A directory named after its version, such as `.venv-bindings/11.4.0.106`.

    Returns:
        Variables of the environment to start it with.
    """
    make_libraries(directory, bindings.name.partition(".")[0])
    package, described = directory / "tensorrt", directory / f"tensorrt-{bindings.name}.dist-info"
    package.mkdir()
    described.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (directory / "sitecustomize.py").write_text(STARTUP)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {bindings.name}\n")
    paths = [directory, bindings, Path(__file__).parents[2]]
    return {"LD_LIBRARY_PATH": str(directory), "PYTHONPATH": os.pathsep.join(map(str, paths))}
