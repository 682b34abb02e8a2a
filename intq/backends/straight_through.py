"""The foundation of fine-tuning: the reference's integers forward, the gradient of the real function backward.

Every operation runs twice on the same operands: its body in integers, which is the result, and the same body in real
numbers (``x / 2**shift`` for a shift, no rounding), which is what is differentiated. So the gradient needs no formula
of its own, and a clamp stops it where it saturates. Contractions learn; embeddings, LayerNorms and scales stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from intq.backends.torch import (
    CONTRACTIONS,
    TorchDialect,
    arranged,
    carrier,
    exact_result,
    exact_runs,
    operands_of,
    tensors_of,
)
from intq.curves import PLACE_BITS, SEGMENTS
from intq.errors import IntqError
from intq.functions import FUNCTIONS
from intq.graph import Graph, Node, make_node
from intq.ops import OPS
from intq.value import DTYPE_RANGE, Value, check_inputs

WEIGHT_LIMIT = 127  # int8, narrow range


class StraightThrough(torch.autograd.Function):
    """``exact`` forward, the gradient of ``real`` backward. (``real + (exact - real).detach()`` loses low bits.)"""

    @staticmethod
    def forward(ctx, real: Tensor, exact: Tensor) -> Tensor:
        ctx.dtype = real.dtype
        return exact.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.to(ctx.dtype), None


def rounded(x: Tensor, low: int, high: int) -> Tensor:
    """The nearest integer in [low, high]; the gradient is that of the clamp."""
    real = x.clamp(low, high)
    return StraightThrough.apply(real, real.detach().round())


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent exactly, as float64. (torch.ldexp has a zero gradient where its exponent is a negative integer.)"""
    return torch.bitwise_left_shift(1, exponent.to(torch.int64)).to(torch.float64)


@dataclass(frozen=True)
class RealDialect:
    """How bodies are spelled in real numbers, in float64; ``slope`` is the derivative of the node's table."""

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


