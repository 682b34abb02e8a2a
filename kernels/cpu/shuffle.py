"""Square blocks of lanes in registers: turned over, or reduced row by row, in log2(lanes) stages of shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import lanes


def shuffle(vectors: Sequence, indices: Sequence[int]):
    """The elements at ``indices`` of the vectors laid end to end."""
    return tirx.Shuffle(list(vectors), [tirx.const(int(i), "int32") for i in indices])


def transpose(rows: Sequence) -> list:
    """L vectors of L lanes, turned over: lane i of vector j becomes lane j of vector i."""
    rows, stride = list(rows), len(rows) // 2
    while stride:
        for i in range(len(rows)):
            if not i & stride:
                rows[i], rows[i + stride] = map(T.Bind, _exchanged(rows[i], rows[i + stride], stride))
        stride //= 2
    return rows


def fold(rows: Sequence, operation: Callable):
    """L vectors of L lanes -> one vector whose lane i is vector i reduced by a commutative ``operation``."""
    rows = list(rows)
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [T.Bind(operation(*_exchanged(rows[i], rows[i + half], half))) for i in range(half)]
    return rows[0]


def _exchanged(x, y, stride: int) -> tuple:
    """(x, y) with the lanes of x whose number has the bit ``stride`` exchanged for those of y that lack it."""
    count = lanes(x)
    first = [lane + (count - stride if lane & stride else 0) for lane in range(count)]
    second = [lane + (count if lane & stride else stride) for lane in range(count)]
    return shuffle((x, y), first), shuffle((x, y), second)
