"""The foundation of fine-tuning: the reference's integers forward, the gradient of the real function backward.

Every operation has one body. Forward it runs in integers, which is the result; backward it runs on the same operands in
real numbers (:mod:`intq.backends.real`), which is what is differentiated. So the gradient needs no formula of its own,
and a clamp stops it where it saturates. Contractions learn their weights and biases, and where it is asked for the
steps of values and weights are learned (:mod:`intq.backends.steps`); embeddings and LayerNorms stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from intq.backends.real import RealDialect, RescaledDialect, power_of_two, table_slope
from intq.backends.steps import METHODS, RESCALES, RoundedWeights, Steps, damping, learnable
from intq.backends.steps import gradient as step_gradient
from intq.backends.torch import (
    CONTRACTIONS,
    Tensors,
    TorchDialect,
    arranged,
    carrier,
    exact_result,
    exact_runs,
    operands_of,
    tensors_of,
)
from intq.errors import IntqError
from intq.fixedpoint import rescaling
from intq.graph import Graph, Node, make_node
from intq.ops import OPS
from intq.ops.contract import weight_bits, weight_limit
from intq.value import Value, check_inputs

MULTIPLIERS = ("multiplier", "residual_multiplier", "multiplier_a", "multiplier_b")  # of a rescale's terms, in order
Observe = Callable[[str, Tensor], None]

BLOCK_ELEMENTS = 2**16  # of float32, per thread: a body's few temporaries of them stay near a core


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


class Gradient(torch.autograd.Function):
    """A body's integers forward; backward the gradient of its real function, which is computed then, block by block.

    ``apply(call, step, offset, *operands)``. ``step``: the learned step of the result, or None. ``offset``: that of
    the real function, or None where it is no parameter's. When the gradient is to be differentiated again, everything
    is one block.
    """

    @staticmethod
    def forward(ctx, call: Call, step, offset, *operands):
        result = exact_result(call.node, operands, call.integers).to(carrier(call.node.output))
        ctx.call = call
        ctx.save_for_backward(offset, None if step is None else result, *operands)
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor):
        call, (offset, result, *operands) = ctx.call, ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        twice = torch.is_grad_enabled()
        width = 0 if twice else call.block(operands)
        whole = [offset, *operands]
        found: list[list[Tensor]] = [[] for _ in whole]
        of_step = None if result is None else 0.0
        rows = (lambda x: x) if not width else (lambda x: x.flatten(0, -2))
        parts = [
            rows(x).split(width) if width else (x,)
            for x in (*operands, gradient, *(() if result is None else (result,)))
        ]
        for part in zip(*parts, strict=True):
            xs, outer = part[: len(operands)], part[len(operands)]
            xs = [x if twice else x.detach().requires_grad_(w) for x, w in zip(xs, wanted[1:], strict=True)]
            own = offset if twice or offset is None else offset.detach().requires_grad_(wanted[0])
            with torch.enable_grad():
                y = call.real(xs, own)
            leaves = [x for x, w in zip((own, *xs), wanted, strict=True) if w]
            gradients = torch.autograd.grad(
                y, leaves, outer.to(y), create_graph=twice, allow_unused=True, materialize_grads=True
            )
            places = [i for i, w in enumerate(wanted) if w]
            for place, g in zip(places, gradients, strict=True):
                found[place].append(g)
            if result is not None:
                of_step = of_step + step_gradient(call.method, call.node, outer, part[-1], y.detach())
        joined = [_joined(g, x, i == 0) for i, (g, x) in enumerate(zip(found, whole, strict=True))]
        if of_step is not None:
            of_step = of_step * damping(call.node, gradient.numel())
        return None, of_step, *joined


def _joined(parts: list[Tensor], like: Tensor | None, summed: bool) -> Tensor | None:
    """The gradients of all blocks: of what every block reads their sum."""
    if not parts:
        return None
    if summed:
        return torch.stack(parts).sum(0).to(like) if len(parts) > 1 else parts[0].to(like)
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(like.shape).to(like.dtype)


@dataclass(frozen=True)
class Call:
    """A node's body on operands: with ``integers``, its constants as they are, and with ``reals`` of the real function.

    ``rescales``: the body is one rescale.
    """

    node: Node
    integers: Tensors
    reals: Tensors
    dialect: RealDialect
    rescales: bool
    method: str

    def real(self, operands: Sequence[Tensor], offset: Tensor | None) -> Tensor:
        constants = self.reals if offset is None else {**self.reals, "offset": offset}
        dtype = torch.float32 if self.rescales else torch.float64
        y = OPS[self.node.op].body(self.dialect, tuple(x.to(dtype) for x in operands), constants, self.node.attrs)
        return arranged(self.node, y)

    def block(self, operands: Sequence[Tensor]) -> int:
        """Rows that are computed together; 0 for all."""
        alike = len({x.shape for x in operands}) == 1 and operands[0].device.type == "cpu"
        if not (self.rescales and alike and operands[0].ndim > 1 and self.reals["offset"].ndim < 2):
            return 0
        return -(-BLOCK_ELEMENTS * torch.get_num_threads() // operands[0].shape[-1])


class IntegerNode(nn.Module):
    """One operation. Contractions learn ``weight``, real numbers in integer steps, laid out as in the graph and rounded
    in every forward, and ``bias``, per channel in steps of the rescale's result (the output's, or the argument of a
    fused curve) and zero at first: it is what training adds to the bias that ``offset`` holds, to the same
    ``2**-shift``. The input's zero point stays folded into the offset, whatever becomes of the weights.
    """

    def __init__(self, node: Node, inputs: tuple[Value, ...], steps: Steps | None = None) -> None:
        super().__init__()
        self.node, self.inputs, self.steps = node, inputs, steps or Steps("none")
        self.contracts, self.rescales = OPS[node.op].loop in CONTRACTIONS, node.op in RESCALES
        constants = tensors_of(node.constants)
        if self.contracts:
            weight, self.limit = constants.pop("weight").float(), weight_limit(weight_bits(node.attrs))
            if weight.abs().max() > self.limit:
                raise IntqError(f"{node.name}: weights must lie in [-{self.limit}, {self.limit}] to be trained")
            self.weight = nn.Parameter(weight)
            self.bias = nn.Parameter(torch.zeros(len(weight)))
            self.register_buffer("first_sums", _sums(weight), persistent=False)
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
        weight = self.integer_weight() if self.contracts else None
        runs = exact_runs(weight, self.inputs[0].dtype, node.attrs.get("groups", 1)) if self.contracts else []
        integers = self.constants(weight)
        operands = operands_of(node, inputs, integers, runs, torch.float64)
        step = self.steps.output if self.rescales else None
        learns = self.contracts or step is not None or any(x.requires_grad for x in inputs)
        if not (learns and torch.is_grad_enabled()):
            return exact_result(node, operands, integers).to(carrier(node.output))
        call, offset = self.call(integers), self.real_offset(weight) if self.contracts else None
        return Gradient.apply(call, step, offset, *operands)

    def call(self, integers: Tensors) -> Call:
        """The node's body, with its constants in integers and in real numbers."""
        if not self.rescales:
            dialect = RealDialect(self.slope if "table" in integers else None)
            return Call(self.node, integers, integers, dialect, False, self.steps.method)
        unit, reals = power_of_two(integers["shift"]), dict(integers)
        for name in MULTIPLIERS:
            if name in integers:
                reals[name] = (integers[name].double() / unit).float()
        reals["offset"] = (integers["offset"].double() / unit - 0.5).float()
        return Call(self.node, integers, reals, RescaledDialect(), True, self.steps.method)

    def integer_weight(self) -> Tensor:
        """The weights as integers in a float tensor; the gradient is that of the clamp."""
        if self.steps.weight is None:
            return rounded(self.weight, -self.limit, self.limit)
        return RoundedWeights.apply(self.weight, self.steps.weight, self.limit)

    def constants(self, weight: Tensor | None = None) -> Tensors:
        """The integer constants other than the weight; the learnt bias and steps are in the rescale's."""
        constants = {name: getattr(self, name) for name in self.names}
        if not (self.contracts or (self.rescales and self.steps.any)):
            return constants
        with torch.no_grad():
            weight = self.integer_weight() if weight is None and self.contracts else weight
            if self.steps.any:
                return constants | self._rescaled(weight)
            steps = self.bias.double() * power_of_two(self.shift)
            moved = self.zero_point * (_sums(weight) - self.first_sums).to(torch.int64)
            constants["offset"] = self.offset + steps.round().to(torch.int64) - moved * self.multiplier
        return constants

    def real_offset(self, weight: Tensor) -> Tensor:
        """(co,): the offset of the real function, in steps of its result; the weights and the bias move it."""
        reals, zeros, bias = self._reals(weight)
        total = bias + self.result_zero_point
        for real, zero in zip(reals, zeros, strict=True):
            total = total - zero * real.detach()
        return total.float()

    def _reals(self, weight: Tensor | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """(multipliers, zero points, bias) in real numbers, in steps of the result: what :func:`rescaling` takes."""
        unit, steps = power_of_two(self.shift), self.steps
        names = [name for name in MULTIPLIERS if name in self.names]
        first = [getattr(self, name).double() / unit for name in names]
        zeros, before = self._zeros(weight), self._zeros(None)
        bias = (self.offset.double() / unit - 0.5) - self.result_zero_point
        for real, zero in zip(first, before, strict=True):
            bias = bias + zero * real
        bias = bias + self.bias if self.contracts else bias
        if not steps.any:
            return first, zeros, bias
        of_inputs = [_factor(step) for step in (*steps.inputs, *[None] * len(names))][: len(names)]
        of_output, of_weight = _factor(steps.output), _factor(steps.weight)
        reals = [
            real * factor / of_output * (of_weight if self.contracts and i == 0 else 1.0)
            for i, (real, factor) in enumerate(zip(first, of_inputs, strict=True))
        ]
        return reals, zeros, bias / of_output

    def _zeros(self, weight: Tensor | None) -> list[Tensor | float]:
        """What the zero points of the inputs contribute to each term; of the first weights where none are given."""
        zeros = [_zero_point(value) for value in self.inputs]
        if self.contracts:
            zeros[0] = zeros[0] * (self.first_sums if weight is None else _sums(weight))
        elif self.node.op == "avg_pool2d":
            zeros[0] = zeros[0] * float(np.prod(self.node.attrs["kernel"]))
        return zeros[: sum(name in self.names for name in MULTIPLIERS)]

    def _rescaled(self, weight: Tensor | None) -> Tensors:
        """Multipliers, offset and shift anew."""
        reals, zeros, bias = self._reals(weight)
        numbers = lambda x: x.cpu().numpy() if isinstance(x, Tensor) else x  # noqa: E731
        reals, bias = [numbers(x) for x in reals], numbers(bias)
        zeros = [np.rint(numbers(x)).astype(np.int64) for x in zeros]
        multipliers, offset, shift = rescaling(reals, zeros, bias, self.result_zero_point)
        names = [name for name in MULTIPLIERS if name in self.names]
        arrays = {**dict(zip(names, multipliers, strict=True)), "offset": offset, "shift": shift}
        return {name: torch.from_numpy(np.asarray(array)).to(self.offset.device) for name, array in arrays.items()}

    @property
    def zero_point(self) -> int:
        return _zero_point(self.inputs[0])

    @property
    def result_zero_point(self) -> int:
        """Of what the rescale makes: the output, or a curve's argument, which has none."""
        return 0 if "curve" in self.names else int(self.node.output.zero_point)

    def real_value(self, q: Tensor) -> Tensor:
        """What integers of the result stand for."""
        y = self.node.output
        return (q - y.zero_point) * (y.scale * _factor(self.steps.output))

    def exported(self, inputs: tuple[Value, ...]) -> Node:
        """The integer node as it is now."""
        node, constants = self.node, dict(self.node.constants)
        if not all(torch.isfinite(p).all() for p in self.parameters()):
            raise IntqError(f"{node.name}: its weights or biases are not finite; lower the learning rate")
        if self.contracts:
            constants["weight"] = self.integer_weight().detach().to(torch.int8).cpu().numpy()
        if self.contracts or self.rescales:
            for name, tensor in self.constants().items():
                constants[name] = tensor.cpu().numpy()
        y = node.output
        scale = y.scale if self.steps.output is None else y.scale * float(_factor(self.steps.output))
        meaning = {"dtype": y.dtype, "scale": scale, "zero_point": y.zero_point}
        return make_node(node.op, y.name, inputs, **meaning, attrs=node.attrs, constants=constants, source=node.source)


def _sums(weight: Tensor) -> Tensor:
    """float64 (co,): of each output's weights."""
    return weight.double().flatten(1).sum(1)


def _zero_point(value: Value) -> int:
    """What is folded into the offset of a layer that reads a value: of pixels nothing, their mean is in the bias."""
    return value.zero_point if isinstance(value.zero_point, int) else 0


def _factor(step: Tensor | None) -> Tensor | float:
    return 1.0 if step is None else torch.exp2(step.detach().double())


class IntegerNetwork(nn.Module):
    """A graph as a torch module whose forward is exact and whose parameters can be trained.

        network = IntegerNetwork(graph)
        loss(network(images), labels).backward()         # scale * (q - zero_point), q the reference's integers
        trained = network.graph()

    ``nodes[i]`` is the graph's i-th node (:class:`IntegerNode`). Values between nodes are integers in float32 (8 and
    16 bits) or float64 (32 bits). ``steps``: "none", "pact" or "lsq", how steps are learned: ``value_steps``, one for
    values that share theirs, and with "lsq" ``weight_steps``, of each layer.
    """

    def __init__(self, graph: Graph, steps: str = "none") -> None:
        super().__init__()
        if steps not in METHODS:
            raise IntqError(f"steps must be one of {', '.join(METHODS)}, got {steps!r}")
        values, groups = graph.values, learnable(graph) if steps != "none" else {}
        self._graph = graph
        own = {first: nn.Parameter(torch.zeros(())) for first in dict.fromkeys(groups.values())}
        self.value_steps, self.weight_steps = nn.ParameterList(own.values()), nn.ParameterList()
        of_value = {name: own[first] for name, first in groups.items()}
        nodes = []
        for node in graph.nodes:
            of_weight = None
            if steps == "lsq" and OPS[node.op].loop in CONTRACTIONS:
                of_weight = nn.Parameter(torch.zeros(len(node.constants["weight"])))
                self.weight_steps.append(of_weight)
            learned = Steps(steps, tuple(map(of_value.get, node.inputs)), of_value.get(node.name), of_weight)
            nodes.append(IntegerNode(node, tuple(values[name] for name in node.inputs), learned))
        self.nodes = nn.ModuleList(nodes)

    def forward(self, *inputs: Tensor, observe: Observe | None = None) -> Tensor | tuple[Tensor, ...]:
        """The real values of the outputs (one tensor, or a tuple), ``scale * (q - zero_point)``.

        ``inputs``: integers of the declared dtype, or floating point: real values, which the input's scale and zero
        point turn into integers. ``observe(name, real)`` is called with every value as it is computed.
        Raises IntqError when a dtype or shape is not as declared.
        """
        outputs = [
            (q.to(carrier(value)) - _like(q, value.zero_point)) * _like(q, value.scale)
            for q, value in zip(self.integers(*inputs, observe=observe), self._values(self._graph.outputs), strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def integers(self, *inputs: Tensor, observe: Observe | None = None) -> tuple[Tensor, ...]:
        """The outputs' integers, in float tensors that carry the gradient."""
        known = {value.name: _quantized(x, value) for x, value in zip(inputs, self._graph.inputs, strict=True)}
        check_inputs(self._graph.inputs, [_integers(known[v.name], v) for v in self._graph.inputs])
        for module in self.nodes:
            known[module.node.name] = module(*(known[name] for name in module.node.inputs))
            if observe:
                observe(module.node.name, module.real_value(known[module.node.name]))
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
