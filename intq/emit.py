"""A plan -> :class:`intq.graph.Graph`: constants, channel-last layouts, bounds.

Nothing is chosen here. A :class:`intq.plan.Plan` holds every value's real meaning and every contraction's weights;
what remains is exact arithmetic on multipliers and offsets, and moving axes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from intq import dims
from intq.emit_frames import EMIT as FRAMES
from intq.emit_frames import mask_of
from intq.emit_transformer import EMIT as TRANSFORMER
from intq.emit_transformer import curve_of, halves, high_sums, pad_tokens
from intq.errors import IntqError
from intq.fixedpoint import dyadic_terms, offset_of
from intq.floatgraph import FloatNode, channel_axis, evaluate
from intq.graph import Graph, Node, make_node
from intq.plan import Plan, Quant
from intq.value import DTYPE_RANGE, Value

IMAGE = (0, 2, 3, 1)  # channel last


def emit(plan: Plan, input_value: Value | None = None, metadata: Mapping | None = None) -> Graph:
    """The integer graph, proven node by node.

    ``input_value``: the declared input (default: derived from its Quant).
    Raises IntqError for what has no integer form.
    """
    return _Emitter(plan, input_value).run(dict(metadata or {}))


def channel_last(rank: int) -> tuple[int, ...]:
    return IMAGE if rank == 4 else tuple(range(rank))


class _Emitter:
    """The integer nodes so far; ``at`` holds, per float value, its integer value and the order of its float axes."""

    def __init__(self, plan: Plan, input_value: Value | None) -> None:
        self.plan, self.graph, self.quants = plan, plan.graph, plan.quants
        graph, quants = self.graph, self.quants
        self.nodes: list[Node] = []
        order = channel_last(len(graph.input_shape))
        shape = tuple(graph.input_shape[i] for i in order)
        q = quants[graph.input]
        value = input_value or Value(graph.input, shape, q.dtype, *DTYPE_RANGE[q.dtype], q.scale, q.zero_point)
        self.inputs = (value,)
        if graph.reads_samples:
            lengths = Value("lengths", value.shape[:1], "int32", 1, value.longest)
            self.inputs = (value, lengths)
        self.at: dict[str, tuple[Value, tuple[int, ...]]] = {graph.input: (value, order)}
        self.made: dict[tuple, Value] = {}  # transposed and narrowed copies

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
            dtype=quant.dtype,
            scale=quant.scale,
            zero_point=quant.zero_point,
            attrs=attrs,
            constants=constants,
            source=source.module,
        )
        self.nodes.append(node)
        return node.output

    def in_order(self, name: str, order: tuple[int, ...], eight_bits: bool = False) -> Value:
        """The integer value of a float value with its axes in ``order``; with ``eight_bits`` as uint8."""
        value, has = self.at[name]
        quant = self.quants[name]
        source = next((n for n in self.graph.nodes if n.name == name), self.graph.nodes[0])
        if eight_bits and quant.dtype != "uint8":
            key = (name, "narrow")
            if key not in self.made:
                self.made[key] = self.requantize(f"{name}.narrow", value, quant, self.plan.narrow[name], source)
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
        self, name: str, x: Value, has: Quant, quant: Quant, source: FloatNode, scale=1.0, shift=0.0, limits=None
    ) -> Value:
        """scale * x + shift in another Quant; scale and shift are numbers or vectors over the last axis."""
        multiplier = np.asarray(scale, np.float64) * has.scale / quant.scale
        (m,), s = dyadic_terms([multiplier])
        offset = offset_of(np.asarray(shift) / quant.scale + 0 * multiplier, s, quant.zero_point)
        offset = offset - has.zero_point * m.astype(np.int64)
        low, high = quant.limits(*(limits or (-math.inf, math.inf)))
        constants = {"multiplier": m, "offset": offset, "shift": s}
        return self.add("requantize", name, [x], quant, source, {"low": low, "high": high}, constants)


def _contraction(e: _Emitter, node: FloatNode, function: FloatNode | None = None, scaled: FloatNode | None = None):
    """With ``function``: a linear layer that ends in its curve, and whose own quant is the curve's argument.
    With ``scaled``: the affine that gives the curve's channels their own scales."""
    quant, weights = e.quants[node.name], e.plan.weights[node.name]
    order = channel_last(len(node.shape))
    wide = node.name in e.plan.wide_readers
    if wide and len(node.inputs) > 1:
        return _sum_of_three(e, node)
    x = e.in_order(node.inputs[0], order, eight_bits=not wide)
    has = e.quants[node.inputs[0]] if wide else e.plan.eight_bits(node.inputs[0])
    q = weights.q.numpy().astype(np.int8)
    scale, bias = (t.double().numpy() for t in (weights.scale, weights.bias))
    op, geometry, packed = laid_out(node, q, has)
    mask = e.kept(node.inputs[0], node) if op != "linear" and reaches_beyond(node) else []
    inputs, reals, sums = [x], [has.scale * scale / quant.scale], q.reshape(q.shape[0], -1).astype(np.int64).sum(1)
    zeros = [has.zero_point * sums]  # what the terms' zero points add, in units of the terms
    if wide:
        high, low = halves(e, node, x)
        meaning = Quant(high.dtype, high.scale, high.zero_point)
        inputs = [low, high_sums(e, node, op, [high, *mask], geometry, laid_out(node, q, meaning)[2])]
        reals, zeros = [reals[0], high.scale / low.scale * reals[0]], [0 * sums, high.zero_point * sums]
    rest = node.inputs[1:]
    if rest and not wide:
        residual = e.quants[rest[0]]
        inputs.append(e.in_order(rest[0], order))
        units = node.parameters.get("residual_scale", torch.ones(len(q))).double().numpy()
        reals.append(units * (residual.scale / quant.scale))
        zeros.append(np.full(len(q), residual.zero_point))
    multipliers, shift = dyadic_terms(reals)
    offset = offset_of(bias / quant.scale, shift, quant.zero_point)
    for zero, multiplier in zip(zeros, multipliers, strict=True):
        offset = offset - zero * multiplier.astype(np.int64)
    constants = {"multiplier": multipliers[0], "offset": offset, "shift": shift}
    if len(inputs) > 1:
        constants["residual_multiplier"] = multipliers[1]
    name, attrs = node.name, {}
    if function is not None:
        end = scaled or function
        name, argument, quant = end.name, quant, e.quants[end.name]
        curve = curve_of(function, argument.interval, quant, scaled)
        constants["curve"] = curve.coefficients
        attrs = {"drop": curve.drop, "function": function.attrs["function"]}
        if scaled is not None:
            constants["lift"] = torch.log2(scaled.parameters["scale"]).round().numpy().astype(np.int32)
            attrs["level"] = (int(quant.zero_point) << curve.drop) + (1 << curve.drop >> 1)
    low, high = quant.limits(*(-math.inf, math.inf) if function is not None else (node.low, node.high))
    attrs |= {"low": low, "high": high}
    inputs += mask
    return e.add(op, name, inputs, quant, function or node, attrs | geometry, constants | packed), order


