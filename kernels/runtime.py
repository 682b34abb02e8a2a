"""Running compiled networks: NumPy, TVM's runtime and a shared library; no compiler, no torch.

``import tvm`` would load the compiler (150 MB) and ``tvm_ffi`` imports torch where it is installed (230 MB), so TVM's
runtime library is loaded by itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.graph import Graph
from intq.kernels import arena, pack
from intq.kernels.library import is_gpu, place, structure
from intq.kernels.place import Call, Place, Staged, processor
from intq.value import Value, bind_shape, check_inputs

PLANS = 8  # that a network keeps
ROOM = 1 << 26  # bytes
CPU, POOLED = (1, 0), 2  # TVM's device type and number, and its allocator that keeps freed memory for the next run
ARCH_REQ_XCOMP_PERM, XTILEDATA, ARCH_PRCTL = 0x1023, 18, 158  # Linux: a process asks once for the AMX registers


@dataclass(frozen=True)
class Layer:
    """A node's kernel with everything that it takes but the data."""

    name: str
    op: str
    kernel: str  # "" for a view
    function: Callable | None
    inputs: tuple[str, ...]
    constants: tuple
    output: Value


@dataclass(frozen=True)
class Plan:
    """A network for inputs of one shape, all values in one arena: its ends as the processor has them, and the kernels'
    calls in order, each by its node; ``run`` runs all of them, and brings inputs and outputs where they are wanted."""

    ends: dict[str, Staged]
    calls: tuple[tuple[str, Call], ...]
    run: Call


@dataclass
class Memory:
    """What a network writes to: one piece of memory, since one plan runs at a time.

    ``where``: the place of each value for inputs of ``sizes``; smaller inputs have their values at the same places.
    ``plans``: of the shapes that inputs last had, by the symbolic sizes.
    """

    place: Place
    area: Any = None
    size: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    plans: dict[tuple[int, ...], Plan] = field(default_factory=dict)

    def fits(self, sizes: dict[str, int]) -> bool:
        return bool(self.where) and all(size <= self.sizes[name] for name, size in sizes.items())

    def arrange(self, sizes: dict[str, int], where: dict[str, int], size: int) -> None:
        if self.area is None or size > self.size:
            self.plans.clear()  # their arrays keep the old memory
            self.area, self.size = self.place.area(size), size
        self.sizes, self.where = sizes, where


