"""Bodies in real numbers: the function that stands behind an operation's integers, for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intq.curves import PLACE_BITS, SEGMENTS
from intq.functions import FUNCTIONS
from intq.graph import Node
from intq.value import DTYPE_RANGE, Value


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent exactly, as float64. (torch.ldexp has a zero gradient where its exponent is a negative integer.)"""
    return torch.bitwise_left_shift(1, exponent.to(torch.int64)).to(torch.float64)


@dataclass(frozen=True)
class RealDialect:
    """How bodies are spelled in real numbers; ``slope`` is the derivative of the node's table."""

    slope: Tensor | None = None

    @staticmethod
    def wide(x: Tensor) -> Tensor:
        return x.to(torch.float64)

    @staticmethod
    def shift_right(x: Tensor, shift: Tensor | int) -> Tensor:
        """floor(t) is t - 1/2 on average: it takes the half that ``offset`` adds to round halves up."""
        return x / power_of_two(torch.as_tensor(shift)) - 0.5

    @staticmethod
    def shift_left(x: Tensor, places: int) -> Tensor:
        return x * 2.0**places

    def lookup(self, table: Tensor, x: Tensor) -> Tensor:
        index = x.detach().to(torch.int64)
        return table[index] + self.slope[index] * (x - index)

    @staticmethod
    def narrow(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def within(x: Tensor, low: int, high: int) -> Tensor:
        return x

    @staticmethod
    def isqrt(x: Tensor) -> Tensor:
        return x.clamp(min=1).sqrt()  # at 0 its slope is infinite

    @staticmethod
    def reciprocal(d: Tensor, bits: int) -> Tensor:
        return 2.0**bits / d

    @staticmethod
    def curve(x: Tensor, coefficients: Tensor, drop: int, low: int, high: int, lift=None, level: int = 0) -> Tensor:
        """The polynomial of x's segment; the floors of its three shifts are a half less each, on average."""
        segment = (x.detach() / 2**PLACE_BITS).floor().clamp(0, SEGMENTS - 1).long()
        c0, c1, c2 = coefficients.double()[:, segment]
        place = x / 2**PLACE_BITS - segment  # in [0, 1)
        y = (c2 * place - 0.5 + c1) * place - 0.5 + c0
        y = (y if lift is None else y * power_of_two(lift) + level) / 2**drop
        return torch.clamp(y - 0.5 if drop else y, low, high)

    @staticmethod
    def matmul(a: Tensor, b: Tensor, terms: int) -> Tensor:
        return a @ b

    @staticmethod
    def swap(x: Tensor) -> Tensor:
        return x.transpose(-1, -2)

    @staticmethod
    def row_max(x: Tensor) -> Tensor:
        return x.amax(-1, keepdim=True)

    @staticmethod
    def row_sum(x: Tensor, terms: int) -> Tensor:
        return x.sum(-1, keepdim=True)

    @staticmethod
    def frame_sum(x: Tensor, terms: int) -> Tensor:
        return x.sum(1, keepdim=True)

    @staticmethod
    def leading(x: Tensor) -> tuple[Tensor, Tensor]:
        place = x.detach().log2().floor()
        return place, x * 2.0 ** (61 - place)

    @staticmethod
    def quotient(n: Tensor, d: Tensor) -> Tensor:
        return n / d

    @staticmethod
    def low_bits(x: Tensor, count: int) -> Tensor:
        return x.remainder(2**count)

    clamp = staticmethod(torch.clamp)
    where = staticmethod(torch.where)
    concat = staticmethod(torch.cat)


class RescaledDialect(RealDialect):
    """The same for a body that is one rescale, in float32: its multipliers are real and its offset is in steps of the
    result, so that nothing is left to be shifted."""

    @staticmethod
    def wide(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def shift_right(x: Tensor, shift: Tensor | int) -> Tensor:
        return x


def table_slope(node: Node, x: Value) -> Tensor:
    """dy/dx in integer steps at each of a table's 256 inputs.

    From the real function where the table is that function's, to the last step; otherwise (compositions, clamps) the
    slope of the least-squares line through the 9 nearest entries.
    """
    y, table = node.output, torch.from_numpy(node.constants["table"].astype(np.float64))
    q = torch.arange(256, dtype=torch.float64, requires_grad=True)
    function = FUNCTIONS.get(node.attrs["function"])
    if function:
        low, high = DTYPE_RANGE[y.dtype]
        real = function((q - x.zero_point) * x.scale) / y.scale + y.zero_point
        real = real.clamp(low - 0.5, high + 0.5)  # what still rounds to the ends is not cut off
        slope = torch.autograd.grad(real.sum(), q)[0]
        if (real - table).abs().max() <= 1 and slope.isfinite().all():  # exp overflows far outside the table
            return slope
    near = (torch.arange(256)[:, None] + torch.arange(-4, 5)).clamp(0, 255)  # (entry, neighbour)
    from_centre = near - near.double().mean(1, keepdim=True)
    return (from_centre * table[near]).sum(1) / (from_centre**2).sum(1)
