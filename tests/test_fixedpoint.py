"""The arithmetic that all operations share, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intq.backends.reference import NumpyDialect
from intq.backends.torch import TorchDialect
from intq.errors import IntqError
from intq.fixedpoint import (
    LONGEST_SHIFT,
    MAX_SHIFT,
    MIN_SHIFT,
    dyadic,
    dyadic_terms,
    isqrt,
    leading,
    offset_of,
    quotient,
    reciprocal,
    rescale,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


def int64(values) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def everywhere(body, *arrays: np.ndarray) -> np.ndarray:
    """A body's result in NumPy, after checking that torch computes the same."""
    result = body(NumpyDialect, *arrays)
    np.testing.assert_array_equal(body(TorchDialect, *map(torch.from_numpy, arrays)).numpy(), result)
    return result


# ---- rescale ---------------------------------------------------------------------------------------------------


@given(
    x=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    m=st.integers(2**30, 2**31 - 1),
    shift=st.integers(MIN_SHIFT, MAX_SHIFT),
    zero_point=st.integers(-128, 255),
)
def test_rescale_rounds_the_real_quotient_once_with_halves_up(x, m, shift, zero_point):
    low, high = -(2**40), 2**40
    offset = (zero_point << shift) + (1 << (shift - 1))
    if not all(-(2**63) <= v < 2**63 for v in (offset, *(v * m + offset for v in x))):
        return  # a graph in which this could happen is rejected
    got = everywhere(
        lambda L, x, m, o, s: rescale(L, [(x, m)], o, s, low, high),
        np.array(x, np.int32),
        np.array(m, np.int32),
        int64(offset),
        np.array(shift, np.int32),
    )
    exact = [math.floor(Fraction(v * m, 2**shift) + Fraction(1, 2)) + zero_point for v in x]
    assert got.tolist() == [min(max(v, low), high) for v in exact]


@given(a=st.integers(-(2**15), 2**15 - 1), b=st.integers(-(2**15), 2**15 - 1))
def test_two_terms_round_once(a, b):
    (m_a, m_b), shift = dyadic_terms([0.7, 0.1])
    got = rescale(
        NumpyDialect,
        [(np.array([a], np.int32), m_a), (np.array([b], np.int32), m_b)],
        offset_of(0.0, shift, 0),
        shift,
        -(2**31),
        2**31 - 1,
    )
    assert got.item() == math.floor(Fraction(a * int(m_a) + b * int(m_b), 2 ** int(shift)) + Fraction(1, 2))


# ---- multipliers -----------------------------------------------------------------------------------------------


@given(st.floats(2.0**-16, 2.0**29, exclude_max=True))
def test_dyadic_is_the_nearest_with_31_bits(real):
    d = dyadic(real)
    assert 2**30 <= int(d.multiplier) < 2**31 and MIN_SHIFT <= int(d.shift) <= LONGEST_SHIFT
    exact = Fraction(int(d.multiplier), 2 ** int(d.shift))
    assert abs(exact - Fraction(real)) <= Fraction(real) / 2**31
    assert d.real() == float(exact)


@pytest.mark.parametrize(
    ("real", "multiplier", "shift"),
    [
        (1.0, 2**30, 30),
        (0.5, 2**30, 31),
        (np.nextafter(1.0, 0.0), 2**30, 30),  # its 31 bits round up to 2**31
        (2.0**29, 2**30, 1),
        (2.0**-16, 2**30, 46),
        (2.0**-17, 2**29, 46),  # the shift ends: low bits go
        (2.0**-80, 0, 46),
    ],
)
def test_dyadic_at_the_edges(real, multiplier, shift):
    d = dyadic(real)
    assert (int(d.multiplier), int(d.shift)) == (multiplier, shift)


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).filter(lambda t: max(map(abs, t)) > 2.0**-16),
        min_size=1,
        max_size=5,
    )
)
def test_terms_share_a_shift_that_the_largest_needs(pairs):
    reals = [np.array(column) for column in zip(*pairs, strict=True)]
    multipliers, shift = dyadic_terms(reals)
    for channel in range(len(pairs)):
        s = int(shift[channel])
        ms = [int(m[channel]) for m in multipliers]
        assert 2**30 <= max(map(abs, ms)) <= 2**31
        for m, real in zip(ms, reals, strict=True):
            assert -(2**31) <= m < 2**31
            assert abs(Fraction(m) - Fraction(real[channel]) * 2**s) <= Fraction(1, 2)


def test_channels_without_weights_get_a_zero_multiplier():
    (m,), shift = dyadic_terms([np.array([0.0, 1.0])])
    assert m.tolist() == [0, 2**30] and shift.tolist() == [LONGEST_SHIFT, 30]


