"""Curves against the functions that they stand for, in every dialect."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unbounded import Unbounded

from intq.backends.reference import NumpyDialect
from intq.backends.torch import TorchDialect
from intq.bounds import Interval, IntervalDialect
from intq.curves import COEFFICIENT_LIMIT, LEVEL_LIMIT, MAX_DROP, PLACE_BITS, SEGMENTS, TOP, curve, fit
from intq.errors import IntqError
from intq.functions import FUNCTIONS
from intq.ops.attention import LARGEST
from intq.value import DTYPE_RANGE

ALL = np.arange(TOP + 1, dtype=np.int32)


def real(name: str):
    return lambda x: FUNCTIONS[name](torch.from_numpy(np.ascontiguousarray(x))).numpy()


def evaluated(made, dtype: str, x=ALL) -> np.ndarray:
    return curve(NumpyDialect, x, made.coefficients, made.drop, *DTYPE_RANGE[dtype])


def error_of(name: str, low: float, high: float, dtype: str = "int16") -> float:
    """The largest absolute error over all arguments, the real function at exactly those."""
    function, at = real(name), low + ALL * ((high - low) / TOP)
    exact = function(at)
    scale = np.abs(exact).max() / DTYPE_RANGE["int16"][1]
    return float(np.abs(evaluated(fit(function, low, high, scale, 0, dtype), dtype) * scale - exact).max())


@pytest.mark.parametrize(
    ("name", "low", "high", "most"),
    [
        ("gelu", -4.0, 4.0, 1.3e-4),
        ("gelu", -8.0, 8.0, 7e-4),
        ("tanh", -4.0, 4.0, 2e-4),
        ("exp", -6.3, 0.0, 7e-5),
        ("exp", -20 * np.log(2), 0.0, 5e-4),
        ("sigmoid", -8.0, 8.0, 1.3e-4),
        ("silu", -8.0, 8.0, 4e-4),
        ("softplus", -8.0, 8.0, 3e-4),
    ],
)
def test_the_largest_error_of_a_curve(name, low, high, most):
    """Of which half a step of the 16-bit result is rounding; the rest grows with the cube of the interval."""
    found = error_of(name, low, high)
    assert most / 2 < found <= most, f"{found:.2e}"


@pytest.mark.parametrize(("name", "low", "high"), [("gelu", -4.0, 4.0), ("tanh", -4.0, 4.0), ("silu", -6.0, 6.0)])
def test_8_bits_are_nearly_always_those_of_the_real_function_rounded(name, low, high):
    exact = real(name)(low + ALL * ((high - low) / TOP))
    scale = np.ptp(exact) / 255
    zero_point = round(-exact.min() / scale)
    got = evaluated(fit(real(name), low, high, scale, zero_point), "uint8")
    rounded = np.clip(np.floor(exact / scale + zero_point + 0.5), 0, 255)
    assert np.abs(got - rounded).max() <= 1 and np.mean(got != rounded) < 0.03


@pytest.mark.parametrize("name", ["exp", "ibert_exp"])
def test_attentions_weights_begin_at_255_and_end_at_0(name):
    made = fit(lambda x: real(name)(-x), 0.0, 6.3, 1 / LARGEST)
    weights = evaluated(made, "uint8")
    assert weights[0] == LARGEST and weights[-1] == 0
    if name == "exp":
        assert (np.diff(weights) <= 1).all()  # a segment may begin one higher than the last one ended
        assert np.abs(weights - LARGEST * np.exp(-ALL * made.step)).max() < 0.52


@pytest.mark.parametrize(
    ("name", "low", "high", "truth", "apart"),
    [("ibert_gelu", -4.0, 4.0, "gelu", 1.82e-2), ("ibert_exp", -6.3, 0.0, "exp", 2.13e-3)],
)
def test_curves_of_i_bert_are_its_polynomials(name, low, high, truth, apart):
    """The same mechanism reproduces the paper's functions, which are much further from the real ones."""
    assert error_of(name, low, high) < 1e-3
    x = torch.linspace(low, high, 100_001, dtype=torch.float64)
    found = (FUNCTIONS[name](x) - FUNCTIONS[truth](x)).abs().max().item()
    assert 0.98 * apart < found <= apart


