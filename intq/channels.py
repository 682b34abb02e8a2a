"""Which channels of a network go together, and the network without some of them.

A unit is a set of channels, of one value or several, that are there or are not: the channels that a residual sum adds,
those that a gate multiplies, a channel and its depthwise filter, a channel and its place in a concatenation or behind
flattening. (Where groups of several channels each are convolved apart, a unit has a channel of every group, so that
groups stay equal.) The units follow from the graph alone: each dense layer makes new ones, every other operation
carries its input's on or makes two into one. What an operation that is not known to act on each channel alone reads or
makes is fixed, as are the network's input and output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, channel_axis

KEPT, IMPLANTED, REMOVED = 0, 1, 2  # what becomes of a unit
_EACH_ALONE = frozenset({"affine", "add", "mul", "clamp", "function", "avg_pool2d", "max_pool2d", "mean", "pad"})


@dataclass(frozen=True)
class Channels:
    """``units``: {value: (channels,) the unit of each}; ``fixed`` (units,): which can neither go nor move.

    ``movable`` (units,): which may change places among the channels that their layer makes.
    """

    units: Mapping[str, np.ndarray]
    fixed: np.ndarray
    movable: np.ndarray


def is_depthwise(node: FloatNode) -> bool:
    """Whether each output channel of a contraction reads a single input channel of its own group."""
    return node.attrs.get("groups", 1) > 1 and node.parameters["weight"].shape[1] == 1


def couple(graph: FloatGraph) -> Channels:
    """The units of all values' channels."""
    sets, units, shapes = _Sets(), {}, graph.shapes()
    units[graph.input] = sets.fixed(_channels(graph.input_shape))
    for node in graph.nodes:
        made = _made(sets, node, [units[name] for name in node.inputs], [shapes[name] for name in node.inputs])
        if made is None:
            for name in node.inputs:
                sets.fix(units[name])
            made = sets.fixed(_channels(node.shape))
        units[node.name] = made
    sets.fix(units[graph.output])
    return _numbered(graph, sets, units)


def _channels(shape: tuple) -> int:
    """How many channels a value has; 0 where that is symbolic."""
    count = shape[channel_axis(len(shape))]
    return count if isinstance(count, int) else 0


class _Sets:
    """Disjoint sets of numbers, some of which are fixed."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.fixed_ones: list[int] = []

    def new(self, count: int) -> np.ndarray:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def fixed(self, count: int) -> np.ndarray:
        made = self.new(count)
        self.fix(made)
        return made

    def fix(self, numbers: np.ndarray) -> None:
        self.fixed_ones += numbers.tolist()

    def find(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            x, y = sorted((self.find(x), self.find(y)))
            self.parents[y] = x


def _made(sets: _Sets, node: FloatNode, inputs: list[np.ndarray], shapes: list[tuple]) -> np.ndarray | None:
    """The units of a node's result; None for an operation of which nothing is known."""
    axis = channel_axis(len(node.shape))
    if node.op in CONTRACTIONS:
        return _of_contraction(sets, node, inputs)
    if node.op == "concat" and node.attrs["axis"] == axis:
        return np.concatenate(inputs)
    if node.op == "slice" and node.attrs["axis"] == axis:
        return inputs[0][node.attrs["start"] : node.attrs["stop"]] if node.attrs["step"] == 1 else None
    if node.op == "reshape":
        return _of_reshape(inputs[0], shapes[0], node.shape)
    if node.op == "permute" and node.attrs["order"][axis] != axis:
        return None
    if node.op == "pad" and node.attrs["padding"][axis] != (0, 0):
        return None
    if node.op in _EACH_ALONE or node.op in ("concat", "slice", "permute"):
        if any(len(units) != len(inputs[0]) for units in inputs):
            return None
        for units in inputs[1:]:
            sets.join(inputs[0], units)
        return inputs[0]
    return None


