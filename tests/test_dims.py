"""Sizes of symbolic axes: composed floor divisions are one, and every one can be found again from its values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intq import dims

adds, divides, counts = st.integers(-5000, 5000), st.integers(1, 2000), st.integers(0, 2**24)


@given(st.lists(st.tuples(adds, divides), max_size=5), counts)
def test_windows_one_after_another_are_one_division(steps, t):
    dim, expected = "t", t
    for add, divide in steps:
        dim, expected = dims.floor_divided(dim, add, divide), (expected + add) // divide
    assert dims.size(dim, {"t": t}) == max(0, expected)
    assert dims.spelled(*dims.parts(dim)) == dim


@given(adds, divides)
def test_a_size_is_found_from_its_values(add, divide):
    assert dims.fitted("t", lambda t: (t + add) // divide) == dims.spelled("t", add, divide)


def test_what_is_no_floor_division_is_refused():
    with pytest.raises(ValueError, match="no size of the form"):
        dims.fitted("t", lambda t: t // 3 + t // 5)


@pytest.mark.parametrize("bad", ["", "(t)//2", "t+1", "(t+1)//0", "(2+1)//3", "(t+-1)//3"])
def test_what_is_no_size_is_refused(bad):
    with pytest.raises(ValueError, match="expected a size"):
        dims.parts(bad)


def test_numbers_stay_numbers():
    assert dims.floor_divided(17, 3, 4) == 5 and dims.size(5, {}) == 5
