"""Sizes of symbolic axes: a name, or what windows moved over the named axis leave of it, ``(t + a) // b``.

A window of a stride ``b`` over an axis of size ``d`` has ``(d + c) // b`` places, and

    ((t + a) // b + c) // d  =  (t + a + b c) // (b d),

so whatever windows follow each other, one floor division says how many frames are left of ``t`` samples. Such a size is
written as a string, "t" or "(t+160)//320", which names equal sizes equally.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Dim = int | str

_FORM = re.compile(r"\((?P<name>[a-z]\w*)(?P<add>[+-]\d+)\)//(?P<divide>[1-9]\d*)")


def parts(dim: str) -> tuple[str, int, int]:
    """(name, a, b) of a symbolic size ``(name + a) // b``. Raises ValueError for a string that is none."""
    if dim.isidentifier():
        return dim, 0, 1
    match = _FORM.fullmatch(dim)
    if match is None:
        raise ValueError(f"expected a size such as 't' or '(t+160)//320', found {dim!r}")
    return match["name"], int(match["add"]), int(match["divide"])


def spelled(name: str, add: int, divide: int) -> str:
    """The one way in which ``(name + add) // divide`` is written."""
    return name if (add, divide) == (0, 1) else f"({name}{add:+d})//{divide}"


def floor_divided(dim: Dim, add: int, divide: int) -> Dim:
    """``(dim + add) // divide``."""
    if isinstance(dim, int):
        return (dim + add) // divide
    name, a, b = parts(dim)
    return spelled(name, a + b * add, b * divide)


def size(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The number that a size is where the named axes have the given ``sizes``; 0 where none is left."""
    if isinstance(dim, int):
        return dim
    name, add, divide = parts(dim)
    return max(0, (sizes[name] + add) // divide)


def fitted(name: str, count: Callable[[int], int], start: int = 2**20) -> str:
    """The size that ``count`` computes: how many frames are left of so many samples, ``start`` of them or more.

    Raises ValueError when it is not of the form ``(name + a) // b``.
    """
    reach = 2**40
    divide = round(reach / (count(start + reach) - count(start)))
    base, low, high = count(start), 0, divide  # the least step at which one more is counted lies in (low, high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(start + middle) > base else (middle, high)
    found = spelled(name, divide * (base + 1) - start - high, divide)
    for at in (start, *(start + divide + step for step in range(0, 3 * divide, 1 + divide // 7)), start + reach):
        if size(found, {name: at}) != count(at):
            raise ValueError(f"{at} samples leave {count(at)} frames, which no size of the form (t + a) // b is")
    return found
