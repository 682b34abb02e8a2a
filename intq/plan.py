"""What quantization decides, before integers are written: the meaning of every value and the weights of every layer.

A plan can be run in float arithmetic that rounds where the integer network rounds (:meth:`Plan.values`): fast, and off
by a rounding tie here and there. It is how decisions are compared; what runs in the end is the integer graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intq.curves import TOP
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, contraction, evaluate, limited, scaled_residual
from intq.value import DTYPE_RANGE

MOVES = frozenset({"concat", "max_pool2d", "reshape", "permute", "slice", "pad"})  # these keep their inputs' scale


NIBBLE = "uint4"  # 4 bits, of which each has a byte
ARGUMENT = "curve argument"  # the dtype, so to speak, of what a linear layer hands to the curve at its end
LEVELS = {**DTYPE_RANGE, NIBBLE: (0, 15), ARGUMENT: (0, TOP)}


@dataclass(frozen=True)
class Quant:
    """What the integers ``q`` of a value mean: ``scale * (q - zero_point)``."""

    dtype: str
    scale: float
    zero_point: float  # an integer, except in a curve's argument

    @property
    def storage(self) -> str:
        """The dtype of the integer value."""
        return "uint8" if self.dtype == NIBBLE else self.dtype

    @property
    def interval(self) -> tuple[float, float]:
        """The real values of the least and of the greatest integer."""
        least, most = LEVELS[self.dtype]
        return self.scale * (least - self.zero_point), self.scale * (most - self.zero_point)

    def limits(self, low: float, high: float) -> tuple[int, int]:
        """The integers nearest to two real limits (infinite: the dtype's own)."""
        least, most = LEVELS[self.dtype]
        at = [
            default if math.isinf(v) else min(max(round(v / self.scale) + self.zero_point, least), most)
            for v, default in ((low, least), (high, most))
        ]
        return at[0], at[1]

    def round(self, x: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
        """The nearest real value that an integer within the limits stands for (halves up)."""
        least, most = self.limits(low, high)
        q = torch.floor(x / self.scale + (self.zero_point + 0.5)).clamp_(least, most)
        return q.sub_(self.zero_point).mul_(self.scale)


def limits(node: FloatNode, quant: Quant) -> dict[str, int]:
    """The attributes ``low`` and ``high`` of the integers of a node's result."""
    low, high = quant.limits(node.low, node.common_high)
    return {"low": low, "high": high}


@dataclass(frozen=True)
class Weights:
    """A contraction's weights ``scale[o] * q[o, ...]`` (int8, of 16 bits int16; torch's layout) and its real bias."""

    q: Tensor
    scale: Tensor
    bias: Tensor
    bits: int = 8

    def real(self) -> Tensor:
        return self.q.float() * self.scale.float().reshape(-1, *[1] * (self.q.ndim - 1))


@dataclass(frozen=True)
class Plan:
    """``quants``: of every value as it is stored. ``reads``: the bits in which a node takes its inputs, where these are
    not 8. ``narrow``: {bits: Quant} of a value that some of its readers take in fewer bits than it is stored in.

    ``curved``: the linear layers that end in the curve of the function which alone reads them. ``lifted``: of those
    functions, the ones that an affine alone reads, by powers of two: it is part of the curve too.
    """

    graph: FloatGraph
    quants: Mapping[str, Quant]
    narrow: Mapping[str, Mapping[int, Quant]]
    weights: Mapping[str, Weights]
    curved: frozenset[str] = frozenset()
    lifted: frozenset[str] = frozenset()
    reads: Mapping[str, int] = field(default_factory=dict)

    def bits_read(self, node: FloatNode) -> int:
        return self.reads.get(node.name, 8)

    def as_read(self, name: str, bits: int = 8) -> Quant:
        """The meaning of a value for a reader that takes so many bits: fewer than it has, or those."""
        return self.narrow.get(name, {}).get(bits, self.quants[name])

    def values(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Every value of the quantized network as real numbers, the input first."""
        done = self.graph.done_after()
        values = {self.graph.input: x if self.graph.reads_tokens else self.quants[self.graph.input].round(x)}
        yield self.graph.input, values[self.graph.input]
        for node in self.graph.nodes:
            result = self.step(node, [values[name] for name in node.inputs])
            for name in done[node.name]:
                del values[name]
            values[node.name] = result
            yield node.name, result

    def run(self, x: Tensor) -> Tensor:
        return dict(self.values(x))[self.graph.output]

    def step(self, node: FloatNode, inputs: list[Tensor]) -> Tensor:
        """One node on real numbers that integers stand for."""
        inputs = self.read(node, inputs)
        if node.op in CONTRACTIONS:
            weights = self.weights[node.name]
            result = contraction(node, inputs[0], weights.real(), weights.bias.float())
            result = limited(node, result + scaled_residual(node, inputs[1]) if len(inputs) > 1 else result)
        else:
            result = evaluate(node, *inputs)
        return (
            result
            if node.op in MOVES or node.op == "mask"
            else self.quants[node.name].round(result, node.low, node.common_high)
        )

    def read(self, node: FloatNode, inputs: list[Tensor]) -> list[Tensor]:
        """The inputs as the node reads them: in its bits, a residual and the operands of a sum excepted."""
        narrowed = {**dict.fromkeys(CONTRACTIONS, 1), "mul": 2, "function": 1}.get(node.op, 0)
        bits = self.bits_read(node)
        return [
            self.narrow[name][bits].round(x) if i < narrowed and bits in self.narrow.get(name, ()) else x
            for i, (name, x) in enumerate(zip(node.inputs, inputs, strict=True))
        ]
