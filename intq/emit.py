"""A plan -> :class:`intq.graph.Graph`: constants, channel-last layouts, bounds.

Nothing is chosen here. A :class:`intq.plan.Plan` holds every value's real meaning and every contraction's weights;
what remains is exact arithmetic on multipliers and offsets, and moving axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from intq import dims
from intq.emit_frames import EMIT as FRAMES
from intq.emit_frames import mask_of
from intq.emit_layers import EMIT as LAYERS
from intq.emit_layers import Term, contraction
from intq.emit_moves import EMIT as MOVES
from intq.emit_moves import IMAGE, channel_last
from intq.emit_transformer import EMIT as TRANSFORMER
from intq.errors import IntqError
from intq.fixedpoint import rescaling
from intq.floatgraph import FloatNode, channel_axis, evaluate
from intq.graph import Graph, Node, make_node
from intq.plan import LEVELS, Plan, Quant, limits
from intq.value import Value


def emit(plan: Plan, input_value: Value | None = None, metadata: Mapping | None = None) -> Graph:
    """The integer graph, proven node by node.

    ``input_value``: the declared input (default: derived from its Quant).
    Raises IntqError for what has no integer form.
    """
    return _Emitter(plan, input_value).run(dict(metadata or {}))


class _Emitter:
    """The integer nodes so far; ``at`` holds, per float value, its integer value and the order of its float axes."""

    def __init__(self, plan: Plan, input_value: Value | None) -> None:
        self.plan, self.graph, self.quants = plan, plan.graph, plan.quants
        graph, quants = self.graph, self.quants
        self.nodes: list[Node] = []
        order = channel_last(len(graph.input_shape))
        shape = tuple(graph.input_shape[i] for i in order)
        q = quants[graph.input]
        value = input_value or Value(graph.input, shape, q.storage, *LEVELS[q.dtype], q.scale, q.zero_point)
        self.inputs = (value,)
        if graph.reads_samples:
            lengths = Value("lengths", value.shape[:1], "int32", 1, value.longest)
            self.inputs = (value, lengths)
        self.at: dict[str, tuple[Value, tuple[int, ...]]] = {graph.input: (value, order)}
        self.makers = {node.name: node for node in graph.nodes}
        self.made: dict[tuple, Value] = {}  # copies in another order or width, masks of frames

    def run(self, metadata: dict) -> Graph:
        for node in self.graph.nodes:
            if node.name in self.plan.curved | self.plan.lifted:
                continue  # what reads it is its end
            take = _EMIT.get(node.op)
            if take is None:
                raise IntqError(
                    f"{node.module or node.name}: {node.op} has no integer form at this place; "
                    "only mul takes an expanded operand, and softmax must be the last operation"
                )
            self.at[node.name] = take(self, node)
        output = self.in_order(self.graph.output, channel_last(len(self.graph.shapes()[self.graph.output])))
        return Graph(self.inputs, tuple(self.nodes), (output.name,), metadata)

    def most(self, dim: dims.Dim) -> int:
        """The largest that a size can be: of the longest input that the network takes."""
        value = self.inputs[0]
        return dims.size(dim, {d: value.longest for d in value.shape[1:] if isinstance(d, str)})

    def kept(self, name: str, source: FloatNode) -> list[Value]:
        """The mask of a recording's frames, for what sums over the frames of a value; none of other inputs."""
        frames = self.at[name][0].shape[1]
        return [mask_of(self, frames, source)] if self.graph.reads_samples and isinstance(frames, str) else []

    def add(self, op: str, name: str, inputs, quant: Quant, source: FloatNode, attrs=None, constants=None) -> Value:
        node = make_node(
            op,
            name,
            inputs,
            dtype=quant.storage,
            scale=quant.scale,
            zero_point=quant.zero_point,
            attrs=attrs,
            constants=constants,
            source=source.module,
        )
        self.nodes.append(node)
        return node.output

    def in_order(self, name: str, order: tuple[int, ...], bits: int | None = None) -> Value:
        """The integer value of a float value with its axes in ``order``, as it is stored or in fewer ``bits``."""
        value, has = self.at[name]
        quant = self.quants[name]
        source = self.makers.get(name, self.graph.nodes[0])
        narrow = quant if bits is None else self.plan.as_read(name, bits)
        if narrow is not quant:
            key = (name, bits)
            if key not in self.made:
                self.made[key] = self.requantize(f"{name}.{bits}bits", value, quant, narrow, source)
            value = self.made[key]
        if has != order:
            key = (value.name, order)
            if key not in self.made:
                perm = tuple(has.index(axis) for axis in order)
                meaning = Quant(value.dtype, value.scale, value.zero_point)
                self.made[key] = self.add(
                    "transpose", f"{value.name}.{''.join(map(str, order))}", [value], meaning, source, {"perm": perm}
                )
            value = self.made[key]
        return value

    def requantize(
        self, name: str, x: Value, has: Quant, quant: Quant, source: FloatNode, scale=1.0, shift=0.0, interval=None
    ) -> Value:
        """scale * x + shift in another Quant; scale and shift are numbers or vectors over the last axis."""
        real = np.asarray(scale, np.float64) * has.scale / quant.scale
        (multiplier,), offset, places = rescaling(
            [real], [has.zero_point], np.asarray(shift) / quant.scale, quant.zero_point
        )
        low, high = quant.limits(*(interval or (-math.inf, math.inf)))
        constants = {"multiplier": multiplier, "offset": offset, "shift": places}
        return self.add("requantize", name, [x], quant, source, {"low": low, "high": high}, constants)

    def sum(self, node: FloatNode, a: Term, b: Term) -> Value:
        """The sum of two terms, as the result of ``node``."""
        quant = self.quants[node.name]
        multipliers, offset, shift = rescaling([a.real, b.real], [a.zero, b.zero], 0.0, quant.zero_point)
        constants = {"multiplier_a": multipliers[0], "multiplier_b": multipliers[1], "offset": offset, "shift": shift}
        return self.add("add", node.name, [a.value, b.value], quant, node, limits(node, quant), constants)


