"""A loop of the multiply instruction of each instruction set, on registers alone."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import reinterpret, splat
from intq.kernels.build import i64, kernel, ramp
from intq.kernels.cpu import micro
from intq.kernels.cpu.build import local, parallel, parallel_region, serial


def loop(instruction_set: str, turns: int, instructions: int) -> tirx.PrimFunc:
    """The kernel (out (n,) int32): each 1024 of out is a thread's, which runs ``turns`` x ``instructions``."""

    def write(n, out):
        with parallel_region():
            if instruction_set == "amx":
                micro.amx_configure(16, 64)
            with parallel((n + 1023) // 1024) as thread:
                _RUN[instruction_set](out, thread * 1024, turns, instructions)
            if instruction_set == "amx":
                micro.amx_release()

    return kernel("peak", [(("n",), "int32")], write)


def _amx(out, at, turns: int, instructions: int) -> None:
    for tile in range(8):
        micro.amx_instruction("tilezero", micro.tile(tile))
    with serial(turns):
        for i in range(instructions):
            micro.amx_instruction("tdpbusd", micro.tile(i % 4), micro.tile(4 + i // 2 % 2), micro.tile(6 + i % 2))
    for tile in range(4):
        micro.amx_instruction("tilestored64", micro.tile(tile), T.address_of(out[at]), i64(64))


def _vectors(lanes: int, multiply):
    def run(out, at, turns: int, instructions: int) -> None:
        sums = [local(lanes, "int32") for _ in range(instructions)]
        all_ = ramp(0, lanes)
        for i in range(instructions):
            T.buffer_store(sums[i], splat(0, "int32", lanes), [all_])
        x = T.Bind(out[ramp(at, lanes)])
        with serial(turns):
            for i in range(instructions):
                T.buffer_store(sums[i], multiply(sums[i][all_], x), [all_])
        for i in range(instructions):
            T.buffer_store(out, sums[i][all_], [ramp(at + i * lanes, lanes)])

    return run


def _vpdpbusd(total, x):
    name = "llvm.x86.avx512.vpdpbusd.512"
    return tirx.call_llvm_pure_intrin("int32x16", name, total, reinterpret(x, "uint8x64"), reinterpret(x, "int8x64"))


def _vpmaddwd(total, x):
    words = reinterpret(x, "int16x16")
    # the first operand changes with the sum, or the product would be taken once, outside the loop
    return total + tirx.call_llvm_pure_intrin(
        "int32x8", "llvm.x86.avx2.pmadd.wd", reinterpret(total, "int16x16"), words
    )


_RUN = {
    "amx": _amx,
    "vnni": _vectors(16, _vpdpbusd),
    "avx2": _vectors(8, _vpmaddwd),
    "plain": _vectors(16, lambda total, x: total * x + x),
}
