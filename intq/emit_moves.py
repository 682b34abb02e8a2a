"""What :mod:`intq.emit` writes for values that only move, and in which order their axes lie meanwhile.

A permutation of axes writes nothing: what reads the value says in which order it needs them. Each function is
``take(e, node) -> (value, order of the float axes)``.
"""

from __future__ import annotations

import math

import numpy as np

from intq.errors import IntqError
from intq.floatgraph import FloatNode
from intq.plan import LEVELS

IMAGE = (0, 2, 3, 1)  # channel last


def channel_last(rank: int) -> tuple[int, ...]:
    return IMAGE if rank == 4 else tuple(range(rank))


def max_pool2d(e, node: FloatNode):
    x = e.in_order(node.inputs[0], IMAGE)
    attrs = {k: node.attrs[k] for k in ("kernel", "stride", "padding")}
    return e.add("max_pool2d", node.name, [x], e.quants[node.name], node, attrs), IMAGE


def concat(e, node: FloatNode):
    order = e.at[node.inputs[0]][1]
    values = [e.in_order(name, order) for name in node.inputs]
    axis = order.index(node.attrs["axis"])
    return e.add("concat", node.name, values, e.quants[node.name], node, {"axis": axis}), order


def slice_(e, node: FloatNode):
    value, order = e.at[node.inputs[0]]
    attrs = {k: node.attrs[k] for k in ("start", "stop", "step")} | {"axis": order.index(node.attrs["axis"])}
    return e.add("slice", node.name, [value], e.quants[node.name], node, attrs), order


def pad(e, node: FloatNode):
    padding, quant = node.attrs["padding"], e.quants[node.name]
    if len(node.shape) == 3 and not any(padding[2]):
        return _pad_tokens(e, node)
    if len(node.shape) != 4:
        raise IntqError(f"{node.module or node.name}: pad takes (n, c, h, w) alone, got rank {len(node.shape)}")
    x = e.in_order(node.inputs[0], IMAGE)
    (top, bottom), (left, right) = padding[2:]
    attrs, constants = {"padding": (top, left, bottom, right)}, _pad_value(node, quant, x.channels)
    return e.add("pad", node.name, [x], quant, node, attrs, constants), IMAGE


def _pad_tokens(e, node: FloatNode):
    """Room before and after the tokens of (n, tokens, channels): an image of one row meanwhile."""
    order = (0, 1, 2)
    x, quant = e.in_order(node.inputs[0], order), e.quants[node.name]
    (_, (before, after), _), (n, tokens, channels) = node.attrs["padding"], x.shape
    row = e.add("reshape", f"{node.name}.row", [x], quant, node, {"shape": (n, 1, tokens, channels)})
    attrs, constants = {"padding": (0, before, 0, after)}, _pad_value(node, quant, channels)
    padded = e.add("pad", f"{node.name}.pad", [row], quant, node, attrs, constants)
    shape = (n, tokens + before + after, channels)
    return e.add("reshape", node.name, [padded], quant, node, {"shape": shape}), order


def _pad_value(node: FloatNode, quant, channels: int) -> dict[str, np.ndarray]:
    low, high = LEVELS[quant.dtype]
    value = min(max(round(node.attrs["value"] / quant.scale) + quant.zero_point, low), high)
    return {"pad_value": np.full(channels, value).astype(quant.storage)}


def permute(e, node: FloatNode):
    """Axes only change their names: the integers stay where they are until a reader needs another order."""
    value, order = e.at[node.inputs[0]]
    return value, tuple(node.attrs["order"].index(axis) for axis in order)


def reshape(e, node: FloatNode):
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


EMIT = {
    "max_pool2d": max_pool2d,
    "concat": concat,
    "slice": slice_,
    "pad": pad,
    "permute": permute,
    "reshape": reshape,
}