def laid_out(node: FloatNode, q: np.ndarray, has: Quant) -> tuple[str, dict, dict]:
    """The integer operation of a contraction, its geometry, and its weights with what pads its input.

    q: in torch's layout; has: what the input means. A convolution over frames of a single one is a linear layer.
    """
    if node.op == "linear":
        return "linear", {}, {"weight": np.ascontiguousarray(q)}
    geometry = {key: node.attrs[key] for key in ("stride", "padding", "dilation", "groups")}
    one_frame = node.op == "conv1d" and q.shape[2] == geometry["stride"] == geometry["groups"] == 1
    if one_frame and not any(geometry["padding"]):
        return "linear", {}, {"weight": np.ascontiguousarray(q[:, :, 0])}
    channels_last = (0, *range(2, q.ndim), 1)
    pad = node.parameters.get("pad", torch.zeros(q.shape[1] * geometry["groups"])).double().numpy()
    pad_value = np.clip(np.rint(pad / has.scale) + has.zero_point, 0, 255).astype(np.uint8)
    return node.op, geometry, {"weight": np.ascontiguousarray(q.transpose(channels_last)), "pad_value": pad_value}


def reaches_beyond(node: FloatNode) -> bool:
    """Whether windows of a convolution reach beyond the last frame."""
    return node.attrs["padding"][1 if node.op == "conv1d" else 2] > 0


def _sum_of_three(e: _Emitter, node: FloatNode):
    """A linear layer of 16 bits, whose two halves are two terms already, and a residual: summed after it in 32 bits."""
    quant, name = e.quants[node.name], f"{node.name}.layer"
    fine = Quant("int32", quant.scale / 2**12, 0)
    plan = replace(
        e.plan,
        quants={**e.quants, name: fine},
        weights={**e.plan.weights, name: e.plan.weights[node.name]},
        wide_readers=e.plan.wide_readers | {name},
    )
    alone = copy.copy(e)
    alone.plan, alone.quants = plan, plan.quants
    unlimited = {key: value for key, value in node.attrs.items() if key not in ("low", "high")}
    e.at[name] = _contraction(alone, replace(node, name=name, inputs=node.inputs[:1], attrs=unlimited))
    alone.at = e.at
    return _add(alone, replace(node, inputs=(name, node.inputs[1])))


