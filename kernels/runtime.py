"""Running compiled networks: NumPy, TVM's runtime and a shared library; no compiler, no torch.

``import tvm`` would load the compiler (150 MB) and ``tvm_ffi`` imports torch where it is installed (230 MB), so TVM's
runtime library is loaded by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import math
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.graph import Graph
from intq.kernels import pack
from intq.kernels.library import place, structure
from intq.value import Value, bind_shape

ARENA, HUGE_PAGE, CACHE_LINE = 1 << 26, 1 << 21, 64  # bytes
CPU, POOLED = (1, 0), 2  # TVM's device type and number, and its allocator that keeps freed memory for the next run
ARCH_REQ_XCOMP_PERM, XTILEDATA, ARCH_PRCTL = 0x1023, 18, 158  # Linux: a process asks once for the AMX registers


@dataclass(frozen=True)
class Layer:
    """A node's kernel with everything that it takes but the data."""

    name: str
    op: str
    kernel: str  # "" for a view
    inputs: tuple[str, ...]
    constants: tuple
    output: Value


@dataclass(frozen=True)
class Network:
    """A compiled network: ``network(*arrays)`` gives its output, or a tuple of them."""

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    instruction_set: str
    layers: tuple[Layer, ...]
    path: Path
    _main: Callable
    _constants: Any
    _module: Any

    def __call__(self, *arrays: np.ndarray):
        """Integer arrays of the declared dtypes and shapes, any batch. Raises IntqError for others."""
        results = self._main(*self._tensors(arrays), self._constants)
        results = tuple(np.from_dlpack(result) for result in results)
        return results[0] if len(self.outputs) == 1 else results

    def _tensors(self, arrays: Sequence[np.ndarray]) -> list:
        arrays = [np.asarray(array) for array in arrays]
        _check(self.inputs, arrays)
        return [tensor(array) for array in arrays]

    def time_layers(self, *arrays: np.ndarray, repeats: int = 20) -> dict[str, float]:
        """Seconds of every node: the minimum over ``repeats`` passes through the whole network, node by node."""
        n = len(arrays[0])
        known = dict(zip((v.name for v in self.inputs), self._tensors(arrays), strict=True))
        for value in self.inputs:
            known[value.name] = tensor(_copied(np.from_dlpack(known[value.name])))
        calls: list[tuple[str, Callable, list]] = []
        for layer in self.layers:
            operands = [known[name] for name in layer.inputs]
            shape = bind_shape(layer.output.shape, {v.shape[0]: n for v in self.inputs})
            if layer.kernel:
                known[layer.name] = tensor(_aligned(shape, layer.output.dtype))
                operands += [*layer.constants, known[layer.name]]
                calls.append((layer.name, self._module.get_function(layer.kernel, query_imports=True), operands))
            else:
                known[layer.name] = tensor(np.from_dlpack(operands[0]).reshape(shape))
        best = {layer.name: 0.0 if not layer.kernel else float("inf") for layer in self.layers}
        for _ in range(repeats):
            for name, kernel, operands in calls:
                start = time.perf_counter()
                kernel(*operands)
                best[name] = min(best[name], time.perf_counter() - start)
        return best


def compile(source: str | Path | Graph, target: str | dict = "cpu", threads: int | None = None) -> Network:
    """A network that runs on this machine: compiled if need be, then loaded.

    ``source``: a Graph, or an artifact's folder, where the library for "cpu" is kept for the next time.
    Raises IntqError when the artifact is damaged or the target cannot run here.
    """
    import intq

    graph = source if isinstance(source, Graph) else intq.load(source)
    if graph is not source and target == "cpu":
        path = place(source, structure(graph))
        return load(graph, path if path.is_file() else _build(graph, target).keep(source), threads)
    with tempfile.TemporaryDirectory() as folder:
        return load(graph, _build(graph, target).keep(folder), threads)


def _build(graph: Graph, target: str | dict):
    from intq.kernels.lower import build

    return build(graph, target)


def load(graph: Graph, path: str | Path, threads: int | None = None) -> Network:
    """A network from its graph and its compiled library.

    ``threads``: of the whole process (TVM has one pool); all processors by default. Raises IntqError when the library
    is not that of the graph, or needs instructions that this machine or its kernel withholds.
    """
    path = Path(path).resolve()
    runtime = _runtime()
    module = _open(path)
    about = _describe(module)
    if about.get("structure") != structure(graph):
        raise IntqError(f"{path} was compiled from another graph or by another version; compile the artifact again")
    isa = about["instruction_set"]
    if isa == "amx":
        request_amx()
    use_threads(threads)
    layers = _layers(graph, about["kernels"], isa)
    machine = module["vm_load_executable"]()
    machine["vm_initialization"](*CPU, POOLED)
    packed = runtime.convert([constant for layer in layers for constant in layer.constants])
    return Network(graph.inputs, graph.outputs, isa, tuple(layers), path, machine["main"], packed, module)


