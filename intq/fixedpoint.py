"""Integer arithmetic that every operation shares: the dyadic rescale, its multipliers, square root and reciprocal.

A *body* is a function over integer values and a dialect ``L`` that spells the few operations Python's operators lack
(``L.wide``, ``L.shift_right``, ``L.clamp``, ...). NumPy, torch, TVM, the interval arithmetic of the overflow proof and
the real arithmetic of the backward pass are dialects; the body is written once, here or in :mod:`intq.ops`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from intq.errors import IntqError

MULTIPLIER_BITS = 31  # multipliers lie in [2**30, 2**31): int32, with 30 bits of precision
MIN_SHIFT, MAX_SHIFT = 1, 62  # one bit to round on at least; int64 keeps its sign at most
# The longest shift worth having: an int32 times a multiplier off by half is then off by 2**-16 of an output unit,
# and an offset keeps 17 bits before the point for the bias.
LONGEST_SHIFT = 46


def rescale(L, terms, offset, shift, low, high):
    """clamp(floor((sum_i x_i * m_i + offset) / 2**shift), low, high): the only rounding rule of intq.

    With ``offset = bias * 2**shift / scale + (zero_point << shift) + (1 << (shift - 1))`` this is
    ``clamp(round(sum_i x_i * m_i / 2**shift + bias / scale) + zero_point)``, halves up, rounded once however many terms
    (a residual addition has two). ``x_i``, ``m_i`` are int32; products, sum and offset int64 (HAWQ-V3, eq. 5-6, made
    exact: one rounding for a convolution, its bias, its residual and its activation).
    """
    total = offset
    for x, multiplier in terms:
        total = L.wide(x) * L.wide(multiplier) + total
    return L.clamp(L.shift_right(total, shift), low, high)


@dataclass(frozen=True)
class Dyadic:
    """A real multiplier per channel as ``multiplier / 2**shift`` (int32 and shift of equal shape)."""

    multiplier: np.ndarray
    shift: np.ndarray

    def real(self) -> np.ndarray:
        return self.multiplier / np.exp2(self.shift.astype(np.float64))


def dyadic(real: np.ndarray | float) -> Dyadic:
    """The nearest ``m / 2**s`` to each real multiplier, ``2**30 <= |m| < 2**31``: off by at most 2**-31 relative.

    (Below 2**-16, see :func:`dyadic_terms`, by at most 2**-47 absolute.)
    """
    (multiplier,), shift = dyadic_terms([real])
    return Dyadic(multiplier, shift)


def dyadic_terms(reals: list[np.ndarray | float]) -> tuple[list[np.ndarray], np.ndarray]:
    """Multipliers of several terms over one shift per channel, the largest of them in [2**30, 2**31).

    ``reals``: one array per term, broadcast together. Returns int32 multipliers and the int32 shift, all of the common
    shape. Signs are kept. Multipliers below 2**-16 would need a shift beyond LONGEST_SHIFT: they take that one and lose
    low bits which no product can show; those of a channel without weights are zero.

    Raises IntqError when a multiplier is not finite or is 2**30 or more (the output scale is far too small).
    """
    arrays = np.broadcast_arrays(*[np.asarray(r, dtype=np.float64) for r in reals])
    largest = np.max(np.abs(arrays), axis=0)
    if not np.all(np.isfinite(largest)):
        raise IntqError("a rescale multiplier is not finite; expected finite positive scales, check the value ranges")
    if np.any(largest >= 2.0**30 - 0.25):  # which the shortest shift, 1, would round to 2**31
        raise IntqError(
            f"a rescale multiplier is {largest.max():.3g}, expected less than 2**30; widen the output range"
        )
    exponent = np.frexp(np.where(largest > 0, largest, 1.0))[1]  # largest = f * 2**exponent, f in [0.5, 1)
    shift = np.clip(MULTIPLIER_BITS - exponent, MIN_SHIFT, LONGEST_SHIFT)
    rounded = np.rint(np.ldexp(largest, shift))
    shift = np.where(rounded >= 2.0**MULTIPLIER_BITS, shift - 1, shift)  # 0.99999... rounds up to 2**31
    shift = np.where(largest > 0, shift, LONGEST_SHIFT).astype(np.int32)
    return [np.rint(np.ldexp(a, shift)).astype(np.int32) for a in arrays], shift


def offset_of(real: np.ndarray | float, shift: np.ndarray, zero_point: int) -> np.ndarray:
    """int64 offset of :func:`rescale`: ``round(real * 2**shift) + (zero_point << shift) + (1 << (shift - 1))``.

    ``real``: what is added, in units of the output's scale (a bias divided by it); it keeps ``shift`` fractional bits.
    Raises IntqError when the result leaves int64.
    """
    real, shift = np.broadcast_arrays(np.asarray(real, dtype=np.float64), np.asarray(shift))
    zero_point = int(zero_point)
    if not np.all(np.abs(real) < 2.0**62):  # nor NaN
        raise IntqError("a bias is not finite or far too large for the output scale; check the weights and the ranges")
    # Python integers: real * 2**shift may need more than a float's 53 bits, and the sum may leave int64.
    exact = [
        round(math.ldexp(r, int(s))) + (zero_point << int(s)) + (1 << (int(s) - 1))
        for r, s in zip(real.ravel(), shift.ravel(), strict=True)
    ]
    if any(not -(2**63) <= e < 2**63 for e in exact):
        raise IntqError("a bias is too large for the output scale (its offset leaves int64); widen the output range")
    return np.array(exact, dtype=np.int64).reshape(shift.shape)


def rescaling(
    reals: list[np.ndarray | float], zeros: list[np.ndarray | int], real: np.ndarray | float, zero_point: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """(multipliers, offset, shift) of :func:`rescale` for ``sum_i reals[i] * (x_i - zeros[i]) + real``.

    All in units of the output's scale; numbers, or arrays that broadcast together. Raises IntqError as
    :func:`dyadic_terms` and :func:`offset_of` do.
    """
    multipliers, shift = dyadic_terms(reals)
    offset = offset_of(real, shift, zero_point)
    for zero, multiplier in zip(zeros, multipliers, strict=True):
        offset = offset - zero * multiplier.astype(np.int64)
    return multipliers, offset, shift


def isqrt(L, n):
    """floor(sqrt(n)) exactly, 0 <= n < 2**62, by 31 rounds of the digit-by-digit method (no product, no division).

    ``root`` is twice the digits found so far, times the place of the next. A dialect whose values are not integers
    (bounds, real numbers) has its own ``isqrt``.
    """
    if hasattr(L, "isqrt"):
        return L.isqrt(n)
    root, rest = n * 0, n
    for place in range(60, -1, -2):
        trial = root + (1 << place)
        fits, half = rest >= trial, L.shift_right(root, 1)
        rest = L.where(fits, rest - trial, rest)
        root = L.where(fits, half + (1 << place), half)
    return root


def leading(L, x):
    """(e, x * 2**(61 - e)) with ``2**e <= x < 2**(e + 1)``: the place of the first one, and x moved so far up that this
    is at 61. For 1 <= x < 2**62, int64, by halving the places it may be at. A dialect may have its own ``leading``.
    """
    if hasattr(L, "leading"):
        return L.leading(x)
    place = x * 0 + 61
    for step in (32, 16, 8, 4, 2, 1):
        high = x >= (1 << (62 - step))
        place = L.where(high, place, place - step)
        x = L.where(high, x, L.shift_left(x, step))
    return place, x


def quotient(L, n, d, bits: int):
    """floor(n / d) exactly, 0 <= n < 2**bits, 1 <= d < 2**31, bits <= 62, by restoring division (no division
    instruction), as :func:`reciprocal` does with a power of two. A dialect may have its own ``quotient``.
    """
    if hasattr(L, "quotient"):
        return L.quotient(n, d)
    result, rest = n * 0, n * 0
    for place in range(bits - 1, -1, -1):
        rest = rest + rest + L.low_bits(L.shift_right(n, place), 1)
        fits = rest >= d
        result = L.where(fits, result + result + 1, result + result)
        rest = L.where(fits, rest - d, rest)
    return result


def reciprocal(L, d, bits: int):
    """floor(2**bits / d) exactly, 1 <= d < 2**31, bits <= 61, by restoring division (no division instruction).

    The rest stays below 2 * d, so nothing overflows on the way, not even in lanes that are not chosen. A dialect whose
    values are not integers has its own ``reciprocal``.
    """
    if hasattr(L, "reciprocal"):
        return L.reciprocal(d, bits)
    quotient, rest = d * 0, d * 0 + 1
    for _ in range(bits + 1):
        fits = rest >= d
        quotient = L.where(fits, quotient + quotient + 1, quotient + quotient)
        rest = L.where(fits, rest - d, rest)
        rest = rest + rest
    return quotient