def test_i_berts_polynomials_are_the_papers():
    """Equations 8 and 13, at points worked out by hand."""
    gelu, exp = FUNCTIONS["ibert_gelu"], FUNCTIONS["ibert_exp"]
    x = torch.tensor([-9.0, 0.0, 2**0.5, 9.0], dtype=torch.float64)
    one = 2**0.5 / 2 * (2 - 0.2888 * (1 - 1.769) ** 2)
    torch.testing.assert_close(gelu(x), torch.tensor([0.0, 0.0, one, 9.0], dtype=torch.float64))
    top = 0.3585 * 1.353**2 + 0.344
    at = torch.tensor([0.0, -np.log(2) - 1e-12, -3.5 * np.log(2)], dtype=torch.float64)
    half = (0.3585 * (1.353 - 0.5 * np.log(2)) ** 2 + 0.344) / 8
    torch.testing.assert_close(exp(at), torch.tensor([top, top / 2, half], dtype=torch.float64))


# ---- the arithmetic --------------------------------------------------------------------------------------------


@st.composite
def curves(draw):
    """Curves of functions as wild as they may be: sums of waves of any height."""
    dtype = draw(st.sampled_from(["uint8", "int16"]))
    waves = draw(
        st.lists(st.tuples(st.floats(0.1, 200), st.floats(0, 7), st.floats(-3e5, 3e5)), min_size=1, max_size=3)
    )
    return fit(lambda x: sum(h * np.sin(f * x + p) for f, p, h in waves), 0.0, 1.0, 1.0, 0, dtype), dtype


@given(curves())
def test_every_curve_is_the_same_in_every_dialect_and_fits_int32(made):
    made, dtype = made
    c0, c1, c2 = made.coefficients.astype(np.int64)
    assert 0 <= made.drop <= MAX_DROP and made.coefficients.shape == (3, SEGMENTS)
    assert max(np.abs(c1).max(), np.abs(c2).max()) < COEFFICIENT_LIMIT[dtype]
    assert -LEVEL_LIMIT[dtype] <= c0.min() and c0.max() < LEVEL_LIMIT[dtype]
    x, limits = ALL[::37], DTYPE_RANGE[dtype]
    got = evaluated(made, dtype, x)
    assert got.dtype == np.int32
    exact = curve(Unbounded, x.astype(object), made.coefficients, made.drop, *limits)
    np.testing.assert_array_equal(got, exact.astype(np.int64))
    tables = torch.from_numpy(made.coefficients)
    np.testing.assert_array_equal(curve(TorchDialect, torch.from_numpy(x), tables, made.drop, *limits).numpy(), got)
    proven = curve(IntervalDialect(), Interval(0, TOP), made.coefficients, made.drop, *limits)
    assert proven.low <= got.min() and got.max() <= proven.high


@given(st.integers(0, TOP))
def test_bounds_of_a_single_argument_are_its_value(x):
    made = fit(np.sin, -3.0, 3.0, 2.0**-15, 0, "int16")
    proven = curve(IntervalDialect(), Interval(x, x), made.coefficients, made.drop, *DTYPE_RANGE["int16"])
    (value,) = evaluated(made, "int16", np.array([x], np.int32))
    assert (int(proven.low), int(proven.high)) == (value, value)


def test_neighbouring_polynomials_meet():
    made = fit(np.tanh, -4.0, 4.0, 2.0**-15, 0, "int16")
    y = evaluated(made, "int16")
    joints = np.arange(1, SEGMENTS) << PLACE_BITS
    assert np.abs(np.diff(y)[joints - 1]).max() <= np.abs(np.diff(y)).max() + 12, "12 of 32768 steps"


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(IntqError, match="a curve needs an interval"):
        fit(np.tanh, low, high, 1.0)


@pytest.mark.parametrize("function", [np.log, lambda x: x / (x * 0.0), lambda x: x + np.inf])
def test_a_function_that_is_not_finite_is_refused(function):
    with np.errstate(all="ignore"), pytest.raises(IntqError, match=r"not finite on \[0.0, 1.0\]"):
        fit(function, 0.0, 1.0, 1.0)