def _of_contraction(sets: _Sets, node: FloatNode, inputs: list[np.ndarray]) -> np.ndarray:
    groups, co, x = node.attrs.get("groups", 1), len(node.parameters["weight"]), inputs[0]
    if is_depthwise(node):
        made = np.repeat(x, co // groups)
    else:
        made = sets.new(co)
        for units in (x, made) if groups > 1 else ():
            of_groups = units.reshape(groups, -1)
            for others in of_groups[1:]:
                sets.join(of_groups[0], others)
    for residual in inputs[1:]:
        sets.join(made, residual)
    return made


def _of_reshape(units: np.ndarray, before: tuple, after: tuple) -> np.ndarray | None:
    """Flattened behind the channels, or with other axes there: elements of a channel stay together."""
    if channel_axis(len(before)) != 1 or channel_axis(len(after)) != 1 or before[0] != after[0] or not len(units):
        return None
    inside = [math.prod(shape[2:]) for shape in (before, after) if all(isinstance(d, int) for d in shape[2:])]
    if len(inside) < 2 or inside[0] % inside[1]:
        return None
    return np.repeat(units, inside[0] // inside[1])


def _numbered(graph: FloatGraph, sets: _Sets, units: Mapping[str, np.ndarray]) -> Channels:
    roots = [sets.find(number) for number in range(len(sets.parents))]
    known, number_of = np.unique(roots, return_inverse=True)
    units = {name: number_of[numbers] for name, numbers in units.items()}
    fixed = np.zeros(len(known), bool)
    fixed[number_of[sets.fixed_ones]] = True
    return Channels(units, fixed, _movable(graph, units, fixed))


def _movable(graph: FloatGraph, units: Mapping[str, np.ndarray], fixed: np.ndarray) -> np.ndarray:
    """Not those that are cut or in groups, nor those that layers make among others each: all of a layer or none."""
    movable, layers = ~fixed, [n for n in graph.nodes if n.op in CONTRACTIONS and not is_depthwise(n)]
    for node in graph.nodes:
        if node.op == "slice" or (
            node.op in CONTRACTIONS and node.attrs.get("groups", 1) > 1 and not is_depthwise(node)
        ):
            movable[units[node.inputs[0]]] = movable[units[node.name]] = False
    together: dict[int, bytes] = {}
    for made in (units[node.name] for node in layers):
        for unit in made.tolist():
            movable[unit] &= together.setdefault(unit, made.tobytes()) == made.tobytes()
    for made in (units[node.name] for node in layers):
        movable[made] &= movable[made].all()
    return movable


# ---- a network without some of them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thinned:
    """``graph``: the network that is left. ``origin``: of each of its contractions the layer that it was, and which of
    that layer's outputs it makes, in order."""

    graph: FloatGraph
    origin: Mapping[str, tuple[str, np.ndarray]]


def thinned(graph: FloatGraph, channels: Channels, state: np.ndarray, means: Mapping[str, Tensor]) -> Thinned:
    """The network without the channels of removed units, and with 1x1 filters in place of implanted ones' larger ones.

    ``state`` (units,): KEPT, IMPLANTED or REMOVED; ``means``: {value: (channels,)}. Where a filter loses weights, its
    bias gets what these made of their input's mean: as if each removed channel were its mean everywhere, beyond the
    border too. Of a layer with filters of both kinds the larger ones come first.
    """
    order = {graph.input: np.arange(len(channels.units[graph.input]))}
    nodes: list[FloatNode] = []
    origin: dict[str, tuple[str, np.ndarray]] = {}
    for node in graph.nodes:
        order[node.name] = _order(node, order, channels, state)
        if node.op not in CONTRACTIONS:
            nodes.append(_selected(node, graph, order))
            continue
        if len(node.inputs) > 1:
            assert np.array_equal(order[node.inputs[1]], order[node.name]), "a unit's channels keep their order"
        outputs = order[node.name]
        small = (state[channels.units[node.name][outputs]] == IMPLANTED) & implantable(node, graph)
        kinds = [(is_small, outputs[small == is_small]) for is_small in (False, True) if (small == is_small).any()]
        parts = [_part(node, order[node.inputs[0]], made, is_small, means) for is_small, made in kinds]
        if len(parts) > 1:
            parts = _side_by_side(node, parts)
        start = 0
        for part in parts:
            if part.op in CONTRACTIONS:
                count = len(part.parameters["bias"])
                origin[part.name] = (node.name, outputs[start : start + count])
                start += count
        nodes += parts
    return Thinned(replace(graph, nodes=tuple(nodes)), origin)


def implantable(node: FloatNode, graph: FloatGraph) -> bool:
    """Whether a 1x1 convolution of the same stride reads what the middles of a convolution's windows read."""
    if node.op != "conv2d" or node.attrs["groups"] > 1:
        return False
    a, size, window = node.attrs, graph.shapes()[node.inputs[0]][2:], node.parameters["weight"].shape[2:]
    return math.prod(window) > 1 and all(
        k % 2 and before == k // 2 * dilation and isinstance(side, int) and (side - 1) // stride + 1 == out
        for k, before, dilation, side, stride, out in zip(
            window, a["padding"][:2], a["dilation"], size, a["stride"], node.shape[2:], strict=True
        )
    )


def _order(node: FloatNode, order: Mapping, channels: Channels, state: np.ndarray) -> np.ndarray:
    """Which of a value's channels are left, in their new order."""
    axis, mine = channel_axis(len(node.shape)), channels.units[node.name]
    if node.op in CONTRACTIONS and not is_depthwise(node):
        alive = np.flatnonzero(state[mine] != REMOVED)
        return alive[np.argsort(state[mine[alive]], kind="stable")]
    counts = [len(channels.units[name]) for name in node.inputs]
    if node.op == "concat" and node.attrs["axis"] == axis:
        starts = np.cumsum([0, *counts[:-1]])
        return np.concatenate([order[name] + start for name, start in zip(node.inputs, starts, strict=True)])
    first = order[node.inputs[0]]
    if node.op == "slice" and node.attrs["axis"] == axis:
        start = node.attrs["start"]
        return first[(first >= start) & (first < start + len(mine))] - start
    if set(mine.tolist()) <= set(channels.units[node.inputs[0]].tolist()):
        each = len(mine) // max(counts[0], 1)
        return (first[:, None] * each + np.arange(each)).reshape(-1)
    return np.arange(len(mine))  # all of them are fixed


def _selected(node: FloatNode, graph: FloatGraph, order: Mapping[str, np.ndarray]) -> FloatNode:
    """An operation on each channel alone, on those that are left."""
    axis, chosen = channel_axis(len(node.shape)), order[node.name]
    count = node.shape[axis]
    if len(chosen) == count and (chosen == np.arange(count)).all() and node.op != "slice":
        return node
    own = {name: p[chosen] if p.shape == (count,) else p for name, p in node.parameters.items()}
    node = replace(node, shape=_with_channels(node.shape, len(chosen)), parameters=own)
    if node.op == "slice" and node.attrs["axis"] == axis:
        start = int((order[node.inputs[0]] < node.attrs["start"]).sum())
        node = node.with_attrs(start=start, stop=start + len(chosen))
    return node


def _with_channels(shape: tuple, count: int) -> tuple:
    axis = channel_axis(len(shape))
    return (*shape[:axis], count, *shape[axis + 1 :])


def _part(node: FloatNode, inputs: np.ndarray, outputs: np.ndarray, small: bool, means: Mapping) -> FloatNode:
    """The layer with some of its inputs and outputs, and, if they are small, the middles of its filters alone."""
    weight, groups = node.parameters["weight"], node.attrs.get("groups", 1)
    co, per = weight.shape[:2]
    taps = weight.reshape(co, per, -1)
    kept = torch.zeros_like(taps)
    columns = torch.zeros(groups * per, dtype=torch.bool)
    columns[torch.from_numpy(inputs)] = True
    columns = columns.reshape(groups, 1, per).expand(groups, co // groups, per).reshape(co, per)
    kept[columns] = taps[columns]
    if small:
        middle = taps.shape[2] // 2
        kept[..., :middle], kept[..., middle + 1 :] = 0, 0
    mean = means[node.inputs[0]].double().reshape(groups, per, 1)
    lost = (taps - kept).double().sum(2).reshape(groups, co // groups, per)
    bias = node.parameters["bias"].double() + (lost @ mean).reshape(-1)
    own = {name: p[outputs] for name, p in node.parameters.items() if name in ("residual_scale", "channel_high")}
    own["bias"] = bias.to(node.parameters["bias"])[outputs]
    attrs, read = dict(node.attrs), inputs
    if is_depthwise(node):
        attrs["groups"], read = len(inputs), np.arange(1)
    elif groups > 1:
        read = inputs[inputs < per]  # every group keeps the same of its channels
    own["weight"] = weight[outputs][:, read].contiguous()
    if small:
        own["weight"] = own["weight"].reshape(len(outputs), len(read), -1)[:, :, middle, None, None].contiguous()
        attrs |= {"padding": (0, 0, 0, 0), "dilation": (1, 1)}
    elif "pad" in node.parameters:
        own["pad"] = node.parameters["pad"][inputs]
    return replace(node, shape=_with_channels(node.shape, len(outputs)), attrs=attrs, parameters=own)


def _side_by_side(node: FloatNode, parts: list[FloatNode]) -> list[FloatNode]:
    """Two layers that read the same, each with its share of the residual, and their results as the layer's."""
    axis, start, nodes, names = channel_axis(len(node.shape)), 0, [], []
    for part, kind in zip(parts, ("spatial", "pointwise"), strict=True):
        name, count = f"{node.name}.{kind}", len(part.parameters["bias"])
        inputs = node.inputs[:1]
        for residual in node.inputs[1:]:
            cut = {"axis": axis, "start": start, "stop": start + count, "step": 1}
            own = f"{name}.residual"
            nodes.append(FloatNode(own, "slice", (residual,), part.shape, cut, module=node.module))
            inputs = (*inputs, own)
        nodes.append(replace(part, name=name, inputs=inputs))
        names.append(name)
        start += count
    shape = _with_channels(node.shape, start)
    return [*nodes, FloatNode(node.name, "concat", tuple(names), shape, {"axis": axis}, module=node.module)]
