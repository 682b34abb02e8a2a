"""Small kernels for a GPU, through TVM, for several tests; and a machine that has no CUDA but this environment's."""

import os
from functools import cache

import tvm
from tvm.script import tirx as T

from intq.kernels import targets
from intq.kernels.cuda import binary

PRODUCT8, PRODUCT4, QUOTIENT = "linear_0123456789ab", "linear_ba9876543210", "requantize_0123456789ab"


def product(int4: bool):
    """C (8, 8) = A W: rows of any number of words, in a loop that cannot be unrolled."""

    @T.prim_func(s_tir=True)
    def kernel(a: T.handle, w: T.handle, c: T.handle):
        T.func_attr({"tirx.noalias": True})
        words = T.int32()
        A = T.match_buffer(a, (8, words), "uint32")
        W = T.match_buffer(w, (8, words), "uint32")
        C = T.match_buffer(c, (8, 8), "uint32")
        for _ in T.thread_binding(1, thread="blockIdx.x"):
            for lane in T.thread_binding(32, thread="threadIdx.x"):
                s = T.alloc_buffer((2,), "uint32", scope="local")
                s[0] = T.uint32(0)
                s[1] = T.uint32(0)
                for k in range(words // 4):
                    if int4:
                        T.ptx.mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32(
                            s[0], s[1], A[lane // 4, k * 4 + lane % 4], W[lane // 4, k * 4 + lane % 4], s[0], s[1]
                        )
                    else:
                        T.ptx.mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32(
                            s[0], s[1], A[lane // 4, k * 4 + lane % 4], W[lane // 4, k * 4 + lane % 4], s[0], s[1]
                        )
                C[lane // 4, lane % 4 * 2] = s[0]
                C[lane // 4, lane % 4 * 2 + 1] = s[1]

    return kernel


def quotient():
    """What a kernel must not do: an integer division, which a GPU computes by a reciprocal in floating point."""

    @T.prim_func(s_tir=True)
    def kernel(A: T.Buffer((32,), "int32"), B: T.Buffer((32,), "int32"), C: T.Buffer((32,), "int32")):
        T.func_attr({"tirx.noalias": True})
        for _ in T.thread_binding(1, thread="blockIdx.x"):
            for lane in T.thread_binding(32, thread="threadIdx.x"):
                C[lane] = T.truncdiv(A[lane], B[lane])

    return kernel


@cache
def compiled(target: str = "nvidia/nvidia-t4"):
    """(executable, cubin, choice) of the three kernels."""
    chosen = targets.choose(target)
    kernels = {PRODUCT8: product(False), PRODUCT4: product(True), QUOTIENT: quotient()}
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    return *binary.build(module, chosen.target, chosen.isa.name), chosen


def bare(**variables: str) -> dict[str, str]:
    """An environment without any toolkit: no PATH, no CUDA_HOME."""
    hidden = ("PATH", "CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"PATH": ""} | variables