@dataclass(frozen=True)
class Network:
    """A compiled network: ``network(*arrays)`` gives its output, or a tuple of them.

    It calls the kernels itself, on memory that it planned, rather than through the library's ``main``: Relax's virtual
    machine takes 6 microseconds a kernel, a fifth of a MobileNetV2. The plans of the shapes that inputs last had are
    kept, for sentences differ in length.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    instruction_set: str
    layers: tuple[Layer, ...]
    path: Path
    _module: Any  # which the functions are of
    _memory: Memory
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, *arrays: np.ndarray):
        """Integer arrays of the declared dtypes and shapes, any batch. Raises IntqError for others."""
        with self._lock:
            plan = self._prepare(arrays)
            plan.run()
            results = tuple(plan.ends[name].array.copy() for name in self.outputs)
        return results[0] if len(self.outputs) == 1 else results

    def time_layers(self, *arrays: np.ndarray, repeats: int = 20) -> dict[str, float]:
        """Seconds of every node: the minimum over ``repeats`` passes through the whole network, node by node."""
        best = {layer.name: float("inf") if layer.kernel else 0.0 for layer in self.layers}
        with self._lock:
            for _ in range(repeats):
                plan = self._prepare(arrays)  # outputs may have taken the inputs' place
                for staged in (plan.ends[value.name] for value in self.inputs):
                    if staged.given:
                        staged.given()
                for name, call in plan.calls:
                    best[name] = min(best[name], self._memory.place.seconds(call))
        return best

    def _prepare(self, arrays: Sequence[np.ndarray]) -> Plan:
        """The plan for arrays of these shapes, with the arrays in place."""
        arrays = [np.asarray(array) for array in arrays]
        check_inputs(self.inputs, arrays)
        sizes = {d: s for v, a in zip(self.inputs, arrays, strict=True) for d, s in zip(v.shape, a.shape, strict=True)}
        sizes = {d: s for d, s in sizes.items() if isinstance(d, str)}
        key = tuple(sizes.values())
        plans = self._memory.plans
        plan = plans.pop(key, None) or self._plan(sizes)
        plans[key] = plan  # the latest is last
        if len(plans) > PLANS:
            del plans[next(iter(plans))]
        for value, array in zip(self.inputs, arrays, strict=True):
            plan.ends[value.name].array[...] = array
        return plan

    def _plan(self, sizes: dict[str, int]) -> Plan:
        values = (*self.inputs, *(layer.output for layer in self.layers))
        shapes = {value.name: (bind_shape(value.shape, sizes), value.dtype) for value in values}
        for value in values:
            if 0 in shapes[value.name][0][1:]:
                given = ", ".join(f"{size} along {name!r}" for name, size in list(sizes.items())[1:])
                raise IntqError(f"{given} leave nothing of {value.name} {value.shape}; give longer inputs")
        self._memory.place.refuse({name: shape for name, (shape, _) in shapes.items()})
        views = {layer.name: layer.inputs[0] for layer in self.layers if not layer.kernel}
        memory, tensors = self._memory, {}
        if not memory.fits(sizes):
            steps = [(layer.name, layer.inputs) for layer in self.layers]
            memory.arrange(sizes, *arena.offsets(arena.lives(shapes, steps, views, self.outputs)))
        for name, (shape, dtype) in shapes.items():
            tensors[name] = memory.place.part(memory.area, memory.where[arena.owner_of(name, views)], shape, dtype)
        calls = tuple(
            (
                layer.name,
                partial(
                    layer.function, *(tensors[name] for name in layer.inputs), *layer.constants, tensors[layer.name]
                ),
            )
            for layer in self.layers
            if layer.function
        )
        ends = {name: memory.place.staged(tensors[name]) for name in (*(v.name for v in self.inputs), *self.outputs)}
        given = [ends[value.name].given for value in self.inputs]
        steps = [*given, *(call for _, call in calls), *(ends[name].taken for name in self.outputs)]
        empty = all(0 in shapes[name][0] for name in self.outputs)  # which a GPU would refuse to launch
        return Plan(ends, calls, memory.place.repeated([] if empty else [step for step in steps if step]))


def compile(source: str | Path | Graph, target: str | dict = "cpu", threads: int | None = None) -> Network:
    """A network that runs on this machine: compiled if need be, then loaded.

    ``source``: a Graph, or an artifact's folder, where the library for "cpu" is kept for the next time. If the artifact
    was compiled for a GPU that this machine has, it runs there.
    Raises IntqError when the artifact is damaged or the target cannot run here.
    """
    import intq

    graph = source if isinstance(source, Graph) else intq.load(source)
    if graph is not source and target == "cpu":
        path = _kept(Path(source), structure(graph))
        return load(graph, path if path.is_file() else _build(graph, target).keep(source), threads)
    with tempfile.TemporaryDirectory() as folder:
        return load(graph, _build(graph, target).keep(folder), threads)


def _kept(folder: Path, structure: str) -> Path:
    """The library that an artifact keeps for this machine: for its GPU, or else for its processor; the place of that
    where there is none. Raises IntqError when all that there is is for a GPU that this machine lacks."""
    path, failure = place(folder, structure), None
    for library in folder.glob(place(folder, structure, "sm_*").name):
        from intq.kernels.cuda import driver

        try:
            driver.check(library.name.partition("-")[0])
            return library
        except IntqError as error:
            failure = error
    if failure and not path.is_file():
        raise IntqError(
            f"{folder} is compiled for a GPU: {failure}; for this machine's processor: intq compile {folder}"
        )
    return path


def _build(graph: Graph, target: str | dict):
    from intq.kernels.lower import build

    return build(graph, target)


def load(graph: Graph, path: str | Path, threads: int | None = None) -> Network:
    """A network from its graph and its compiled library.

    ``threads``: of the whole process (TVM has one pool); all processors by default. Raises IntqError when the library
    is not that of the graph, or needs instructions that this machine or its kernel withholds.
    """
    path = Path(path).resolve()
    module = _open(path)
    about = _describe(module)
    if about.get("structure") != structure(graph):
        raise IntqError(f"{path} was compiled from another graph or by another version; compile the artifact again")
    isa = about["instruction_set"]
    if isa == "amx":
        request_amx()
    use_threads(threads)
    place = _place(isa)
    layers = layers_of(graph, module, about["kernels"], isa, place)
    return Network(graph.inputs, graph.outputs, isa, layers, path, module, Memory(place))


def _place(isa: str) -> Place:
    """Where a library's kernels run."""
    if not is_gpu(isa):
        return processor(tensor)
    from intq.kernels.cuda import driver, place

    return place.gpu(driver.check(isa), _runtime())


def layers_of(graph: Graph, module, kernels: dict[str, str], isa: str, place: Place) -> tuple[Layer, ...]:
    """Every node with its packed constants, which lie one after another in huge pages where the system has them.

    Weights are read once a run from beyond the caches that a core owns, which is 2.4 times as fast when neither the
    translation of addresses nor the prefetcher stops every 4 KB.
    """
    values, layers, room, size, at = graph.values, [], None, 0, 0
    functions = {kernel: module.get_function(kernel, query_imports=True) for kernel in set(kernels.values()) if kernel}
    for node in graph.nodes:
        inputs, placed = tuple(values[name] for name in node.inputs), []
        for array in pack.arrays(node, inputs, isa) if kernels[node.name] else ():
            if room is None or at + array.nbytes > size:
                size, at = max(ROOM, array.nbytes), 0
                room = place.area(size)
            part = place.part(room, at, array.shape, array.dtype.name)
            staged = place.staged(part)
            staged.array[...] = array
            if staged.given:
                staged.given()
            placed.append(part)
            at += -(-array.nbytes // arena.ALIGNMENT) * arena.ALIGNMENT
        kernel = kernels[node.name]
        layers.append(Layer(node.name, node.op, kernel, functions.get(kernel), node.inputs, tuple(placed), node.output))
    return tuple(layers)


def save_constants(graph: Graph, library: Any, folder: Path) -> Path:
    """Write constants.params, in TVM's format: what a program without Python gives the library's ``main`` after its
    inputs, named 0, 1, ... in order (examples/cpp). Its path."""
    values, path = graph.values, folder / "constants.params"
    arrays = [
        array
        for node in graph.nodes
        if library.kernels[node.name]
        for array in pack.arrays(node, tuple(values[name] for name in node.inputs), library.instruction_set)
    ]
    save = _runtime().get_global_func("runtime.SaveParamsToFile")
    save({str(i): tensor(array) for i, array in enumerate(arrays)}, str(path))
    return path


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


@cache
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


def request_amx() -> None:
    if platform.system() != "Linux" or ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA):
        raise IntqError(
            "this library uses AMX and the operating system denies it here; compile for another instruction set, "
            'e.g. target "llvm -mcpu=icelake-server"'
        )
