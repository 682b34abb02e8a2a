"""Functions of a wide value (GELU, tanh, exp, ...): a curve of 32 polynomials of degree two in int32 arithmetic.

A curve maps ``x`` in [0, 2**15), which stands for a real interval, to 8 or 16 bits. The top 5 bits choose the
polynomial, the low 10 are its argument, so that no division, no sign and no special case remains. Against the real
function its error is the segment's share of the third derivative, |f'''| h**3 / 192: on [-4, 4] GELU is met to 1e-4,
where I-BERT's polynomial (Kim et al. 2021, eq. 8) is 1.8e-2 off. (An 8-bit value takes a table of 256 entries instead,
``lookup``, which is correctly rounded.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intq.errors import IntqError
from intq.value import DTYPE_RANGE

SEGMENTS, PLACE_BITS = 32, 10
TOP = (SEGMENTS << PLACE_BITS) - 1  # the largest argument
# Of c1 and of c2, and of c0 with all that is added to it: everything then fits int32. Where the result has 8 bits the
# coefficients fit int16, and a kernel computes twice as many at a time; it costs 0.015 of a step.
COEFFICIENT_LIMIT = {"uint8": 2**13, "int16": 2**20}
LEVEL_LIMIT = {"uint8": 2**15, "int16": 2**29}
MAX_DROP = 16
MAX_LIFT = 4


def curve(L, x, coefficients, drop: int, low: int, high: int, lift=None, level: int = 0):
    """clamp(round(f(x)), low, high) for 0 <= x <= TOP: with ``i = x >> 10`` and ``t = x & 1023``

        (c0[i] + ((((c2[i] * t) >> 10) + c1[i]) * t >> 10)) >> drop

    ``coefficients``: c0, c1, c2, int32 of SEGMENTS entries each; ``drop`` fractional bits are rounded away at the end
    (the half is part of c0). All in int32. A dialect of real numbers has its own ``curve``, the polynomials unrounded.
    ``lift``: per channel, 0..MAX_LIFT: ``(((c0[i] + ...) << lift) + level) >> drop``, the function times ``2**lift``
    (the half and the zero point are then in ``level``).
    """
    if hasattr(L, "curve"):
        return L.curve(x, coefficients, drop, low, high, lift, level)
    c0, c1, c2 = coefficients
    i, t = L.shift_right(x, PLACE_BITS), L.low_bits(x, PLACE_BITS)
    slope = L.shift_right(L.lookup(c2, i) * t, PLACE_BITS) + L.lookup(c1, i)
    y = L.shift_right(slope * t, PLACE_BITS) + L.lookup(c0, i)
    if lift is not None:
        y = L.shift_left(y, lift) + level
    return L.clamp(L.shift_right(y, drop), low, high)


@dataclass(frozen=True)
class Curve:
    """``coefficients`` (3, SEGMENTS) int32 and ``drop`` of :func:`curve`; x = 0 is ``low``, x = TOP is ``high``."""

    coefficients: np.ndarray
    drop: int
    low: float
    high: float

    @property
    def step(self) -> float:
        """The real distance between neighbouring arguments."""
        return (self.high - self.low) / TOP


def fit(
    function: Callable[[np.ndarray], np.ndarray],
    low: float,
    high: float,
    scale: float,
    zero_point: int = 0,
    dtype: str = "uint8",
    half: bool = True,
) -> Curve:
    """The curve of ``function`` on [low, high] whose results are ``function(x) / scale + zero_point`` in ``dtype``.

    Each segment goes through the function's values at its three Chebyshev nodes (off by at most a quarter more than the
    best polynomial); its constant is then moved so that the integer arithmetic's own error is as small either way.
    ``half``: whether c0 holds the half that rounds to the nearest.
    Raises IntqError when the function is not finite on the interval.
    """
    if not low < high:
        raise IntqError(f"a curve needs an interval, got [{low}, {high}]")
    x = np.arange(SEGMENTS << PLACE_BITS, dtype=np.float64).reshape(SEGMENTS, -1)
    at = low + x * ((high - low) / TOP)
    nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(3) + 0.5) / 3)  # of a segment, in [0, 1]
    samples = function(at[:, :1] + nodes * ((high - low) / TOP * (1 << PLACE_BITS))) / scale + zero_point
    exact = function(at) / scale + zero_point
    if not (np.isfinite(samples).all() and np.isfinite(exact).all()):
        raise IntqError(f"the function is not finite on [{low}, {high}]; it has no curve there")
    most, steepest, furthest = DTYPE_RANGE[dtype][1], COEFFICIENT_LIMIT[dtype], LEVEL_LIMIT[dtype]
    real = np.linalg.solve(np.vander(nodes, 3, increasing=True), samples.T)  # (3, segments)
    drop = MAX_DROP
    while drop and (
        np.abs(real[1:]).max() * 2.0**drop >= steepest - 1
        or (max(np.abs(exact).max(), most) + 0.5) * 2.0**drop >= furthest - 8
    ):
        drop -= 1
    coefficients = np.clip(np.rint(real * 2.0**drop), -furthest, furthest).astype(np.int64)
    coefficients[1:] = np.clip(coefficients[1:], 1 - steepest, steepest - 1)
    t = np.arange(1 << PLACE_BITS)
    slope = ((coefficients[2, :, None] * t) >> PLACE_BITS) + coefficients[1, :, None]
    fine = ((slope * t) >> PLACE_BITS) + coefficients[0, :, None]
    error = exact * 2.0**drop - fine
    coefficients[0] += np.rint((error.max(1) + error.min(1)) / 2).astype(np.int64) + half * ((1 << drop) >> 1)
    coefficients[0] = np.clip(coefficients[0], -furthest, furthest - 1)  # what lies beyond is cut off in any case
    return Curve(coefficients.astype(np.int32), drop, low, high)
