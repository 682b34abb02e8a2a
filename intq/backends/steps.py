"""Learned steps: the real value of an integer step of activations, and of weights, as parameters.

A parameter is ``log2`` of the factor by which a step has grown since training began. With ``v = s (q - z)`` and
``r`` the real number that was rounded and clamped to ``q``, the gradient of the step is, summed over all elements,

    dL/ds = sum dL/dv * (q - z  where r is clamped,  q - r  elsewhere)        LSQ (Esser et al. 2020, eq. 3)
    dL/ds = sum dL/dv * (q - z  where r is clamped,  0      elsewhere)        PACT (Choi et al. 2018, eq. 2)

PACT learns where activations are clipped, which with a fixed number of levels is their step; LSQ learns the steps of
weights too. Both are scaled by ``1 / sqrt(elements * levels)``, as LSQ's section 2.2 has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from intq.graph import Graph, Node
from intq.ops import OPS

METHODS = ("none", "pact", "lsq")
RESCALES = frozenset({"conv1d", "conv2d", "linear", "add", "requantize", "avg_pool2d"})  # bodies that are one rescale
KEEPS_STEP = ("move", "max2d")  # loops whose output has the steps of its inputs
LEVELS = {"int16": 2**15, "uint8": 2**8}


@dataclass(frozen=True)
class Steps:
    """The parameters of a node: of its inputs and of its output, None where a step stays; of its weights (co,)."""

    method: str
    inputs: tuple[Tensor | None, ...] = ()
    output: Tensor | None = None
    weight: Tensor | None = None

    @property
    def any(self) -> bool:
        return any(step is not None for step in (*self.inputs, self.output, self.weight))


def learnable(graph: Graph) -> dict[str, str]:
    """{value: the first value of those that share its step}, for all values whose steps can be learned.

    These are made by rescales and read by rescales; what a table, a softmax or a LayerNorm makes or reads keeps its
    step, and so do the network's inputs and its answer.
    """
    values, first = graph.values, {name: name for name in graph.values}
    for node in graph.nodes:
        if OPS[node.op].loop in KEEPS_STEP:
            for name in node.inputs:
                _join(first, name, node.name)
    fixed = {_found(first, name) for name in (*graph.outputs, *(value.name for value in graph.inputs))}
    fixed |= {_found(first, name) for name, value in values.items() if value.dtype not in LEVELS}
    for node in graph.nodes:
        if OPS[node.op].loop in KEEPS_STEP:
            continue
        if node.op not in RESCALES or "curve" in node.constants:
            fixed.add(_found(first, node.name))
        if node.op not in RESCALES:
            fixed |= {_found(first, name) for name in node.inputs}
    return {name: found for name in values if (found := _found(first, name)) not in fixed}


def _found(first: dict[str, str], name: str) -> str:
    while first[name] != name:
        name = first[name]
    return name


def _join(first: dict[str, str], a: str, b: str) -> None:
    first[_found(first, b)] = _found(first, a)


def gradient(method: str, node: Node, outer: Tensor, q: Tensor, real: Tensor) -> Tensor:
    """d loss / d log2(step of the node's output), of some of its elements: ``outer`` = d loss / d q."""
    low, high = node.attrs["low"], node.attrs["high"]
    inside = (real > low) & (real < high)
    within = q - real if method == "lsq" else torch.zeros_like(real)
    return math.log(2) * (outer * torch.where(inside, within, q - node.output.zero_point)).sum()


def damping(node: Node, elements: int) -> float:
    """What a step's gradient is multiplied by."""
    return 1 / math.sqrt(elements * (node.attrs["high"] - node.attrs["low"]))


class RoundedWeights(torch.autograd.Function):
    """Weights ``w`` (co, ...), in the steps that they had at first, as integers of their present steps."""

    @staticmethod
    def forward(ctx, weight: Tensor, log_step: Tensor, limit: int) -> Tensor:
        factor = torch.exp2(log_step).reshape(-1, *[1] * (weight.ndim - 1))
        real = weight / factor
        q = real.round().clamp(-limit, limit)
        ctx.limit = limit
        ctx.save_for_backward(real, q, factor)
        return q

    @staticmethod
    def backward(ctx, outer: Tensor):
        real, q, factor = ctx.saved_tensors
        inside = real.abs() <= ctx.limit
        of_step = (outer * torch.where(inside, q - real, q)).flatten(1).sum(1)
        each = math.sqrt(q[0].numel() * ctx.limit)
        return outer * inside / factor, math.log(2) * of_step / each, None