def _affine(e: _Emitter, node: FloatNode):
    if node.inputs[0] in e.plan.lifted:
        function = e.makers[node.inputs[0]]
        return contraction(e, e.makers[function.inputs[0]], function, node)
    has, quant = e.quants[node.inputs[0]], e.quants[node.name]
    value, order = e.at[node.inputs[0]]
    scale, shift = (node.parameters[k].double().numpy() for k in ("scale", "shift"))
    if (scale == scale[0]).all() and (shift == shift[0]).all():
        scale, shift = scale[0], shift[0]
    elif order[-1] != (axis := channel_axis(len(order))):
        order = (*(a for a in order if a != axis), axis)
        value = e.in_order(node.inputs[0], order)
    return e.requantize(node.name, value, has, quant, node, scale, shift, (node.low, node.high)), order


def _clamp(e: _Emitter, node: FloatNode):
    value, order = e.at[node.inputs[0]]
    has, quant = e.quants[node.inputs[0]], e.quants[node.name]
    return e.requantize(node.name, value, has, quant, node, interval=(node.low, node.high)), order


def _add(e: _Emitter, node: FloatNode):
    order, quant = e.at[node.inputs[0]][1], e.quants[node.name]
    values = [e.in_order(name, order) for name in node.inputs]
    has = [e.quants[name] for name in node.inputs]
    terms = (Term(x, h.scale / quant.scale, h.zero_point) for x, h in zip(values, has, strict=True))
    return e.sum(node, *terms), order


def _mul(e: _Emitter, node: FloatNode):
    quant = e.quants[node.name]
    order = channel_last(len(node.shape))
    bits = e.plan.bits_read(node)
    values = [e.in_order(name, order, bits) for name in node.inputs]
    has = [e.plan.as_read(name, bits) for name in node.inputs]
    (multiplier,), offset, shift = rescaling([has[0].scale * has[1].scale / quant.scale], [0], 0.0, quant.zero_point)
    attrs = limits(node, quant) | {"zero_point_a": has[0].zero_point, "zero_point_b": has[1].zero_point}
    constants = {"multiplier": multiplier, "offset": offset, "shift": shift}
    return e.add("mul", node.name, values, quant, node, attrs, constants), order


def _function(e: _Emitter, node: FloatNode):
    if node.inputs[0] in e.plan.curved:
        return contraction(e, e.makers[node.inputs[0]], node)
    quant, has = e.quants[node.name], e.plan.as_read(node.inputs[0])
    order = e.at[node.inputs[0]][1]
    x = e.in_order(node.inputs[0], order, 8)
    real = has.scale * (torch.arange(256, dtype=torch.float64) - has.zero_point)
    y = evaluate(node, real.reshape(-1, 1)).reshape(-1)
    least, most = quant.limits(node.low, node.high)
    table = torch.floor(y / quant.scale + quant.zero_point + 0.5).nan_to_num(0.0).clamp(least, most)
    constants = {"table": table.numpy().astype(quant.storage)}
    attrs = {"function": node.attrs["function"]}
    return e.add("lookup", node.name, [x], quant, node, attrs, constants), order


def _average(e: _Emitter, node: FloatNode):
    x = e.in_order(node.inputs[0], IMAGE)
    has, quant = e.quants[node.inputs[0]], e.quants[node.name]
    if node.op == "mean":
        kernel = stride = tuple(x.shape[1:3])
        padding, divisor = (0, 0, 0, 0), np.float64(math.prod(kernel))
    else:
        kernel, stride, padding = (node.attrs[k] for k in ("kernel", "stride", "padding"))
        divisor = node.parameters["divisor"].double().numpy()
        divisor = divisor[..., None] if divisor.ndim else divisor  # (oh, ow, 1)
    real, zero = has.scale / (divisor * quant.scale), has.zero_point * math.prod(kernel)
    (multiplier,), offset, shift = rescaling([real], [zero], 0.0, quant.zero_point)
    attrs = {"kernel": kernel, "stride": stride, "padding": padding, **limits(node, quant)}
    pad = np.full(x.shape[3], has.zero_point).astype(has.storage)
    constants = {"pad_value": pad, "multiplier": multiplier, "offset": offset, "shift": shift}
    flat = node.op == "mean" and not node.attrs["keepdim"]
    name = f"{node.name}.pool" if flat else node.name
    pooled = e.add("avg_pool2d", name, [x], quant, node, attrs, constants)
    if not flat:
        return pooled, IMAGE
    return e.add("reshape", node.name, [pooled], quant, node, {"shape": ("n", x.shape[3])}), (0, 1)


_EMIT = {
    "affine": _affine,
    "clamp": _clamp,
    "add": _add,
    "mul": _mul,
    "function": _function,
    "avg_pool2d": _average,
    "mean": _average,
    **LAYERS,
    **MOVES,
    **TRANSFORMER,
    **FRAMES,
}