def _affine(e: _Emitter, node: FloatNode):
    if node.inputs[0] in e.plan.lifted:
        nodes = {n.name: n for n in e.graph.nodes}
        function = nodes[node.inputs[0]]
        return _contraction(e, nodes[function.inputs[0]], function, node)
    has, quant = e.quants[node.inputs[0]], e.quants[node.name]
    value, order = e.at[node.inputs[0]]
    scale, shift = (node.parameters[k].double().numpy() for k in ("scale", "shift"))
    if (scale == scale[0]).all() and (shift == shift[0]).all():
        scale, shift = scale[0], shift[0]
    elif order[-1] != (axis := channel_axis(len(order))):
        order = (*(a for a in order if a != axis), axis)
        value = e.in_order(node.inputs[0], order)
    limits = (node.low, node.high)
    return e.requantize(node.name, value, has, quant, node, scale, shift, limits), order


def _clamp(e: _Emitter, node: FloatNode):
    value, order = e.at[node.inputs[0]]
    has, quant = e.quants[node.inputs[0]], e.quants[node.name]
    return e.requantize(node.name, value, has, quant, node, limits=(node.low, node.high)), order


def _add(e: _Emitter, node: FloatNode):
    quant = e.quants[node.name]
    order = e.at[node.inputs[0]][1]
    values = [e.in_order(name, order) for name in node.inputs]
    has = [e.quants[name] for name in node.inputs]
    reals = [np.float64(h.scale / quant.scale) for h in has]
    if "residual_scale" in node.parameters:  # of a contraction whose sums come to its residual here
        reals[1] = reals[1] * node.parameters["residual_scale"].double().numpy()
        reals[0] = reals[0] + 0 * reals[1]
    multipliers, shift = dyadic_terms(reals)
    offset = offset_of(0.0 * reals[1], shift, quant.zero_point)
    for h, m in zip(has, multipliers, strict=True):
        offset = offset - h.zero_point * m.astype(np.int64)
    low, high = quant.limits(node.low, node.high)
    constants = {"multiplier_a": multipliers[0], "multiplier_b": multipliers[1], "offset": offset, "shift": shift}
    return e.add("add", node.name, values, quant, node, {"low": low, "high": high}, constants), order


def _mul(e: _Emitter, node: FloatNode):
    quant = e.quants[node.name]
    order = channel_last(len(node.shape))
    values = [e.in_order(name, order, eight_bits=True) for name in node.inputs]
    has = [e.plan.eight_bits(name) for name in node.inputs]
    (multiplier,), shift = dyadic_terms([has[0].scale * has[1].scale / quant.scale])
    low, high = quant.limits(node.low, node.high)
    attrs = {"low": low, "high": high, "zero_point_a": has[0].zero_point, "zero_point_b": has[1].zero_point}
    constants = {"multiplier": multiplier, "offset": offset_of(0.0, shift, quant.zero_point), "shift": shift}
    return e.add("mul", node.name, values, quant, node, attrs, constants), order


def _function(e: _Emitter, node: FloatNode):
    if node.inputs[0] in e.plan.curved:
        return _contraction(e, next(n for n in e.graph.nodes if n.name == node.inputs[0]), node)
    quant, has = e.quants[node.name], e.plan.eight_bits(node.inputs[0])
    order = e.at[node.inputs[0]][1]
    x = e.in_order(node.inputs[0], order, eight_bits=True)
    real = has.scale * (torch.arange(256, dtype=torch.float64) - has.zero_point)
    y = evaluate(node, real.reshape(-1, 1)).reshape(-1)
    least, most = quant.limits(node.low, node.high)
    table = torch.floor(y / quant.scale + quant.zero_point + 0.5).nan_to_num(0.0).clamp(least, most)
    constants = {"table": table.numpy().astype(quant.dtype)}
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
    (multiplier,), shift = dyadic_terms([has.scale / (divisor * quant.scale)])
    offset = offset_of(0.0 * divisor, shift, quant.zero_point)
    offset = offset - has.zero_point * math.prod(kernel) * multiplier.astype(np.int64)
    low, high = quant.limits(node.low, node.high)
    attrs = {"kernel": kernel, "stride": stride, "padding": padding, "low": low, "high": high}
    pad = np.full(x.shape[3], has.zero_point).astype(has.dtype)
    constants = {"pad_value": pad, "multiplier": multiplier, "offset": offset, "shift": shift}
    flat = node.op == "mean" and not node.attrs["keepdim"]
    name = f"{node.name}.pool" if flat else node.name
    pooled = e.add("avg_pool2d", name, [x], quant, node, attrs, constants)
    if not flat:
        return pooled, IMAGE
    return e.add("reshape", node.name, [pooled], quant, node, {"shape": ("n", x.shape[3])}), (0, 1)


