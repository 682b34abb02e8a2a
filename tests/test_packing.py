"""Packed integers: what is unpacked is what was packed, and bytes that do not fit a shape are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intq.packing import WIDTHS, pack, unpack


@given(st.sampled_from(WIDTHS), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32 - 1))
def test_unpacking_is_the_inverse_of_packing(bits, shape, seed):
    least = -(2 ** (bits - 1))
    numbers = np.random.default_rng(seed).integers(least, -least, shape).astype(np.int8).reshape(shape)
    packed = pack(numbers, bits)
    assert packed.dtype == np.uint8 and packed.size == -(-numbers.size * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, tuple(shape)), numbers)


def test_the_order_of_fields():
    assert pack(np.array([-7, 7, 0], np.int8), 4).tolist() == [0xF1, 0x08]
    assert pack(np.array([-1, 0, 1, 1, 0], np.int8), 2).tolist() == [0b11_11_10_01, 0b10]


@pytest.mark.parametrize(
    ("size", "bits", "shape"), [(2, 4, (5,)), (2, 4, (2, 3)), (2, 2, (9,)), (2, 3, (5,)), (4, 4, (-2, -4))]
)
def test_bytes_of_another_shape_are_refused(size, bits, shape):
    with pytest.raises(ValueError):
        unpack(np.zeros(size, np.uint8), bits, shape)
