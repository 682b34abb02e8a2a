"""Interval arithmetic as a backend: runs an op's own body on bounds, and so proves every width from the one body."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from intq.errors import UnprovenError
from intq.ops import OPS
from intq.ops.attention import FAR, LARGEST, ZERO_POINT, weight_of
from intq.ops.contract import masked
from intq.ops.op import Attrs, Constants
from intq.value import DTYPE_RANGE, Value


@dataclass(frozen=True)
class Interval:
    """Every integer of [low, high], elementwise; ``low`` and ``high`` are arrays of Python integers, which never wrap.

    ``width`` is that of the machine integer which holds it in every other backend: 32 bits, 64 after ``wide``.
    """

    low: np.ndarray
    high: np.ndarray
    width: int = 32
    __array_ufunc__ = None  # array + Interval is Interval.__radd__, not an array of Intervals

    def __post_init__(self) -> None:
        for side in ("low", "high"):
            object.__setattr__(self, side, _unbounded(getattr(self, side)))
        bits = self.bits
        if bits > self.width:
            raise UnprovenError(f"needs {bits} bits, has {self.width}")

    @property
    def bits(self) -> int:
        """Bits of the smallest two's-complement integer that holds the interval."""
        return 1 + max(_magnitude(self.low.min()), _magnitude(self.high.max()))

    def _operate(self, other, operation) -> Interval:
        other = other if isinstance(other, Interval) else exactly(other, self.width)
        corners = [_unbounded(operation(p, q)) for p in (self.low, self.high) for q in (other.low, other.high)]
        return Interval(np.minimum.reduce(corners), np.maximum.reduce(corners), max(self.width, other.width))

    def __add__(self, other) -> Interval:
        return self._operate(other, lambda p, q: p + q)

    def __sub__(self, other) -> Interval:
        return self._operate(other, lambda p, q: p - q)

    def __mul__(self, other) -> Interval:
        return self._operate(other, lambda p, q: p * q)

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, index) -> Interval:
        return Interval(self.low[index], self.high[index], self.width)


def _unbounded(value) -> np.ndarray:
    """An array of Python's integers. (NumPy makes scalars of 0-d arrays, and int64 of those, which wraps.)"""
    return np.asarray(value).astype(object)


def _each(function, x: np.ndarray) -> np.ndarray:
    return _unbounded(np.vectorize(function, otypes=[object])(x))


def _magnitude(x: int) -> int:
    return int(x if x >= 0 else ~x).bit_length()


def exactly(value, width: int = 64) -> Interval:
    """The interval that holds one known integer (elementwise)."""
    return Interval(value, value, width)


