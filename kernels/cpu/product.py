"""Products of 16 rows by tiles of 16 columns, both operands in a thread's memory and K known only when they run.

    out[row, column] = first[column] + sum over k of a[row, k] * b[k, column]       (int32, exact)

``b`` lies tile by tile; a tile holds all of K for 16 columns, ``pair`` consecutive k of a column together.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import reinterpret, splat, vector_type
from intq.kernels.build import i64, ramp
from intq.kernels.cpu.build import local, serial
from intq.kernels.cpu.heads import LAYOUTS, ROWS, TILE, Layout
from intq.kernels.cpu.micro import amx_instruction, tile

AT_ONCE = 4  # rows, and at most as many tiles of columns, whose sums registers hold


@dataclass(frozen=True)
class Matrix:
    """Rows from ``buffer[at]`` on that lie ``pitch`` elements apart; of ``b``, ``pitch`` is K."""

    buffer: object
    at: object
    pitch: object

    def right_of(self, columns: int) -> Matrix:
        return Matrix(self.buffer, self.at + columns, self.pitch)

    def tile(self, number: int) -> Matrix:
        """The same from a tile of ``b`` on."""
        return self.right_of(number * TILE * self.pitch)


def product(isa: str, a: Matrix, b: Matrix, tiles: int, out: Matrix, first: Matrix | None = None) -> None:
    """16 rows of ``a`` by so many tiles of ``b``, whose K is a multiple of the layout's depth or of its block of keys.

    ``first``: one row, or with a pitch one for each; zeros if None. It may be ``out`` itself.
    """
    write = _amx if isa == "amx" else _vectors
    for c in range(0, tiles, AT_ONCE):
        begin = first and first.right_of(c * TILE)
        write(LAYOUTS[isa], a, b.tile(c), min(AT_ONCE, tiles - c), out.right_of(c * TILE), begin)


def _amx(layout: Layout, a: Matrix, b: Matrix, tiles: int, out: Matrix, first: Matrix | None) -> None:
    """Tiles 0..3 accumulate, 4 holds A, 5..7 hold B in turn (see :func:`intq.kernels.cpu.micro.amx_configure`)."""
    step = layout.depth
    for c in range(tiles):
        if first is None:
            amx_instruction("tilezero", tile(c))
        else:  # with a pitch of 0 every row of the tile is the same memory
            pitch = i64(4 * first.pitch)
            amx_instruction("tileloadd64", tile(c), T.address_of(first.buffer[first.at + c * TILE]), pitch)
    with serial(b.pitch // step) as s:
        amx_instruction("tileloadd64", tile(4), T.address_of(a.buffer[a.at + s * step]), i64(a.pitch))
        for c in range(tiles):
            place = T.address_of(b.buffer[b.tile(c).at + s * (TILE * step)])
            amx_instruction("tileloadd64", tile(5 + c % 3), place, i64(4 * TILE))
            amx_instruction("tdpbusd", tile(c), tile(4), tile(5 + c % 3))
    for c in range(tiles):
        amx_instruction("tilestored64", tile(c), T.address_of(out.buffer[out.at + c * TILE]), i64(4 * out.pitch))


def _vectors(layout: Layout, a: Matrix, b: Matrix, tiles: int, out: Matrix, first: Matrix | None) -> None:
    lanes, pair = layout.lanes, layout.pair
    at_once = min(tiles, layout.tiles)
    with serial(ROWS // AT_ONCE) as block:
        for c in range(0, tiles, at_once):
            columns = range(0, min(at_once, tiles - c) * TILE, lanes)
            sums = [local(at_once * TILE, "int32") for _ in range(AT_ONCE)]
            for column in columns:
                for r, total in enumerate(sums):
                    begin = splat(0, "int32", lanes)
                    if first:
                        row = (block * AT_ONCE + r) * first.pitch if first.pitch else 0
                        begin = first.buffer[ramp(first.at + row + (c * TILE + column), lanes)]
                    T.buffer_store(total, begin, [ramp(column, lanes)])
            with serial(b.pitch // pair) as k:
                right = {}
                for column in columns:
                    place = b.tile(c + column // TILE).at + (k * TILE + column % TILE) * pair
                    right[column] = T.Bind(b.buffer[ramp(place, lanes * pair)])
                for r, total in enumerate(sums):
                    left = T.Bind(a.buffer[ramp(a.at + (block * AT_ONCE + r) * a.pitch + k * pair, pair)])
                    for column in columns:
                        added = multiply_add(layout, total[ramp(column, lanes)], left, right[column])
                        T.buffer_store(total, added, [ramp(column, lanes)])
            for r, total in enumerate(sums):
                for column in columns:
                    place = out.at + (block * AT_ONCE + r) * out.pitch + (c * TILE + column)
                    T.buffer_store(out.buffer, total[ramp(column, lanes)], [ramp(place, lanes)])


def multiply_add(layout: Layout, total, left, right):
    """``total`` plus, in each of its lanes, the products of ``pair`` elements; a single ``pair`` goes to all lanes."""
    lanes, pair = layout.lanes, layout.pair

    def spread(x, dtype: str):
        if x.ty.dtype.lanes == lanes * pair:
            return x
        if pair == 1:
            return splat(x, dtype, lanes)
        return reinterpret(splat(reinterpret(x, "int32"), "int32", lanes), vector_type(dtype, lanes * pair))

    left, right = spread(left, layout.left), spread(right, layout.right)
    if pair == 4:
        return tirx.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", total, left, right)
    if pair == 2:
        return total + tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", left, right)
    return total + left.astype(vector_type("int32", lanes)) * right.astype(vector_type("int32", lanes))
