"""A GPU's memory, and kernels run there as one CUDA graph."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from intq.errors import IntqError
from intq.kernels.cuda import driver, toolkit
from intq.kernels.place import Call, Place, Staged

CUDA, PINNED = 2, 3  # DLPack's numbers of a GPU's memory, and of the processor's that a GPU reads by itself
MOST_SAMPLES = 65535  # of a grid's second and third axis
RELAXED = 2  # cudaStreamCaptureModeRelaxed: what other threads do is their affair


def gpu(device: driver.Device, runtime) -> Place:
    """The memory of a GPU. ``runtime``: tvm_ffi with TVM's runtime loaded.

    Kernels and copies go to a stream of their own. The first time that a plan runs, its machine code is loaded; the
    second time its calls are recorded into a CUDA graph, which runs from then on: the processor starts it once and not
    every kernel.
    """
    driver.load()
    cuda = toolkit.library(f"libcudart.so.{toolkit.MAJOR}", "nvidia-cuda-runtime")
    function, here = runtime.get_global_func, runtime.device(CUDA, device.number)
    allocate, copy = function("runtime.TVMTensorAllocWithScope"), function("runtime.TVMTensorCopyFromTo")
    view = function("runtime.TVMTensorCreateView")
    stream = function("runtime.Device_StreamCreate")(here)

    def check(code: int) -> None:
        if code:
            cuda.cudaGetErrorString.restype = ctypes.c_char_p
            raise IntqError(f"{device.name}: {cuda.cudaGetErrorString(code).decode()}")

    def wait() -> None:
        function("runtime.Device_StreamSync")(here, stream)

    def area(size: int):
        return allocate(runtime.Shape((size,)), runtime.dtype("uint8"), here, None)

    def part(area, start: int, shape: tuple, dtype: str):
        return view(area, runtime.Shape(shape), runtime.dtype(dtype), start)

    def staged(part) -> Staged:
        pinned = allocate(part.shape, part.dtype, runtime.device(PINNED, 0), None)
        array = np.from_dlpack(pinned)
        if not math.prod(array.shape):
            return Staged(array)

        def on_stream(source, target) -> Call:
            def call() -> None:
                function("runtime.Device_SetStream")(here, stream)
                copy(source, target)

            return call

        return Staged(array, on_stream(pinned, part), on_stream(part, pinned))

    def captured(calls: Sequence[Call]) -> ctypes.c_void_p:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        handle = ctypes.c_void_p(int(stream))
        check(cuda.cudaStreamBeginCapture(handle, RELAXED))
        try:
            for call in calls:
                call()
        finally:
            code = cuda.cudaStreamEndCapture(handle, ctypes.byref(graph))
        check(code)
        check(cuda.cudaGraphInstantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0)))
        check(cuda.cudaGraphDestroy(graph))
        return executable

    def repeated(calls: Sequence[Call]) -> Call:
        runs, graphs = 0, []

        def run() -> None:
            nonlocal runs
            function("runtime.Device_SetStream")(here, stream)
            runs += 1
            if runs == 1:
                for call in calls:
                    call()
            else:
                if not graphs:
                    graphs.append(captured(calls))
                    weakref.finalize(run, cuda.cudaGraphExecDestroy, graphs[0])
                check(cuda.cudaGraphLaunch(graphs[0], ctypes.c_void_p(int(stream))))
            wait()

        return run

    def seconds(call: Call) -> float:
        begin, end, milliseconds = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
        handle = ctypes.c_void_p(int(stream))
        function("runtime.Device_SetStream")(here, stream)
        for event in (begin, end):
            check(cuda.cudaEventCreate(ctypes.byref(event)))
        check(cuda.cudaEventRecord(begin, handle))
        call()
        check(cuda.cudaEventRecord(end, handle))
        wait()
        check(cuda.cudaEventElapsedTime(ctypes.byref(milliseconds), begin, end))
        for event in (begin, end):
            check(cuda.cudaEventDestroy(event))
        return milliseconds.value / 1000

    return Place(area, part, staged, repeated, seconds, refuse)


def refuse(shapes: Mapping[str, tuple]) -> None:
    """Raises IntqError if values of these shapes are too large for 32-bit places, or samples for a grid of blocks."""
    for name, shape in shapes.items():
        if math.prod(shape) >= 2**31 or shape[0] > MOST_SAMPLES:
            raise IntqError(
                f"{name} would be {shape}; a GPU's kernels take values of less than 2**31 elements and at most "
                f"{MOST_SAMPLES} samples: give fewer inputs at a time"
            )
