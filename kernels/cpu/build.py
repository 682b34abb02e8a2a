"""Small words for writing CPU kernels: 64-bit loops, one parallel region per kernel, byte copies."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.ir import Call, PointerType, PrimType
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import i64, ramp

STACK_BYTES = 1024
_loops = []  # the parallel loops that are being written
CPU = 1  # TVM's number of the device


def parallel_region():
    """One launch of the thread pool; inside, :func:`parallel` loops share the work and setup is done once a thread."""
    return T.attr(tirx.const(0), "pragma_parallel_launch_point", 1)


@contextmanager
def parallel(extent, barrier: bool = False):
    """A loop cut into one contiguous piece per thread; ``barrier``: no thread goes on before all have done theirs."""
    wait = T.attr(tirx.const(0), "pragma_parallel_barrier_when_finish", 1) if barrier else nullcontext()
    once = isinstance(extent, int) and extent == 1  # TVM would drop the loop, and every thread would run the body
    with wait, T.parallel(i64(0), i64(2 if once else extent)) as i:
        _loops.append(i)
        try:
            if once:
                with T.If(i < 1), T.Then():
                    yield i64(0)
            else:
                yield i
        finally:
            _loops.pop()


def serial(extent):
    """A loop with a 64-bit counter."""
    return T.serial(i64(0), i64(extent))


def copy(target, to, source, at, count: int, width: int = 64) -> None:
    """target[to : to + count] = source[at : at + count], in vectors of ``width`` elements, then smaller ones."""
    whole, done = count // width, 0
    if whole > 4:
        with serial(whole) as i:
            T.buffer_store(target, source[ramp(at + i * width, width)], [ramp(to + i * width, width)])
        done = whole * width
    while done < count:
        while width > count - done:
            width //= 2
        T.buffer_store(target, source[ramp(at + done, width)], [ramp(to + done, width)])
        done += width


def scratch(size: int, dtype: str):
    """A buffer that all threads share; outside the parallel region."""
    buffer = T.alloc_buffer((size,), dtype, scope="global", align=64)
    # TVM shrinks an allocation to the elements that it sees used, and of an AMX tile it sees the address of one
    T.buffer_store(buffer, tirx.const(0, dtype), [i64(size - 1)])
    return buffer


@contextmanager
def workspace(size, dtype: str):
    """A buffer of one thread; at the top of the parallel region, where it is taken once a thread. Outside: of all.

    Asked for explicitly: an allocation that TVM sees it moves out of the region, where all threads would share it.
    """
    bits = 8 * np.dtype(dtype).itemsize
    call = tirx.op.TVMBackendAllocWorkspace(CPU, 0, (i64(size) * (bits // 8)).astype("uint64"), 0, bits)
    pointer = T.Bind(Call(call.op, call.args, ret_ty=PointerType(PrimType(dtype))))
    yield T.decl_buffer((size,), dtype, data=pointer, align=64)
    T.evaluate(tirx.op.TVMBackendFreeWorkspace(CPU, 0, pointer))


@dataclass(frozen=True)
class State:
    """A thread's int64 numbers by name, in memory, where they outlast a unit of work.

    By way of memory TVM's simplifier does not see where they come from: on nested divisions by each other it takes
    longer than anybody waits.
    """

    memory: object
    names: tuple[str, ...]

    def __getitem__(self, name: str):
        return T.Bind(self.memory[i64(self.names.index(name))])

    def __setitem__(self, name: str, value) -> None:
        T.buffer_store(self.memory, i64(value), [i64(self.names.index(name))])


@contextmanager
def state(*names: str):
    """A State at the top of the parallel region, see :func:`workspace`."""
    with workspace(len(names), "int64") as memory:
        yield State(memory, names)


def keep_last(extent, numbers: State) -> None:
    """numbers["last"] = the last iteration that ``parallel(extent)`` gives this thread."""
    with parallel(extent) as i:
        numbers["last"] = i


def local(size: int, dtype: str):
    """A small buffer of one thread, on its stack; used at constant places only, it becomes registers.

    In parallel loops only: from elsewhere in a region TVM moves it out, and all threads would share it. TVM keeps less
    than 1 KB on the stack. In both cases :func:`workspace` is there.
    """
    if not _loops:
        raise ValueError("a local buffer outside of a parallel loop would be all threads'")
    if size * np.dtype(dtype).itemsize >= STACK_BYTES:
        raise ValueError(f"{size} {dtype} are too many for the stack")
    return T.alloc_buffer((size,), dtype, scope="global", align=64)