@pytest.mark.parametrize("real", [np.inf, np.nan, 2.0**30, np.nextafter(2.0**30, 0.0), 1e300])
def test_multipliers_that_have_no_dyadic_form_are_refused(real):
    with pytest.raises(IntqError, match="multiplier"):
        dyadic(np.array([0.5, real]))


# ---- offsets ---------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.integers(MIN_SHIFT, 40), st.integers(0, 255))
def test_offset_holds_bias_zero_point_and_half_exactly(real, shift, zero_point):
    got = int(offset_of(real, np.array(shift, np.int32), zero_point))
    exact = Fraction(real) * 2**shift + (zero_point << shift) + (1 << (shift - 1))
    assert abs(got - exact) <= Fraction(1, 2)


def test_offset_broadcasts_and_takes_numpy_zero_points():
    shift = np.array([1, 40, 55], np.int32)
    assert offset_of(0.0, shift, np.int64(200)).tolist() == [(200 << s) + (1 << (s - 1)) for s in shift.tolist()]


def test_a_dead_channel_keeps_its_bias():
    """Folded BatchNorm leaves weights of 1e-15: the scale they ask for must not push the bias out of int64."""
    (m,), shift = dyadic_terms([np.array([1e-18, 2.0**-10])])
    bias = np.array([-51.0, 3.0])
    offset = offset_of(bias, shift, 0)
    assert m[0] == 0
    assert np.right_shift(offset, shift.astype(np.int64)).tolist() == [-51, 3]


@pytest.mark.parametrize("real", [2.0**30, -(2.0**30), 1e300, -np.inf, np.nan])
def test_an_offset_that_leaves_int64_is_refused(real):
    with pytest.raises(IntqError, match="bias"):
        offset_of(np.array([0.0, real]), np.array([40, 40], np.int32), 0)


# ---- square root and reciprocal --------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.lists(st.integers(0, 2**62 - 1) | st.integers(0, 2**31 - 1).map(lambda r: r * r), min_size=1, max_size=16))
def test_isqrt(values):
    values += [max(0, v - 1) for v in values]  # just below a square
    assert everywhere(isqrt, int64(values)).tolist() == [math.isqrt(v) for v in values]


def test_isqrt_at_the_edges():
    values = [0, 1, 2, 3, 4, (2**31 - 1) ** 2 - 1, (2**31 - 1) ** 2, 2**62 - 1]
    assert everywhere(isqrt, int64(values)).tolist() == [math.isqrt(v) for v in values]


@settings(max_examples=300)
@given(st.lists(st.integers(1, 2**31 - 1) | st.integers(1, 300), min_size=1, max_size=16), st.integers(0, 61))
def test_reciprocal(values, bits):
    got = everywhere(lambda L, d: reciprocal(L, d, bits), int64(values))
    assert got.tolist() == [2**bits // d for d in values]


@pytest.mark.parametrize("bits", [0, 1, 31, 60, 61])
def test_reciprocal_at_the_edges(bits):
    values = [1, 2, 3, 2**30, 2**31 - 2, 2**31 - 1]
    got = everywhere(lambda L, d: reciprocal(L, d, bits), int64(values))
    assert got.tolist() == [2**bits // d for d in values]


def test_reciprocal_of_a_scalar_overflows_nowhere():
    """NumPy warns of overflow in scalars only, and warnings are errors here."""
    assert reciprocal(NumpyDialect, np.int64(2**31 - 1), 61) == 2**61 // (2**31 - 1)


# ---- places and quotients ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2**62 - 1), min_size=1, max_size=8), st.integers(0, 61))
def test_leading(values, shift):
    x = int64([1, 2**61, 2**62 - 1, *(max(1, v >> shift) for v in values)])
    place, moved = (everywhere(lambda L, x, i=i: leading(L, x)[i], x) for i in range(2))
    assert place.tolist() == [int(v).bit_length() - 1 for v in x]
    assert moved.tolist() == [int(v) << (61 - int(e)) for v, e in zip(x, place, strict=True)]


@given(st.lists(st.tuples(st.integers(0, 2**62 - 1), st.integers(1, 2**31 - 1)), min_size=1, max_size=8))
def test_quotient(pairs):
    n, d = (int64(v) for v in zip(*pairs, (2**62 - 1, 1), (2**62 - 1, 2**31 - 1), (0, 1), strict=True))
    got = everywhere(lambda L, n, d: quotient(L, n, d, 62), n, d)
    assert got.tolist() == [int(a) // int(b) for a, b in zip(n, d, strict=True)]
