"""The harness that runs generated CUDA on the CPU, against NumPy: fragments, shuffles, barriers, what it refuses."""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
import simt
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

ORDERS = (0, -1, 1, 2)  # ascending, descending, two shuffles


@dataclass(frozen=True)
class Function:
    """What TVM says of a kernel, for one that is written by hand."""

    arg_types: tuple
    launch_param_tags: tuple[str, ...] = ("blockIdx.x", "threadIdx.x")


def cuda(parameters: str, body: str, *tags: str):
    """One kernel of CUDA source; call it with the arguments, the blocks and the threads."""
    source = f'extern "C" __global__ void kernel({parameters}) {{\n{body}\n}}\n'
    function = Function(tuple(parameters.split(",")), ("blockIdx.x", "threadIdx.x", *tags))
    return simt.Kernels(simt.build(source, {"kernel": function}))["kernel"]


# ---- mma ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mma:
    """An instruction, and where a lane's elements lie: as the PTX ISA writes it for each shape."""

    m: int
    k: int
    bits: int

    def a(self, lane: int) -> list[tuple[int, int]]:
        """(row, k) of each element of the lane's registers of A."""
        group, thread = divmod(lane, 4)
        match self.m, self.k, self.bits:
            case 8, 16, 8:
                return [(group, thread * 4 + i) for i in range(4)]
            case 8, 32, 4:
                return [(group, thread * 8 + i) for i in range(8)]
            case 16, 16, 8:
                return [(group if i < 4 else group + 8, thread * 4 + (i & 3)) for i in range(8)]
            case 16, 32, 8:
                upper = lambda i: i < 4 or 8 <= i < 12  # noqa: E731
                return [
                    (group if upper(i) else group + 8, thread * 4 + (i & 3) + (0 if i < 8 else 16)) for i in range(16)
                ]
            case 16, 32, 4:
                return [(group if i < 8 else group + 8, thread * 8 + (i & 7)) for i in range(16)]
            case _:
                upper = lambda i: i < 8 or 16 <= i < 24  # noqa: E731
                return [
                    (group if upper(i) else group + 8, thread * 8 + (i & 7) + (0 if i < 16 else 32)) for i in range(32)
                ]

    def b(self, lane: int) -> list[tuple[int, int]]:
        """(k, column) of each element of the lane's registers of B."""
        group, thread = divmod(lane, 4)
        each = 32 // self.bits
        halves = self.k // (4 * each)
        return [
            (thread * each + i % each + (0 if i < each else 4 * each), group) for i in range(each * halves)
        ]  # two registers only where k is twice as long

    def c(self, lane: int) -> list[tuple[int, int]]:
        """(row, column) of each register of C and D."""
        group, thread = divmod(lane, 4)
        return [(group if i < 2 else group + 8, thread * 2 + (i & 1)) for i in range(self.m // 4)]

    def name(self, a: str, b: str, saturate: bool) -> str:
        kind = f"{a}{self.bits}.{b}{self.bits}"
        return f"mma.sync.aligned.m{self.m}n8k{self.k}.row.col{'.satfinite' if saturate else ''}.s32.{kind}.s32"


SHAPES = [Mma(8, 16, 8), Mma(16, 16, 8), Mma(16, 32, 8), Mma(8, 32, 4), Mma(16, 32, 4), Mma(16, 64, 4)]
VARIANTS = list(product(range(len(SHAPES)), "us", "us", (False, True)))


@cache
def fragments() -> simt.Kernels:
    """Every mma as a kernel: a warp's registers in, its registers out."""
    source, functions = "", {}
    for number, (shape, a, b, saturate) in enumerate(VARIANTS):
        mma, n = SHAPES[shape], 0
        groups, outs, ins = [], [], []
        counts = [len(where(0)) * (mma.bits if where != mma.c else 32) // 32 for where in (mma.c, mma.a, mma.b, mma.c)]
        for register, count in zip("dabc", counts, strict=True):
            groups.append("{" + ", ".join(f"%{n + i}" for i in range(count)) + "}")
            n += count
            (outs if register == "d" else ins).extend(
                f'"{"=" if register == "d" else ""}r"({register}[lane * {count} + {i}])' for i in range(count)
            )
        text = f"{mma.name(a, b, saturate)} {', '.join(groups)};"
        source += f"""extern "C" __global__ void k{number}(uint32_t* a, uint32_t* b, uint32_t* c, uint32_t* d) {{
          int lane = threadIdx.x;
          asm volatile("{text}" : {", ".join(outs)} : {", ".join(ins)}); }}\n"""
        functions[f"k{number}"] = Function((0, 0, 0, 0))
    return simt.Kernels(simt.build(source, functions))


def registers(matrix: np.ndarray, where, bits: int) -> np.ndarray:
    """A warp's registers (32, words) of a matrix."""
    elements = np.array([[matrix[place] for place in where(lane)] for lane in range(32)], np.int64)
    words = (elements & ((1 << bits) - 1)).reshape(32, -1, 32 // bits) << (np.arange(32 // bits) * bits)
    return words.sum(-1).astype(np.uint32)


@given(st.sampled_from(range(len(VARIANTS))), st.integers(0, 2**32), st.booleans(), st.sampled_from(ORDERS))
def test_mma(number, seed, extremes, order):
    shape, a_sign, b_sign, saturate = VARIANTS[number]
    mma, rng = SHAPES[shape], np.random.default_rng(seed)

    def draw(sign, bits, size):
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if sign == "s" else (0, (1 << bits) - 1)
        return rng.choice([low, high], size) if extremes else rng.integers(low, high + 1, size)

    a, b, c = draw(a_sign, mma.bits, (mma.m, mma.k)), draw(b_sign, mma.bits, (mma.k, 8)), draw("s", 32, (mma.m, 8))
    exact = c + a @ b
    expected = np.clip(exact, -(2**31), 2**31 - 1) if saturate else exact
    inputs = registers(a, mma.a, mma.bits), registers(b, mma.b, mma.bits), registers(c, mma.c, 32)
    d = np.zeros((32, mma.m // 4), np.uint32)
    fragments()[f"k{number}"](*inputs, d, 1, 32, order=order)
    assert np.array_equal(d, registers(expected, mma.c, 32))


# ---- the rest of a warp --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count, transposed):
    outs = ", ".join(f"%{i}" for i in range(count))
    name = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    bound = ", ".join(f'"=r"(out[lane * {count} + {i}])' for i in range(count))
    kernel = cuda(
        "uint4* x, uint32_t* rows, uint32_t* out",
        f"""__shared__ alignas(64) uint4 s[64];
        int lane = threadIdx.x;
        s[lane] = x[lane]; s[lane + 32] = x[lane + 32];
        __syncwarp();
        unsigned address = __cvta_generic_to_shared(&s[rows[lane]]);
        asm volatile("{name} {{{outs}}}, [%{count}];" : {bound} : "r"(address));""",
    )
    rng = np.random.default_rng(count)
    x, rows = rng.integers(0, 2**16, (64, 8)).astype(np.uint16), rng.permutation(64)[:32].astype(np.uint32)
    out = np.zeros((32, count), np.uint32)
    kernel(x, rows, out, 1, 32)
    for i in range(count):
        matrix = x[rows[8 * i : 8 * i + 8]]
        expected = np.ascontiguousarray(matrix.T if transposed else matrix).reshape(32, 2)
        assert np.array_equal(out[:, i : i + 1].copy().view(np.uint16), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_and_votes(order):
    kernel = cuda(
        "int* x, int64_t* y, int* out",
        """int lane = threadIdx.x;
        int* o = out + lane * 9;
        o[0] = __shfl_sync(0xffffffff, x[lane], lane / 3, 32);
        o[1] = __shfl_xor_sync(0xffffffff, x[lane], 5, 32);
        o[2] = __shfl_down_sync(0xffffffff, x[lane], 3, 8);
        o[3] = __shfl_up_sync(0xffffffff, x[lane], 3, 8);
        o[4] = __ballot_sync(0xffffffff, x[lane] & 1);
        o[5] = (int)(__shfl_xor_sync(0xffffffff, y[lane], 16, 32) >> 32);
        o[6] = lane < 16 ? __shfl_xor_sync(0x0000ffff, x[lane], 1) : __shfl_xor_sync(0xffff0000, x[lane], 2);
        o[7] = __reduce_max_sync(0xffffffff, x[lane]);
        o[8] = __dp4a(x[lane], x[lane ^ 1], 7);""",
    )
    rng = np.random.default_rng(0)
    x, y = rng.integers(-(2**31), 2**31, 32).astype(np.int32), rng.integers(-(2**63), 2**63, 32)
    out, lanes = np.zeros((32, 9), np.int32), np.arange(32)
    kernel(x, y, out, 1, 32, order=order)
    assert np.array_equal(out[:, 0], x[lanes // 3])
    assert np.array_equal(out[:, 1], x[lanes ^ 5])
    assert np.array_equal(out[:, 2], x[np.where(lanes % 8 < 5, lanes + 3, lanes)])
    assert np.array_equal(out[:, 3], x[np.where(lanes % 8 >= 3, lanes - 3, lanes)])
    assert np.array_equal(out[:, 4].astype(np.uint32), np.full(32, ((x & 1).astype(np.int64) << lanes).sum()))
    assert np.array_equal(out[:, 5], y[lanes ^ 16] >> 32)
    assert np.array_equal(out[:, 6], np.where(lanes < 16, x[lanes ^ 1], x[lanes ^ 2]))
    assert np.array_equal(out[:, 7], np.full(32, x.max()))
    words = x.view(np.int8).reshape(32, 4).astype(np.int32)
    assert np.array_equal(out[:, 8], (words * words[lanes ^ 1]).sum(1) + 7)


@given(st.integers(0, 2**32))
def test_arithmetic_instructions(seed):
    x = np.random.default_rng(seed).integers(-(2**31), 2**31, (3, 32)).astype(np.int32)
    x[:, ::5] %= 300  # near the ends of a byte
    out = np.zeros((7, 32), np.int32)
    arithmetic()(x, out, 1, 32)
    a, b, c = x.astype(np.int64)
    assert np.array_equal(out[0], a * b >> 32)
    assert np.array_equal(out[1].astype(np.uint32), (a.astype(np.uint32).astype(np.uint64) * b.astype(np.uint32) >> 32))
    assert np.array_equal(out[2], x[0] & x[1] | x[2])
    low = (np.clip(a, -128, 127) & 255) << 8 | np.clip(b, -128, 127) & 255
    assert np.array_equal(out[3].view(np.uint32), (c << 16 | low) & 0xFFFFFFFF)
    octets = np.concatenate([x[0].view(np.uint8).reshape(32, 4), x[1].view(np.uint8).reshape(32, 4)], 1)
    assert np.array_equal(out[4].view(np.uint8).reshape(32, 4), octets[:, [7, 0, 5, 2]])
    bytes_ = x[0].view(np.uint8).reshape(32, 4).astype(np.int64), x[1].view(np.int8).reshape(32, 4).astype(np.int64)
    assert np.array_equal(out[6], (a * b >> 16).astype(np.int32))
    assert np.array_equal(out[5], ((bytes_[0] * bytes_[1]).sum(1) + c).astype(np.int32))


@cache
def arithmetic():
    binary = 'asm("{} %0, %1, %2;" : "=r"(out[{}]) : "r"(a), "r"(b));'
    ternary = 'asm volatile("{} %0, %1, %2, %3{};" : "=r"(out[{}]) : "r"(a), "r"(b), "r"(c));'
    return cuda(
        "int* x, int* out",
        "int a = x[threadIdx.x], b = x[32 + threadIdx.x], c = x[64 + threadIdx.x]; out += threadIdx.x;"
        + binary.format("mul.hi.s32", 0)
        + binary.format("mul.hi.u32", 32)
        + ternary.format("lop3.b32", ", 0xEA", 64)
        + ternary.format("cvt.pack.sat.s8.s32.b32", "", 96)
        + 'asm("prmt.b32 %0, %1, %2, 0x2507;" : "=r"(out[128]) : "r"(a), "r"(b));'
        + ternary.format("dp4a.u32.s32", "", 160)
        + 'long long w; asm("mul.wide.s32 %0, %1, %2;" : "=l"(w) : "r"(a), "r"(b)); out[192] = (int)(w >> 16);',
    )


def test_copies_that_read_less():
    """By a size, by a predicate of the operand, and not at all by one of the instruction: what is left out is zero,
    and what is not copied is what was there."""
    head = '"cp.async.cg.shared.global [%0], [%1], 16'
    bound = ':: "r"((unsigned)__cvta_generic_to_shared(s + t * 4)), "l"(x + t * 4), "r"({}) : "memory");'
    predicate = '"{{ .reg .pred p; setp.ne.b32 p, %2, 0; {}cp.async.cg.shared.global [%0], [%1], 16{}; }}"'
    kernel = cuda(
        "int* x, int* out, int how",
        STAGE
        + "s[t] = -1; s[t + 32] = -1; __syncthreads(); if (t < 16) { if (how == 0) asm volatile("
        + f'{head}, %2;" {bound.format("t")} else if (how == 1) asm volatile('
        + f"{predicate.format('@p ', '')} {bound.format('t & 1')} else asm volatile("
        + f"{predicate.format('', ', p')} {bound.format('t & 1')} }}"
        + 'asm volatile("cp.async.wait_all;" ::: "memory"); __syncthreads(); out[t] = s[t]; out[t + 32] = s[t + 32];',
    )
    x, out, odd = np.arange(1, 65, dtype=np.int32), np.zeros(64, np.int32), np.arange(64) // 4 % 2 == 1
    kernel(x, out, 0, 1, 32)
    octets = np.where(np.arange(16) < np.arange(16)[:, None], x.view(np.uint8).reshape(16, 16), 0).astype(np.uint8)
    assert np.array_equal(out, octets.reshape(-1).view(np.int32))
    kernel(x, out, 1, 1, 32)
    assert np.array_equal(out, np.where(odd, x, -1))
    kernel(x, out, 2, 1, 32)
    assert np.array_equal(out, np.where(odd, 0, x))


# ---- a kernel of TVM's -----------------------------------------------------------------------------------------------


def staged_gemm(columns: int, depth: int, kind: str, copies: bool) -> tirx.PrimFunc:
    """out (n, columns) int32 = x (n, depth bytes) @ weight.T (columns, depth bytes), 16 x 16 a block of two warps.

    ``kind``: the mma. ``copies``: shared memory is filled by cp.async rather than through registers.
    """
    wide = kind.startswith("m16")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("gemm")
        T.func_attr({"tirx.noalias": True, "global_symbol": "gemm"})
        n = tirx.Var("n", "int64")
        x, weight, out = (
            T.match_buffer(T.arg(name, T.handle()), (rows, width), dtype)
            for name, rows, width, dtype in (
                ("x", n, depth // 4, "uint32"),
                ("w", columns, depth // 4, "uint32"),
                ("o", n, columns, "int32"),
            )
        )
        block, across, thread = (
            T.launch_thread("blockIdx.x", (n + 15) // 16),
            T.launch_thread("blockIdx.y", columns // 16),
            T.launch_thread("threadIdx.x", 64),
        )
        with block as i, across as j, thread as t:
            tiles = [T.alloc_buffer((256,), "uint32", scope=scope) for scope in ("shared", "shared.dyn")]
            a, b, c = (T.alloc_buffer((size,), "uint32", scope="local") for size in (8, 4, 4))
            lane, warp = t % 32, t // 32
            for r in range(4):
                T.buffer_store(c, tirx.const(0, "uint32"), [r])
            with T.serial(depth // 64) as k:
                T.evaluate(T.tvm_storage_sync("shared"))
                for source, tile, first, limit in ((x, tiles[0], i * 16, n), (weight, tiles[1], j * 16, columns)):
                    row, at = first + t // 4, k * 16 + t % 4 * 4
                    if copies:
                        kept = tirx.Select(row < limit, tirx.const(16, "uint32"), tirx.const(0, "uint32"))
                        to, origin = tile.access_ptr("w", offset=t * 4, extent=4), source.ptr_to([row, at])
                        T.evaluate(T.ptx["cp.async.cg.shared.global"](to, origin, 16, kept))
                    else:
                        value = tirx.if_then_else(
                            row < limit,
                            source[row, tirx.Ramp(at, 1, 4)],
                            tirx.Broadcast(tirx.const(0, "uint32"), 4),
                        )
                        T.buffer_store(tile, value, [tirx.Ramp(t * 4, 1, 4)])
                if copies:
                    T.evaluate(T.ptx["cp.async.commit_group"]())
                    T.evaluate(T.ptx["cp.async.wait_group"](0))
                T.evaluate(T.tvm_storage_sync("shared"))
                load = T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"]
                columns_at = (warp * 8 + lane % 8) * 16 + lane // 8 * 4
                T.evaluate(load(*(b[r] for r in range(4)), tiles[1].access_ptr("r", offset=columns_at, extent=4)))
                for half in range(2):
                    if wide:  # 16 rows, bytes 32 half to 32 half + 31
                        rows_at = lane % 16 * 16 + half * 8 + lane // 16 * 4
                    else:  # 8 rows, all 64 bytes
                        rows_at = (half * 8 + lane % 8) * 16 + lane // 8 * 4
                    registers = [a[half * 4 + r] for r in range(4)]
                    T.evaluate(load(*registers, tiles[0].access_ptr("r", offset=rows_at, extent=4)))
                mma = T.ptx[f"mma.sync.aligned.{kind}.s32"]
                for half in range(2):
                    if wide:
                        sums = [c[r] for r in range(4)]
                        T.evaluate(
                            mma(*sums, *(a[half * 4 + r] for r in range(4)), b[half * 2], b[half * 2 + 1], *sums)
                        )
                        continue
                    sums = [c[half * 2], c[half * 2 + 1]]
                    for r in range(4):
                        T.evaluate(mma(*sums, a[half * 4 + r], b[r], *sums))
            for r in range(4):
                row, column = i * 16 + r // 2 * 8 + lane // 4, j * 16 + warp * 8 + lane % 4 * 2 + r % 2
                with T.If(row < n), T.Then():
                    T.buffer_store(out, tirx.op.reinterpret("int32", c[r]), [row, column])
    return builder.get()


KINDS = {
    "m8n8k16.row.col.s32.u8.s8": ("sm_75", False),
    "m8n8k32.row.col.s32.u4.s4": ("sm_75", False),
    "m16n8k32.row.col.s32.u8.s8": ("sm_80", True),
    "m16n8k64.row.col.s32.u4.s4": ("sm_80", True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_staged_gemm(kind):
    arch, copies = KINDS[kind]
    columns, depth = 32, 192
    kernels = simt.compile({"gemm": staged_gemm(columns, depth, kind, copies)}, arch)
    rng = np.random.default_rng(0)
    for n, order in product((1, 15, 16, 40), ORDERS):
        x = rng.integers(0, 256, (n, depth)).astype(np.uint8)
        weight = rng.integers(0, 256, (columns, depth)).astype(np.uint8)
        if "4.s4" in kind:
            left, right = nibbles(x), (nibbles(weight) ^ 8) - 8
        else:
            left, right = x.astype(np.int32), weight.view(np.int8).astype(np.int32)
        out = np.full((n, columns), -1, np.int32)
        kernels["gemm"](x.view(np.uint32), weight.view(np.uint32), out, order=order)
        assert np.array_equal(out, left @ right.T)


def nibbles(x: np.ndarray) -> np.ndarray:
    return np.stack([x & 15, x >> 4], -1).reshape(len(x), -1).astype(np.int32)


def test_indices_in_three_dimensions():
    tags = [f"{kind}Idx.{axis}" for axis in "zyx" for kind in ("block", "thread")]
    source = """extern "C" __global__ void kernel(int* out) {
      int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      int last = __shfl_sync(0xffffffff, thread, 31);
      out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + last; }"""
    kernels = simt.Kernels(simt.build(source, {"kernel": Function(("int*",), tuple(tags))}))
    for order in ORDERS:
        out = np.zeros((3 * 2 * 5, 4 * 2 * 8), np.int32)
        kernels["kernel"](out, 3, 4, 2, 2, 5, 8, order=order)
        assert np.array_equal(out, np.arange(30)[:, None] * 1000 + np.repeat([31, 63], 32))


# ---- what is refused -----------------------------------------------------------------------------------------------

ARRAYS = "int* x, int* out"
STAGE = "__shared__ alignas(64) int s[64]; int t = threadIdx.x;"
ASYNC = (
    'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((unsigned)__cvta_generic_to_shared(s + t * 4)), '
    '"l"(x + t * 4) : "memory"); asm volatile("cp.async.commit_group;");'
)
WRONG = {
    "a race": (STAGE + "s[t] = x[t]; out[t] = s[t ^ 32];", "which thread .* with no barrier in between"),
    "a race within a warp": (STAGE + "s[t] = x[t]; out[t] = s[t ^ 1];", "which thread .* with no barrier"),
    "a barrier that some miss": (
        STAGE + "if (t < 32) __syncthreads();",
        "warp 0 lanes 0-31 wait at __syncthreads; warp 1 lanes 0-31 have ended",
    ),
    "lanes that do not come": (
        STAGE + 'if (t != 5) asm volatile('
        '"mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %5};" '
        ': "=r"(out[0]), "=r"(out[1]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]));',
        r"warp 0 lanes 0-4,6-31 wait at mma\.sync\S*; warp 0 lanes 5 have ended",
    ),
    "lanes at different instructions": (
        STAGE + "if (t < 16) __shfl_xor_sync(0xffffffff, t, 1); else __ballot_sync(0xffffffff, t);",
        "warp 0 lanes 0-15 wait at __shfl_xor_sync; warp 0 lanes 16-31 wait at __ballot_sync",
    ),
    "a source outside of the mask": (STAGE + "if (t < 16) __shfl_xor_sync(0xffff, t, 16);", "not in the mask 0xffff"),
    "a copy not waited for": (
        STAGE + "if (t < 16) {" + ASYNC + "} __syncthreads(); out[t] = s[t];",
        "reads byte .* which a cp.async is still to write",
    ),
    "a tensor's end": (STAGE + "out[t + 1] = x[t];", "writes 4 bytes at byte 256 of a tensor of 256 bytes"),
    "before a tensor": (STAGE + "out[t] = x[t - 1];", "reads 4 bytes at byte -4 of a tensor of 256 bytes"),
    "the end of shared memory": (STAGE + "int* p = s + t; p[x[0] + 64] = 1;", "shared memory"),
    "the end of dynamic shared memory": (
        "extern __shared__ int d[]; d[threadIdx.x] = 1;",
        "writes byte .* of the 128 bytes of its dynamic shared memory",
    ),
    "a copy to nowhere": (STAGE + ASYNC, "cp.async writes 16 bytes at byte .*, outside of its shared"),
    "a misaligned row": (
        STAGE + 'int r; asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : '
        '"r"((unsigned)__cvta_generic_to_shared(s) + 4 * (t & 31))); out[t] = r;',
        "ldmatrix.* at an address that is not a multiple of 16",
    ),
    "a misaligned vector": (STAGE + "uint4 v = *(uint4*)(x + t); out[t] = v.x;", "must be a multiple of 16"),
    "an array's end": (STAGE + "int a[4]; a[t & 7] = t; out[t] = a[x[t] & 3];", "indexes an array of its own beyond"),
    "an overflow": (STAGE + "out[t] = 2147483647 - x[0] + t + 1;", "overflows a signed integer"),
    "too long a shift": (STAGE + "out[t] = 1 << (x[0] + t);", "shifts by"),
    "a division by zero": (STAGE + "out[t] = t / x[0];", "divides by zero"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("order", ORDERS)
def test_refused(wrong, order):
    body, expected = WRONG[wrong]
    with pytest.raises(RuntimeError, match=expected):
        refused(body)(np.zeros(64, np.int32), np.zeros(64, np.int32), 1, 64, 128, order=order)


@cache
def refused(body):
    return cuda(ARRAYS, body, simt.DYNAMIC)


def test_an_error_shows_the_line_and_leaves_the_harness_sound():
    right = cuda(ARRAYS, STAGE + "s[t] = x[t]; __syncthreads(); out[t] = s[63 - t];")
    x, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    with pytest.raises(
        RuntimeError, match=r"kernel, block \(0, 0, 0\), thread \(0, 0, 0\): .*\n    out\[t\] = x\[t \+ 64\];"
    ):
        cuda(ARRAYS, STAGE + "\nout[t] = x[t + 64];")(x, out, 1, 64)
    right(x, out, 1, 64)
    assert np.array_equal(out, x[::-1])


def test_an_unknown_instruction_is_named():
    with pytest.raises(simt.SimtError, match=r"'wgmma\.fence\.sync\.aligned'"):
        cuda(ARRAYS, 'asm volatile("wgmma.fence.sync.aligned;");')
    with pytest.raises(simt.SimtError, match="no such shape"):
        simt.translate(
            'asm("mma.sync.aligned.m8n8k64.row.col.s32.s8.s8.s32 {%0}, {%1}, {%2}, {%3};"'
            ' : "=r"(d) : "r"(a), "r"(b), "r"(c));'
        )
    with pytest.raises(simt.SimtError, match=r"does not take the kernels:\n(.|\n)*nothing_of_cuda"):
        cuda(ARRAYS, "nothing_of_cuda(x);")


def test_stale_data_without_checks_would_be_seen():
    """A copy lands when it is waited for, no earlier: of two groups, the second is still under way."""
    kernel = cuda(
        "int* x, int* out",
        STAGE + "__shared__ alignas(64) int e[64]; if (t < 16) {" + ASYNC + ASYNC.replace("(s + t", "(e + t")
        + 'asm volatile("cp.async.wait_group 1;" ::: "memory"); } __syncthreads(); out[t] = s[t]; '
        'if (t < 16) asm volatile("cp.async.wait_all;" ::: "memory"); __syncthreads(); out[t] += e[t];',
    )  # fmt: skip
    x, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    kernel(x, out, 1, 64)
    assert np.array_equal(out, 2 * x)
