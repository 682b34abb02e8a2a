"""What an operation is: one body of integer arithmetic, a loop shape that backends provide, a shape rule, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.value import Shape, Value

Attrs = Mapping[str, Any]
Constants = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """A small random instance of an operation, for the tests that every backend must pass."""

    inputs: tuple[Value, ...]
    attrs: Attrs
    constants: Constants
    dtype: str


@dataclass(frozen=True)
class Op:
    """An integer operation.

    ``loop``: the loop shape, which is all that a backend adds. It turns the node's inputs into the body's operands:
      "pointwise"  inputs as they are, broadcast;
      "conv2d"     (sum over window and input channels of weight * padded input, *further inputs);
      "conv1d"     the same over frames; a mask, its last input, has taken effect;
      "linear"     (sum over the last axis of weight * input, *further inputs);
      "rows"       the input; the body may sum over the last axis (``L.row_sum``);
      "tokens"     (sum over tokens of mask * input, number of tokens that the mask keeps);
      "attention"  (q, k, v per head without their zero points[, mask]); the body multiplies matrices (``L.matmul``);
      "spectrum"   (samples, samples before), each (point of the window, n, frame), 0 where there is none; the body's
                   result is (channel, n, frame);
      "frames"     (x, mask as (n, frames, 1)); the body may sum over the frames (``L.frame_sum``);
      "mask"       (lengths as (n, 1), numbers of the frames from 1 on as (1, frames));
      "embedding"  (row of the word, its multiplier, row of the position, row of the segment);
      "sum2d"      (sum over a padded window,);  "max2d"  (maximum over a padded window,);
      "move"       inputs as they are; the body rearranges whole arrays and computes nothing.
    ``body(L, operands, constants, attrs)``: the arithmetic, in dialect ``L``. Operands arrive as int32 (moves: any),
      constants broadcast against the output (channel last); the result fits the output's dtype by proof.
    ``shape(inputs, attrs, constants)``: the output's shape; raises IntqError saying which input does not fit.
    ``samples(rng)``: random instances for conformance tests.
    ``attrs``, ``constants``: names of those that a node must have; ``optional``: of those that it may have.
    """

    name: str
    loop: str
    body: Callable
    shape: Callable[[tuple[Value, ...], Attrs, Constants], Shape]
    samples: Callable[[np.random.Generator], list[Sample]]
    attrs: frozenset[str] = field(default_factory=frozenset)
    constants: frozenset[str] = field(default_factory=frozenset)
    optional: frozenset[str] = field(default_factory=frozenset)


LOOPS = (
    *("pointwise", "conv1d", "conv2d", "linear", "rows", "tokens", "attention", "embedding"),
    *("spectrum", "frames", "mask", "sum2d", "max2d", "move"),
)


def expect(condition: bool, message: str) -> None:
    """Raise IntqError with ``message`` unless the condition holds."""
    if not condition:
        raise IntqError(message)


def window_shape(size: tuple, kernel, stride, padding, dilation=(1, 1)) -> tuple[int, int]:
    """(h, w) of the output of a window moved over a padded (h, w) image; padding is (top, left, bottom, right)."""
    top, left, bottom, right = padding
    expect(min(padding) >= 0, f"padding must not be negative, got {tuple(padding)}")
    positive = min(*kernel, *stride, *dilation) >= 1
    expect(positive, f"kernel, stride and dilation must be positive, got {kernel}, {stride} and {dilation}")
    out = []
    for length, k, s, d, pad in zip(size, kernel, stride, dilation, (top + bottom, left + right), strict=True):
        expect(k >= 1 and s >= 1 and d >= 1 and pad >= 0, f"kernel {k}, stride {s}, dilation {d} must be 1 or more")
        span = length + pad - d * (k - 1) - 1
        expect(span >= 0, f"a window of {k} (dilation {d}) does not fit an image side of {length} padded by {pad}")
        out.append(span // s + 1)
    return out[0], out[1]
