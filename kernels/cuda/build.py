"""Small words for writing CUDA kernels: blocks and threads, 32-bit places, registers, shared memory, barriers.

Places are 32-bit: a tensor has fewer than 2**31 elements. Divisors are constants, which nvcc multiplies by; a GPU would
divide by way of floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

WARP = 32


def i32(value):
    """A TIR int32 of a Python integer; expressions pass."""
    return tirx.const(value, "int32") if isinstance(value, int) else value


def kernel(
    name: str, arguments: list[tuple[tuple, str]], body: Callable, names: tuple[str, ...] | None = None
) -> tirx.PrimFunc:
    """A PrimFunc over tensors of the given (shape, dtype); the names in a shape, such as "n", are symbolic sizes.

    ``body(n, *buffers)`` writes it with flat one-dimensional views of the tensors. n: the product of the names that
    lead the last tensor's shape, such as n samples of s tokens, or each of ``names`` where they are given.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        sizes = {d: tirx.Var(d, "int64") for shape, _ in arguments for d in shape if isinstance(d, str)}
        handles = [T.arg(f"a{i}", T.handle()) for i in range(len(arguments))]
        shapes = [[sizes[d] if isinstance(d, str) else tirx.const(d, "int64") for d in shape] for shape, _ in arguments]
        tensors = [T.match_buffer(h, s, dtype) for h, s, (_, dtype) in zip(handles, shapes, arguments, strict=True)]
        narrow = {d: size.astype("int32") for d, size in sizes.items()}
        flat = []
        for tensor, (shape, dtype) in zip(tensors, arguments, strict=True):
            count = math.prod((narrow[d] if isinstance(d, str) else i32(d) for d in shape), start=i32(1))
            flat.append(T.decl_buffer((count,), dtype, data=tensor.data))
        leading = [math.prod((narrow[d] for d in arguments[-1][0] if isinstance(d, str)), start=i32(1))]
        body(*(leading if names is None else [narrow[d] for d in names]), *flat)
    return builder.get()


@contextmanager
def blocks(threads: int, x, y=1, z=1, resident: int = 0):
    """(block's x, y, z, thread) of a launch of so many blocks of ``threads``.

    ``resident``: blocks that a multiprocessor has registers for at a time; 0 leaves that to the compiler.
    """
    bound = T.attr(i32(0), "tirx.launch_bounds_min_blocks_per_sm", i32(resident)) if resident else nullcontext()
    with (
        T.launch_thread("blockIdx.x", i32(x)) as bx,
        T.launch_thread("blockIdx.y", i32(y)) as by,
        T.launch_thread("blockIdx.z", i32(z)) as bz,
        T.launch_thread("threadIdx.x", i32(threads)) as thread,
        bound,
    ):
        yield bx, by, bz, thread


def view(buffer, dtype: str, size):
    """The same memory as elements of another type."""
    return T.decl_buffer((i32(size),), dtype, data=buffer.data)


def shared(size: int, dtype: str = "uint32"):
    """Memory of a block."""
    return T.alloc_buffer((size,), dtype, scope="shared", align=16)


def registers(size: int, dtype: str = "uint32"):
    """Numbers of a thread, in registers where they are used at constant places only."""
    return T.alloc_buffer((size,), dtype, scope="local")


def barrier() -> None:
    """No thread of the block goes on before all have come."""
    T.evaluate(tirx.op.tvm_storage_sync("shared"))


def warp_barrier() -> None:
    T.evaluate(T.cuda.warp_sync())


class when:
    """``with when(condition)``: what follows is done where the condition holds; always where it is None."""

    def __init__(self, condition):
        self.frames = [] if condition is None else [T.If(condition), T.Then()]

    def __enter__(self):
        for frame in self.frames:
            frame.__enter__()

    def __exit__(self, *error):
        for frame in reversed(self.frames):
            frame.__exit__(*error)


def unrolled(extent: int):
    """A loop that nvcc unrolls."""
    return T.unroll(i32(0), i32(extent))


def rolled(extent: int):
    """A loop that nvcc leaves one: its body is long."""
    return T.serial(i32(0), i32(extent), annotations={"disable_unroll": True})


def ramp(start, width: int):
    """The places of ``width`` consecutive elements."""
    return tirx.Ramp(i32(start), i32(1), width) if width > 1 else i32(start)


def store(buffer, value, at) -> None:
    T.buffer_store(buffer, value, [at])


def quotient(a, b: int):
    """a / b of a >= 0 and a constant."""
    if b & (b - 1) == 0:
        return a if b == 1 else a >> i32(b.bit_length() - 1)
    return tirx.truncdiv(a, i32(b))


def remainder(a, b: int):
    """a % b of a >= 0 and a constant."""
    if b & (b - 1) == 0:
        return i32(0) if b == 1 else a & i32(b - 1)
    return tirx.truncmod(a, i32(b))


def ceil_div(a, b: int):
    return -(-a // b) if isinstance(a, int) else tirx.truncdiv(a + (b - 1), i32(b))