class IntegerNode(nn.Module):
    """One operation. Contractions learn ``weight``, real numbers in integer steps, laid out as in the graph and rounded
    in every forward, and ``bias``, per channel in steps of the rescale's result (the output's, or the argument of a
    fused curve) and zero at first: it is what training adds to the bias that ``offset`` holds, to the same
    ``2**-shift``.
    """

    def __init__(self, node: Node, inputs: tuple[Value, ...]) -> None:
        super().__init__()
        self.node, self.inputs = node, inputs
        self.contracts = OPS[node.op].loop in CONTRACTIONS
        constants = tensors_of(node.constants)
        if self.contracts:
            weight = constants.pop("weight").float()
            if weight.abs().max() > WEIGHT_LIMIT:
                raise IntqError(f"{node.name}: weights must lie in [-{WEIGHT_LIMIT}, {WEIGHT_LIMIT}] to be trained")
            self.weight = nn.Parameter(weight)
            self.bias = nn.Parameter(torch.zeros(len(weight)))
        if "table" in constants:
            self.register_buffer("slope", table_slope(node, inputs[0]), persistent=False)
        self.names = tuple(constants)
        for name, tensor in constants.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Integers in float tensors, to integers in a float tensor."""
        op, node = OPS[self.node.op], self.node
        if op.loop == "move":
            return op.body(TorchDialect, inputs, self.constants(), node.attrs)
        runs = []
        if self.contracts:
            runs = exact_runs(self.integer_weight(), self.inputs[0].dtype, node.attrs.get("groups", 1))
        constants = self.constants()
        operands = operands_of(node, inputs, constants, runs, torch.float64)
        with torch.no_grad():
            exact = exact_result(node, operands, constants)
        if not (self.contracts or any(x.requires_grad for x in inputs)):
            return exact.to(carrier(node.output))
        if self.contracts:
            constants["offset"] = self.offset + self.bias.double() * power_of_two(self.shift)
        dialect = RealDialect(self.slope if "table" in constants else None)
        real = arranged(node, op.body(dialect, tuple(x.double() for x in operands), constants, node.attrs))
        return StraightThrough.apply(real, exact.to(carrier(node.output)))

    def constants(self) -> dict[str, Tensor]:
        """The integer constants other than the weight, the learnt bias inside ``offset``."""
        constants = {name: getattr(self, name) for name in self.names}
        if self.contracts:
            steps = self.bias.detach().double() * power_of_two(self.shift)
            constants["offset"] = self.offset + steps.round().to(torch.int64)
        return constants

    def integer_weight(self) -> Tensor:
        return rounded(self.weight, -WEIGHT_LIMIT, WEIGHT_LIMIT)

    def exported(self, inputs: tuple[Value, ...]) -> Node:
        """The integer node as it is now."""
        node, constants = self.node, dict(self.node.constants)
        if self.contracts:
            if not all(torch.isfinite(p).all() for p in self.parameters()):
                raise IntqError(f"{node.name}: its weights or biases are not finite; lower the learning rate")
            constants["weight"] = self.integer_weight().detach().to(torch.int8).cpu().numpy()
            constants["offset"] = self.constants()["offset"].cpu().numpy()
        y = node.output
        meaning = {"dtype": y.dtype, "scale": y.scale, "zero_point": y.zero_point}
        return make_node(node.op, y.name, inputs, **meaning, attrs=node.attrs, constants=constants, source=node.source)


class IntegerNetwork(nn.Module):
    """A graph as a torch module whose forward is exact and whose parameters can be trained.

        network = IntegerNetwork(graph)
        loss(network(images), labels).backward()         # scale * (q - zero_point), q the reference's integers
        trained = network.graph()

    ``nodes[i]`` is the graph's i-th node (:class:`IntegerNode`). Values between nodes are integers in float32 (8 and
    16 bits) or float64 (32 bits).
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        values = graph.values
        self._graph = graph
        self.nodes = nn.ModuleList(IntegerNode(n, tuple(values[name] for name in n.inputs)) for n in graph.nodes)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The real values of the outputs (one tensor, or a tuple), ``scale * (q - zero_point)``.

        ``inputs``: integers of the declared dtype, or floating point: real values, which the input's scale and zero
        point turn into integers. Raises IntqError when a dtype or shape is not as declared.
        """
        outputs = [
            (q.to(carrier(value)) - _like(q, value.zero_point)) * _like(q, value.scale)
            for q, value in zip(self.integers(*inputs), self._values(self._graph.outputs), strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def integers(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs' integers, in float tensors that carry the gradient."""
        known = {value.name: _quantized(x, value) for x, value in zip(inputs, self._graph.inputs, strict=True)}
        check_inputs(self._graph.inputs, [_integers(known[v.name], v) for v in self._graph.inputs])
        for module in self.nodes:
            known[module.node.name] = module(*(known[name] for name in module.node.inputs))
        return tuple(known[name] for name in self._graph.outputs)

    def graph(self) -> Graph:
        """The network with its present parameters, bounds proven anew; its backends compute what ``forward`` does.

        Raises UnprovenError when a width cannot be proven any more.
        """
        values = {value.name: value for value in self._graph.inputs}
        nodes = []
        for module in self.nodes:
            nodes.append(module.exported(tuple(values[name] for name in module.node.inputs)))
            values[nodes[-1].name] = nodes[-1].output
        metadata = {k: v for k, v in self._graph.metadata.items() if k != "layers"}  # measured for other weights
        return Graph(self._graph.inputs, tuple(nodes), self._graph.outputs, metadata)

    def _values(self, names) -> list[Value]:
        values = self._graph.values
        return [values[name] for name in names]


def _like(x: Tensor, numbers: float | tuple[float, ...]) -> Tensor:
    return torch.as_tensor(numbers, dtype=x.dtype, device=x.device)


def _quantized(x: Tensor, value: Value) -> Tensor:
    """Integers in a float tensor; real values are rounded straight-through."""
    if not x.is_floating_point():
        return x
    return rounded(x / _like(x, value.scale) + _like(x, value.zero_point), value.low, value.high)


def _integers(x: Tensor, value: Value) -> Tensor:
    return x.detach().to(getattr(torch, value.dtype)) if x.is_floating_point() else x