class IntervalDialect:
    """How bodies are spelled on bounds (see :mod:`intq.fixedpoint`); ``sum_bits``: of the widest 32-bit sum it met."""

    def __init__(self) -> None:
        self.sum_bits = 0

    @staticmethod
    def wide(x) -> Interval:
        x = x if isinstance(x, Interval) else exactly(x, 32)
        return Interval(x.low, x.high, 64)

    @staticmethod
    def shift_right(x: Interval, shift) -> Interval:
        shift = np.asarray(shift).astype(object)
        return Interval(x.low >> shift, x.high >> shift, x.width)

    @staticmethod
    def clamp(x: Interval, low: int, high: int) -> Interval:
        return Interval(np.clip(x.low, low, high), np.clip(x.high, low, high), x.width)

    @staticmethod
    def shift_left(x: Interval, places: int) -> Interval:
        return Interval(x.low << places, x.high << places, x.width)

    @staticmethod
    def low_bits(x: Interval, count: int) -> Interval:
        mask, same = (1 << count) - 1, (x.low >> count) == (x.high >> count)
        return Interval(np.where(same, x.low & mask, 0), np.where(same, x.high & mask, mask), x.width)

    @staticmethod
    def narrow(x: Interval) -> Interval:
        return Interval(x.low, x.high, 32)

    @staticmethod
    def within(x: Interval, low: int, high: int) -> Interval:
        """The part of an interval in which its values are known to lie (a proof on paper, checked by the reference)."""
        return Interval(np.clip(x.low, low, high), np.clip(x.high, low, high), x.width)

    @staticmethod
    def isqrt(x: Interval) -> Interval:
        return Interval(_each(math.isqrt, x.low), _each(math.isqrt, x.high), x.width)

    @staticmethod
    def leading(x: Interval) -> tuple[Interval, Interval]:
        if x.low.min() < 1 or x.high.max() >= 2**62:
            raise UnprovenError(
                f"the argument of a logarithm lies in [{x.low.min()}, {x.high.max()}], not in [1, 2**62)"
            )
        place = Interval(_each(_magnitude, x.low) - 1, _each(_magnitude, x.high) - 1, x.width)
        return place, Interval(np.full_like(x.low, 2**61), np.full_like(x.high, 2**62 - 1), x.width)

    @staticmethod
    def quotient(n: Interval, d: Interval) -> Interval:
        if d.low.min() < 1 or n.low.min() < 0:
            raise UnprovenError("a quotient cannot be proven to be of a positive divisor and a number not negative")
        return Interval(n.low // d.high, n.high // d.low, n.width)

    @staticmethod
    def concat(parts, axis: int) -> Interval:
        low, high = (np.concatenate([getattr(part, side) for part in parts], axis) for side in ("low", "high"))
        return Interval(low, high, parts[0].width)

    @staticmethod
    def reciprocal(d: Interval, bits: int) -> Interval:
        if d.low.min() < 1:
            raise UnprovenError("a divisor cannot be proven to be positive")
        return Interval((1 << bits) // d.high, (1 << bits) // d.low, d.width)

    def matmul(self, a: Interval, b: Interval, terms: int) -> Interval:
        return self.row_sum(a * b, terms)

    def row_sum(self, x: Interval, terms: int) -> Interval:
        """Of every partial sum of up to ``terms`` values."""
        try:
            total = Interval(np.minimum(x.low * terms, x.low), np.maximum(x.high * terms, x.high), x.width)
        except UnprovenError as error:
            raise UnprovenError(f"a sum of up to {terms} values {error}") from None
        if total.width == 32:
            self.sum_bits = max(self.sum_bits, total.bits)
        return total

    frame_sum = row_sum

    @staticmethod
    def row_max(x: Interval) -> Interval:
        return x

    @staticmethod
    def swap(x: Interval) -> Interval:
        return x

    @staticmethod
    def lookup(table: np.ndarray, x: Interval) -> Interval:
        reached = np.asarray(table)[int(x.low.min()) : int(x.high.max()) + 1].astype(object)
        return Interval(reached.min(), reached.max())


_TABLES = ("table", "curve")
_IN_LOOPS = ("weight", "pad_value", "word", "word_multiplier", "position", "segment")  # constants that bodies never see


@dataclass(frozen=True)
class Bounds:
    """What is proven of a node: its output's range and the bits of its widest 32-bit accumulator."""

    low: int
    high: int
    accumulator_bits: int


def bounds(op: str, inputs: tuple[Value, ...], attrs: Attrs, constants: Constants, dtype: str) -> Bounds:
    """The proven range of a node's output.

    Raises UnprovenError when some intermediate result cannot be proven to fit its width, or the output its dtype.
    """
    operation = OPS[op]
    ranges = tuple(Interval(x.low, x.high) for x in inputs)
    if operation.loop == "move":
        pad = [int(v) for v in constants.get("pad_value", ())]
        low, high = min([x.low for x in inputs] + pad), max([x.high for x in inputs] + pad)
        bits = 0
    else:
        dialect = IntervalDialect()
        operands = _LOOPS[operation.loop](dialect, ranges, attrs, constants)
        exact = {k: v if k in _TABLES else v.astype(object) for k, v in constants.items() if k not in _IN_LOOPS}
        if operation.loop == "attention":
            _prove_weights(dialect, len(inputs) > 3, attrs, exact)
        result = operation.body(dialect, operands, exact, attrs)
        low, high = int(result.low.min()), int(result.high.max())
        bits = max(operands[0].bits, dialect.sum_bits)
    least, most = DTYPE_RANGE[dtype]
    if low < least or high > most:
        raise UnprovenError(
            f"its results lie in [{low}, {high}], which {dtype} cannot hold; clamp it or widen the dtype"
        )
    return Bounds(low, high, bits)


def _weighted_sum(L, ranges, attrs, constants):
    """Bounds of every partial sum of weight * x, in any order: negative and positive products summed apart."""
    x, *further = ranges
    pad = constants.get("pad_value", np.zeros(0, np.uint8))
    low, high = (int(f([v, *pad.tolist()])) for f, v in ((min, x.low), (max, x.high)))
    weight = constants["weight"].reshape(len(constants["weight"]), -1)
    # int64 is enough here: at most 2**7 * 2**31 * the count of weights of a channel, which memory limits
    positive = np.maximum(weight, 0).sum(axis=1, dtype=np.int64).astype(object)
    negative = np.minimum(weight, 0).sum(axis=1, dtype=np.int64).astype(object)
    least = positive * min(low, 0) + negative * max(high, 0)
    most = positive * max(high, 0) + negative * min(low, 0)
    try:
        return (Interval(least, most), *further)
    except UnprovenError as error:
        terms = weight.shape[1]
        raise UnprovenError(f"accumulator {error}; lower the weights' bits or split its {terms} products") from None


def _weighted_frames(L, ranges, attrs, constants):
    return _weighted_sum(L, ranges[:-1] if masked(ranges, constants) else ranges, attrs, constants)


def _window_sum(L, ranges, attrs, constants):
    (x,) = ranges
    pad = [int(v) for v in constants["pad_value"]]
    count = attrs["kernel"][0] * attrs["kernel"][1]
    return (Interval(min(0, x.low.item(), *pad) * count, max(0, x.high.item(), *pad) * count),)


def _masked_sum(L, ranges, attrs, constants):
    x, mask = ranges
    return L.row_sum(x * mask, attrs["longest"]), L.row_sum(mask, attrs["longest"])


def _heads(L, ranges, attrs, constants):
    return (*(x - ZERO_POINT for x in ranges[:3]), *ranges[3:])


def _prove_weights(L, masked: bool, attrs, constants) -> None:
    """What attention's body takes for granted: the largest score's weight is 255, that of a masked one is 0."""
    reach = 2 * ZERO_POINT**2 * attrs["size"]  # how far two unmasked scores may be apart
    cases = [(exactly(0, 32), LARGEST, "of a row's largest score")]
    if masked:
        cases.append((Interval(FAR - reach, FAR + reach), 0, "of a masked score"))
    for below, expected, which in cases:
        weight = weight_of(L, below, constants, attrs)
        if (weight.low.item(), weight.high.item()) != (expected, expected):
            raise UnprovenError(
                f"the weight {which} must be {expected}, it lies in [{weight.low}, {weight.high}]; "
                "fit the curve to 255 exp(-x) up to x = 6.3 or further, and reach its end by the score's multiplier"
            )


def _framed(L, ranges, attrs, constants):
    x = Interval(np.minimum(ranges[0].low, 0), np.maximum(ranges[0].high, 0))  # zeros beyond the ends
    return x, x


def _numbered(L, ranges, attrs, constants):
    return ranges[1], Interval(1, 2**31 - 1)


def _embedded(L, ranges, attrs, constants):
    tables = (constants[k] for k in ("word", "word_multiplier", "position", "segment"))
    return tuple(Interval(int(t.min()), int(t.max())) for t in tables)


def _unchanged(L, ranges, attrs, constants):
    return ranges


_LOOPS = {
    "pointwise": _unchanged,
    "rows": _unchanged,
    "tokens": _masked_sum,
    "attention": _heads,
    "spectrum": _framed,
    "frames": _unchanged,
    "mask": _numbered,
    "embedding": _embedded,
    "max2d": _unchanged,
    "conv1d": _weighted_frames,
    "conv2d": _weighted_frames,
    "linear": _weighted_sum,
    "sum2d": _window_sum,
}