def _layers(graph: Graph, kernels: dict[str, str], isa: str) -> tuple[Layer, ...]:
    """Every node with its packed constants, which lie one after another in huge pages where the system has them.

    Weights are read once a run from beyond the caches that a core owns, which is 2.4 times as fast when neither the
    translation of addresses nor the prefetcher stops every 4 KB.
    """
    values, layers, arena, at = graph.values, [], _huge(0), 0
    for node in graph.nodes:
        inputs, placed = tuple(values[name] for name in node.inputs), []
        for array in pack.arrays(node, inputs, isa) if kernels[node.name] else ():
            if at + array.nbytes > len(arena):
                arena, at = _huge(max(ARENA, array.nbytes)), 0
            place = arena[at : at + array.nbytes].view(array.dtype)
            place[:] = array
            placed.append(tensor(place))
            at += -(-array.nbytes // CACHE_LINE) * CACHE_LINE
        layers.append(Layer(node.name, node.op, kernels[node.name], node.inputs, tuple(placed), node.output))
    return tuple(layers)


def _copied(array: np.ndarray) -> np.ndarray:
    copy = _aligned(array.shape, array.dtype.name)
    copy[:] = array
    return copy


def _aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array that begins at a cache line, as TVM's own do."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + CACHE_LINE, np.uint8)
    skip = -whole.ctypes.data % CACHE_LINE
    return whole[skip : skip + size].view(dtype).reshape(shape)


def _huge(size: int) -> np.ndarray:
    """Bytes that begin at a huge page; memory is taken when they are written."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    area = mmap.mmap(-1, size + 2 * HUGE_PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(area, np.uint8)
    skip = -whole.ctypes.data % HUGE_PAGE
    return whole[skip : skip + size]


def use_threads(threads: int | None = None) -> None:
    """The size of TVM's thread pool, which all networks of a process share; by default one for each processor.

    Raises IntqError when the pool cannot grow so far: its size is fixed when it is first used.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = processors if threads is None else threads
    if count < 1:
        raise IntqError(f"threads must be 1 or more, got {count}")
    # TVM would take half of the processors for hyper-threads, and bind the caller's thread to one of them
    os.environ.setdefault("TVM_NUM_THREADS", str(max(processors, count)))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    function = _runtime().get_global_func
    function("runtime.config_threadpool")(1, count)
    if function("runtime.NumThreads")() != count:
        has = function("runtime.NumThreads")()
        raise IntqError(f"the thread pool has {has} threads, asked for {count}: start anew")


def _runtime():
    """tvm_ffi with TVM's runtime library, and nothing else of TVM."""
    if "tvm" in sys.modules:
        import tvm_ffi

        return tvm_ffi
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # tvm_ffi imports torch where it finds it
    try:
        import tvm_ffi
    except ImportError:
        raise IntqError("running a compiled network needs apache-tvm: pip install 'intq'") from None
    finally:
        if hide:
            del sys.modules["torch"]
    spec = importlib.util.find_spec("tvm")
    if spec is None:
        raise IntqError("running a compiled network needs apache-tvm, which is not installed")
    library = Path(spec.origin).parent / "lib"
    name = {"Darwin": "libtvm_runtime.dylib", "Windows": "tvm_runtime.dll"}.get(platform.system(), "libtvm_runtime.so")
    ctypes.CDLL(str(library / name), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _open(path: Path):
    runtime = _runtime()
    try:
        return runtime.load_module(str(path.resolve()))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise IntqError(f"{path} cannot be loaded: {reason}") from None


def _describe(module) -> dict:
    machine = module["vm_load_executable"]()
    machine["vm_initialization"](*CPU, POOLED)
    return json.loads(str(machine["description"]()))


def tensor(array: np.ndarray):
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()  # DLPack passes no read-only memory
    return _runtime().from_dlpack(array)


def _check(declared: Sequence[Value], arrays: Sequence[np.ndarray]) -> None:
    if len(arrays) != len(declared):
        raise IntqError(f"expected {len(declared)} inputs, got {len(arrays)}")
    for value, array in zip(declared, arrays, strict=True):
        if array.dtype.name != value.dtype:
            raise IntqError(f"input {value.name}: expected {value.dtype}, got {array.dtype.name}")
        fits = len(array.shape) == len(value.shape) and all(
            isinstance(d, str) or d == s for d, s in zip(value.shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, value.shape))
            raise IntqError(f"input {value.name}: expected shape ({wanted}), got {array.shape}")


def request_amx() -> None:
    if platform.system() != "Linux" or ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA):
        raise IntqError(
            "this library uses AMX and the operating system denies it here; compile for another instruction set, "
            'e.g. target "llvm -mcpu=icelake-server"'
        )