def _max_pool2d(e: _Emitter, node: FloatNode):
    x = e.in_order(node.inputs[0], IMAGE)
    attrs = {k: node.attrs[k] for k in ("kernel", "stride", "padding")}
    return e.add("max_pool2d", node.name, [x], e.quants[node.name], node, attrs), IMAGE


def _concat(e: _Emitter, node: FloatNode):
    order = e.at[node.inputs[0]][1]
    values = [e.in_order(name, order) for name in node.inputs]
    axis = order.index(node.attrs["axis"])
    return e.add("concat", node.name, values, e.quants[node.name], node, {"axis": axis}), order


def _slice(e: _Emitter, node: FloatNode):
    value, order = e.at[node.inputs[0]]
    attrs = {k: node.attrs[k] for k in ("start", "stop", "step")} | {"axis": order.index(node.attrs["axis"])}
    return e.add("slice", node.name, [value], e.quants[node.name], node, attrs), order


def _pad(e: _Emitter, node: FloatNode):
    padding = node.attrs["padding"]
    if len(node.shape) == 3 and not any(padding[2]):
        return pad_tokens(e, node)
    if len(node.shape) != 4:
        raise IntqError(f"{node.module or node.name}: pad takes (n, c, h, w) alone, got rank {len(node.shape)}")
    x, quant = e.in_order(node.inputs[0], IMAGE), e.quants[node.name]
    (top, bottom), (left, right) = node.attrs["padding"][2:]
    low, high = DTYPE_RANGE[quant.dtype]
    value = min(max(round(node.attrs["value"] / quant.scale) + quant.zero_point, low), high)
    constants = {"pad_value": np.full(x.shape[3], value).astype(quant.dtype)}
    return e.add("pad", node.name, [x], quant, node, {"padding": (top, left, bottom, right)}, constants), IMAGE


def _permute(e: _Emitter, node: FloatNode):
    """Axes only change their names: the integers stay where they are until a reader needs another order."""
    value, order = e.at[node.inputs[0]]
    return value, tuple(node.attrs["order"].index(axis) for axis in order)


def _reshape(e: _Emitter, node: FloatNode):
    before, after = e.graph.shapes()[node.inputs[0]], node.shape
    value, order = e.at[node.inputs[0]]
    groups = reshape_groups(before, after)
    new_order = _regroup(order, groups, before, after)
    if new_order is None:
        first = {right[0]: left for left, right in groups}  # bring each group together, in the order the result wants
        order = tuple(a for axis in channel_last(len(after)) for a in first.get(axis, ()))
        order = (*order, *(a for a in range(len(before)) if before[a] == 1))
        if _regroup(order, groups, before, after) is None:
            order = tuple(range(len(before)))
        value = e.in_order(node.inputs[0], order)
        new_order = _regroup(order, groups, before, after)
    shape = tuple(after[a] for a in new_order)
    return e.add("reshape", node.name, [value], e.quants[node.name], node, {"shape": shape}), new_order


def reshape_groups(before: tuple, after: tuple) -> list[tuple[list[int], list[int]]]:
    """Runs of axes (before, after) that hold the same elements, axes of length one left out; the batch is first."""
    left = [i for i, s in enumerate(before) if s != 1]
    right = [i for i, s in enumerate(after) if s != 1]
    groups, i, j = [([0], [0])], 1, 1
    while i < len(left) or j < len(right):
        a, b = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (p := math.prod(before[k] for k in a)) != (q := math.prod(after[k] for k in b)):
            if p < q:
                a.append(left[i])
                i += 1
            else:
                b.append(right[j])
                j += 1
        groups.append((a, b))
    return groups


def _regroup(order: tuple, groups: list, before: tuple, after: tuple) -> tuple[int, ...] | None:
    """The axes' order after a reshape that moves nothing, or None where elements would have to move."""
    axes = [a for a in order if before[a] != 1]
    starts = {group[0][0]: group for group in groups}
    result, k = [], 0
    while k < len(axes):
        group = starts.get(axes[k])
        if group is None or axes[k : k + len(group[0])] != group[0]:
            return None
        result += group[1]
        k += len(group[0])
    wanted = channel_last(len(after))
    if [a for a in wanted if after[a] != 1] == result:
        return wanted
    return (*result, *(a for a in range(len(after)) if after[a] == 1))


_EMIT = {
    "conv1d": _contraction,
    "conv2d": _contraction,
    "linear": _contraction,
    "affine": _affine,
    "clamp": _clamp,
    "add": _add,
    "mul": _mul,
    "function": _function,
    "avg_pool2d": _average,
    "mean": _average,
    "max_pool2d": _max_pool2d,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "permute": _permute,
    "reshape": _reshape,
    **TRANSFORMER,
    **FRAMES,
}
