"""Exact quotients and square roots of 62 bits: Newton's method in 32 bits, then what is left over, in 64.

The bodies' own rounds (:mod:`intq.fixedpoint`), a bit each, are some thousand dependent instructions for a row. Here
numbers in [1/4, 1) are units of 2**-32, and those in (1, 2] units of 2**-30; three rounds from a line bring

    x <- x (2 - d x)        1 / d        from 1 / 17 to 17**-8, d >= 1/2
    y <- y (3 - f y**2) / 2 1 / sqrt(f)  from 0.086 to 6e-8
"""

from __future__ import annotations

from tvm import tirx

from intq.kernels.cuda.build import i32, registers, store

ONE_BITS = 30
SLACK = 4  # units by which roundings can have made a reciprocal too large, or more
ROUNDS = 3
RECIPROCAL = (48 / 17, 32 / 17)  # of the line a - b d: off by 1 / 17 at most
ROOT = (2.1327, 1.2187)  # off by 0.086


def quotient(n, d):
    """floor(n / d), 0 <= n < 2**62, 1 <= d < 2**31, int64.

    The reciprocal is too small, by less than 2**-27 of it; so is every partial quotient, by that and by less than one.
    Three of them leave at most 2**-19 + d (1 + 2**-26) of n, which is less than 2 d.
    """
    d = _held(d)
    places = _held(tirx.call_pure_extern("int32", "__clz", d.astype("int32")))
    unit = _held(d.astype("uint32") << places.astype("uint32"))  # d in [1/2, 1)
    x = _line(RECIPROCAL, unit)
    for _ in range(ROUNDS):
        rest = _held(_u32(2 << ONE_BITS) - _high(unit, x))
        x = _held((_wide(x) * _wide(rest) >> _u64(ONE_BITS)).astype("uint32"))
    x = _held(_wide(x - _u32(SLACK)) << (places + 2).astype("uint64"))  # 2**64 / d
    total, rest = None, _held(n.astype("uint64"))
    for _ in range(3):
        part = _held(tirx.call_pure_extern("uint64", "__umul64hi", rest, x))
        rest = _held(rest - part * d.astype("uint64"))
        total = part if total is None else _held(total + part)
    return _held((total + (rest >= d.astype("uint64")).astype("uint64")).astype("int64"))


def isqrt(n):
    """floor(sqrt(n)), 0 <= n < 2**62, int64.

    Newton's (r + n / r) / 2 of an r that is off by 1 + 2**-23 sqrt(n) at most is sqrt(n) or less than one more.
    """
    n = _held(n)
    least = _held(tirx.max(n, tirx.const(1, "int64")))
    places = _held(tirx.call_pure_extern("int32", "__clzll", least) & i32(-2))
    unit = _held((least.astype("uint64") << places.astype("uint64") >> _u64(32)).astype("uint32"))  # in [1/4, 1)
    y = _line(ROOT, unit)
    for _ in range(ROUNDS):
        square = _wide(_high(unit, y)) * _wide(y) >> _u64(ONE_BITS)
        rest = _held(_u32(3 << ONE_BITS) - square.astype("uint32"))
        y = _held((_wide(y) * _wide(rest) >> _u64(ONE_BITS + 1)).astype("uint32"))
    root = _wide(unit) * _wide(y) >> ((places >> i32(1)) + ONE_BITS).astype("uint64")
    root = _held(tirx.min(tirx.max(root.astype("int64"), tirx.const(1, "int64")), tirx.const(2**31 - 1, "int64")))
    root = _held((root + quotient(n, root)) >> tirx.const(1, "int64"))
    return _held(root - (root * root > n).astype("int64"))


def _line(coefficients: tuple[float, float], unit):
    a, b = (_u32(round(c * 2**ONE_BITS)) for c in coefficients)
    return _held(a - _high(unit, b))


def _high(unit, x):
    """A number in units of 2**-32 times another: in the other's units."""
    return _held(tirx.call_pure_extern("uint32", "__umulhi", unit, x))


def _held(value):
    """The same in a register: TVM takes a minute to simplify such a chain of ``T.Bind``."""
    memory = registers(1, str(value.ty.dtype))
    store(memory, value, 0)
    return memory[0]


def _wide(x):
    return x.astype("uint64")


def _u32(value: int):
    return tirx.const(value, "uint32")


def _u64(value: int):
    return tirx.const(value, "uint64")
