"""Integers of 4 and 2 bits, two and four to a byte: how artifacts and compiled networks keep narrow weights.

A field holds ``q + 2**(bits - 1)``, which is not negative; a byte's first number is in its lowest bits.
"""

from __future__ import annotations

import math

import numpy as np

WIDTHS = (4, 2)


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """int8 of any shape, each of at most ``bits`` (4 or 2) bits -> flat uint8, the last byte filled up with zeros."""
    fields = (numbers.ravel() + np.int8(1 << (bits - 1))).astype(np.uint8)
    fields = np.pad(fields, (0, -fields.size % (8 // bits))).reshape(-1, 8 // bits)
    return np.bitwise_or.reduce(fields << _places(bits), axis=1)


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`pack`. Raises ValueError when the bytes are not those of numbers of this ``shape``."""
    if bits not in WIDTHS:
        raise ValueError(f"packed numbers have {' or '.join(map(str, WIDTHS))} bits, not {bits!r}")
    count = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (-(-count * bits // 8),):
        raise ValueError(f"packed numbers of shape {shape} are {-(-count * bits // 8)} bytes, found {packed.shape}")
    fields = packed[:, None] >> _places(bits) & np.uint8((1 << bits) - 1)
    return (fields.ravel()[:count].astype(np.int8) - np.int8(1 << (bits - 1))).reshape(shape)


def _places(bits: int) -> np.ndarray:
    """Where in a byte each field begins."""
    return np.arange(0, 8, bits, dtype=np.uint8)
