"""A warp's products on tensor cores: which operands its lanes load from shared memory, and where its sums are.

The layouts are those of PTX ISA 9.7.15 (``mma``) and ``ldmatrix``, which brings four matrices of 8 rows x CHUNK bytes
at once: lane l names the row l % 8 of matrix l / 8 and gets of each the word l % 4 of its row l / 4. A product of
(m, n, k) takes m / 8 x (bytes of k) / CHUNK such matrices of A, rows first, and those chunks of 8 columns of W.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.cuda.build import WARP, i32, quotient, ramp, registers, remainder, store, unrolled
from intq.kernels.cuda.pack import swizzled
from intq.kernels.cuda.plan import CHUNK, STEP, Plan

MATRIX = 8  # rows
CHUNKS, WORDS = STEP // CHUNK, CHUNK // 4
AT_ONCE = 4  # matrices of a load


def shape(plan: Plan) -> tuple[int, int, int]:
    """(m, n, k) of a product."""
    return plan.arch.int4 if plan.nibbles else plan.arch.int8


def accumulators(plan: Plan):
    """A warp's sums, all zero: eight rows after eight rows, eight columns after eight, a thread's two neighbours."""
    rows, columns = plan.tile.warp
    count = rows * columns // WARP
    memory = registers(count)
    with unrolled(count) as i:
        store(memory, tirx.const(0, "uint32"), i)
    return memory


def products(plan: Plan, sums, memory, half, thread) -> None:
    """sums += A W over a step that lies in shared ``memory`` from word ``half`` on."""
    tile, (m, _, k) = plan.tile, shape(plan)
    rows, columns = tile.warp
    deep = k // plan.per_byte // CHUNK  # chunks of k that a product takes
    warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
    row = T.Bind(quotient(warp, tile.warps[1]) * rows)
    column = T.Bind(tile.rows + remainder(warp, tile.warps[1]) * columns)
    high = m // MATRIX
    left, right = registers(rows // MATRIX * deep), registers(columns // MATRIX * deep)
    with unrolled(CHUNKS // deep) as turn:
        _load(left, memory, half, row, rows, turn * deep, high, deep, lane)
        _load(right, memory, half, column, columns, turn * deep, 1, deep, lane)
        with unrolled(rows // MATRIX // high) as i, unrolled(columns // MATRIX) as j:
            a = [left[i * (high * deep) + part] for part in range(high * deep)]
            b = [right[j * deep + part] for part in range(deep)]
            places = [(i * high + part) * (columns // MATRIX) + j for part in range(high)]
            d = [sums[place * 2 + pair] for place in places for pair in range(2)]
            T.evaluate(_instruction(plan)(*d, *a, *b, *d))


def _load(target, memory, half, first, rows: int, chunk, high: int, deep: int, lane) -> None:
    """The matrices of ``rows`` rows from ``first`` on, ``deep`` chunks from ``chunk`` on: of ``high`` x 8 rows first
    the rows, then the chunks."""
    count = rows // MATRIX * deep
    for at in range(0, count, AT_ONCE):
        together = min(AT_ONCE, count - at)
        matrix = at + (quotient(lane, MATRIX) if together == AT_ONCE else remainder(quotient(lane, MATRIX), together))
        block, within = quotient(matrix, high * deep), remainder(matrix, high * deep)
        row = T.Bind(first + (block * high + remainder(within, high)) * MATRIX + remainder(lane, MATRIX))
        place = half + (row * CHUNKS + swizzled(row, chunk + quotient(within, high))) * WORDS
        load = getattr(T.ptx.ldmatrix.sync.aligned.m8n8, f"x{together}").shared.b16
        T.evaluate(load(*[target[at + i] for i in range(together)], T.address_of(memory[place])))


def _instruction(plan: Plan):
    m, n, k = shape(plan)
    a, b = ("u4", "s4") if plan.nibbles else ("u8", "s8")
    product = getattr(T.ptx.mma.sync.aligned, f"m{m}n{n}k{k}").row.col.s32
    return getattr(getattr(product, a), b).s32


def lay(plan: Plan, sums, number, memory, base, pitch: int, lane) -> None:
    """The eight rows ``number`` of a warp's sums into shared memory, rows ``pitch`` words apart from ``base`` on."""
    columns = plan.tile.warp[1]
    at = T.Bind(base + quotient(lane, 4) * pitch + remainder(lane, 4) * 2)
    with unrolled(columns // MATRIX) as j:
        place = (number * (columns // MATRIX) + j) * 2
        store(memory, sums[ramp(place, 2)], ramp(at + j * MATRIX, 2))


def byte_permute(a, b, selector: int):
    """The bytes of two words that the digits of ``selector`` name, lowest first."""
    return tirx.call_pure_extern("uint32", "__byte_perm", a, b, i32(selector))


def saturated_bytes(target, at, numbers) -> None:
    """Four int32 as a word of bytes, ``target[at]``: each clamped to uint8, the first lowest."""
    pack = T.ptx.cvt_pack.sat.u8.s32.b32
    a, b, c, d = numbers
    T.evaluate(pack(target[at], d, c, tirx.const(0, "uint32")))
    T.evaluate(pack(target[at], b, a, target[at]))
