"""Reductions over a window of the image: pooling. (Softmax and LayerNorm, reductions over a row, belong here too.)"""

from __future__ import annotations

import numpy as np

from intq.fixedpoint import rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect, window_shape
from intq.value import Shape, Value


def _avg_pool2d(L, operands, constants: Constants, attrs: Attrs):
    """clamp(round(scale_x / scale_y * (sum over the window / count - zero_point_x)) + zero_point_y).

    The division by the count is part of the multiplier: one number, or one per output pixel (oh, ow, 1) where padding
    is not counted.
    """
    (total,) = operands
    return rescale(
        L, [(total, constants["multiplier"])], constants["offset"], constants["shift"], attrs["low"], attrs["high"]
    )


def _max_pool2d(L, operands, constants: Constants, attrs: Attrs):
    """The maximum over the window; scale and zero point stay."""
    return operands[0]


def _pool_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 1, f"takes one input, got {len(inputs)}")
    (x,) = inputs
    expect(len(x.shape) == 4, f"expects an (n, h, w, c) input, got shape {x.shape}")
    if "pad_value" in constants:
        expect(constants["pad_value"].shape == (x.shape[3],), "pad_value must hold one value per channel")
    h, w = window_shape(x.shape[1:3], attrs["kernel"], attrs["stride"], attrs["padding"])
    return (x.shape[0], h, w, x.shape[3])


def _avg_pool2d_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for side, kernel, stride, padding, dtype, shift, per_pixel in [
        (7, (7, 7), (1, 1), (0, 0, 0, 0), "uint8", 36, False),  # global
        (8, (3, 3), (1, 1), (1, 1, 1, 1), "uint8", 34, False),
        (9, (2, 3), (2, 2), (0, 1, 1, 0), "int16", 31, True),
    ]:
        oh, ow = window_shape((side, side), kernel, stride, padding)
        shape = (oh, ow, 1) if per_pixel else ()
        low, high = (0, 255) if dtype == "uint8" else (-(2**15), 2**15 - 1)
        constants = {
            "pad_value": rng.integers(0, 256, 21).astype(np.uint8),
            "multiplier": rng.integers(2**30, 2**31, shape).astype(np.int32),
            "offset": np.full(shape, 1 << (shift - 1), np.int64),
            "shift": np.full(shape, shift, np.int32),
        }
        attrs = {"kernel": kernel, "stride": stride, "padding": padding, "low": low, "high": high}
        samples.append(Sample((Value("x", ("n", side, side, 21), "uint8", 0, 255),), attrs, constants, dtype))
    return samples


def _max_pool2d_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (Value("x", ("n", 9, 8, 21), dtype, low, high),),
            {"kernel": kernel, "stride": stride, "padding": padding},
            {},
            dtype,
        )
        for dtype, low, high, kernel, stride, padding in [
            ("uint8", 0, 255, (3, 3), (2, 2), (1, 1, 1, 1)),
            ("int16", -(2**15), 2**15 - 1, (2, 3), (1, 2), (0, 1, 0, 0)),
        ]
    ]


_WINDOW = frozenset({"kernel", "stride", "padding"})

OPS = (
    Op(
        "avg_pool2d",
        "sum2d",
        _avg_pool2d,
        _pool_shape,
        _avg_pool2d_samples,
        attrs=_WINDOW | {"low", "high"},
        constants=frozenset({"pad_value", "multiplier", "offset", "shift"}),
    ),
    Op("max_pool2d", "max2d", _max_pool2d, _pool_shape, _max_pool2d_samples, attrs=_WINDOW),
)
