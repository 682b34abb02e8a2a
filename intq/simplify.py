"""Rewrites of the float graph that leave its function as it is and bring it to what integers compute in one node each.

After :func:`simplify`, BatchNorm and scalar arithmetic are part of convolutions, an activation and a residual addition
are part of what makes their operand, and any chain of functions of one value is one function (one table).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from intq.affines import (
    affine_of_concat,
    concat_of_affines,
    copy_for_affines,
    fold_affine_backward,
    fold_affine_forward,
)
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, channel_axis
from intq.frames import channels_last, fewer_frames
from intq.rewriter import Rewriter, clamps, renamed, without_unused
from intq.transformer import first_token_early, merge_embeddings, merge_heads

_FUSES_CLAMP = {*CONTRACTIONS, "add", "mul", "affine", "avg_pool2d", "mean", "clamp"}


def simplify(graph: FloatGraph) -> FloatGraph:
    """The graph in its fewest nodes. Notices say what was left out (a softmax at the end)."""
    passes: tuple[Callable[[FloatGraph], FloatGraph], ...] = (
        _drop_last_softmax,
        _drop_expansions,
        fewer_frames,
        channels_last,
        _merge_reshapes,
        merge_embeddings,
        merge_heads,
        _compose_functions,
        _pads_to_convolutions,
        _split_contractions,
        copy_for_affines,
        affine_of_concat,
        fold_affine_backward,
        concat_of_affines,
        _join_slices,
        fold_affine_forward,
        _clamp_before_move,
        _fuse_clamps,
        _fuse_residuals,
        first_token_early,
    )
    for rewrite in passes:
        graph = without_unused(rewrite(graph))
    return graph


def prepend_affine(graph: FloatGraph, scale: torch.Tensor, shift: torch.Tensor) -> FloatGraph:
    """The graph applied to ``scale * x + shift`` (per channel): how an image's mean and standard deviation enter it."""
    name = "normalize"
    while name in graph.shapes():
        name += "_"
    node = FloatNode(name, "affine", (graph.input,), graph.input_shape, {}, {"scale": scale, "shift": shift})
    nodes = [renamed(n, {graph.input: name}) for n in graph.nodes]
    return replace(graph, nodes=(node, *nodes))


def _drop_last_softmax(graph: FloatGraph) -> FloatGraph:
    last = next((n for n in graph.nodes if n.name == graph.output), None)
    if last is None or last.op != "softmax":
        return graph
    notice = f"{last.module or last.name}: the softmax at the end is left out; the scores keep their order"
    return replace(graph, output=last.inputs[0], notices=(*graph.notices, notice))


def _drop_expansions(graph: FloatGraph) -> FloatGraph:
    """mul(x, expand(gate)) -> mul(x, gate): mul broadcasts a gate itself."""
    shapes, makers = graph.shapes(), {n.name: n for n in graph.nodes}

    def gate(name: str, shape: tuple) -> str:
        maker = makers.get(name)
        if maker is not None and maker.op == "expand" and shapes[maker.inputs[0]] == (*shape[:2], 1, 1):
            return maker.inputs[0]
        return name

    nodes = []
    for node in graph.nodes:
        if node.op == "mul":
            a, b = node.inputs
            a, b = (b, gate(a, node.shape)) if gate(a, node.shape) != a else (a, gate(b, node.shape))
            node = replace(node, inputs=(a, b))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _merge_reshapes(graph: FloatGraph) -> FloatGraph:
    r, shapes = Rewriter(graph), graph.shapes()
    for node in graph.nodes:
        node = r.resolve(node)
        if node.op == "reshape":
            before = r.nodes.get(node.inputs[0])
            if before is not None and before.op == "reshape":
                node = replace(node, inputs=before.inputs)
            if shapes[node.inputs[0]] == node.shape:
                r.names[node.name] = node.inputs[0]
                continue
        r.put(node)
    return r.done()


# ---- functions of one value --------------------------------------------------------------------------------------


def _compose_functions(graph: FloatGraph) -> FloatGraph:
    """x * sigmoid(x), x * relu6(x + 3) / 6 and the like -> one function, which costs one table and one rounding."""
    r = Rewriter(graph)
    ways: dict[str, dict[str, tuple[FloatNode, ...]]] = {}  # value -> {root: nodes that compute it from the root}
    for node in graph.nodes:
        found = _ways(node, ways)
        ways[node.name] = {node.name: ()} | found
        curved = {root: body for root, body in found.items() if any(n.op in ("function", "mul") for n in body)}
        if len(curved) > 0 and (node.op != "function" or any(len(body) > 1 for body in curved.values())):
            root, body = max(curved.items(), key=lambda item: len(item[1]))
            steps = tuple(renamed(n, {root: "x"}) for n in body)
            name = ".".join(n.attrs.get("function", n.op) for n in body)
            node = replace(node, op="function", inputs=(root,), attrs={"function": name, "body": steps}, parameters={})
        r.put(node)
    return r.done()


def _ways(node: FloatNode, ways: dict) -> dict[str, tuple[FloatNode, ...]]:
    """Every earlier value of which alone the node is a pointwise function."""
    uniform = node.op != "affine" or all(bool((p == p[0]).all()) for p in node.parameters.values())
    if node.op not in ("function", "clamp", "affine", "add", "mul") or not uniform:
        return {}
    if node.op == "affine":
        node = replace(node, parameters={k: p[:1] for k, p in node.parameters.items()})
    per_input = [ways.get(name, {name: ()}) for name in node.inputs]
    roots = [root for root in per_input[0] if all(root in way for way in per_input)]
    return {root: (*{n.name: n for way in per_input for n in way[root]}.values(), node) for root in roots}


# ---- padding -----------------------------------------------------------------------------------------------------


def _pads_to_convolutions(graph: FloatGraph) -> FloatGraph:
    """A pad of the image is the padding of the convolution that reads it; a pad of channels is a 1x1 convolution."""
    shapes, pads, nodes = graph.shapes(), {}, []
    for node in graph.nodes:
        if node.op == "pad" and len(node.shape) == 4:
            image = node.attrs["padding"][2:]
            if node.attrs["padding"][1] != (0, 0):
                node = _channel_pad(node, shapes[node.inputs[0]])
                nodes.append(node)
                if not any(map(any, image)):
                    continue
                raise AssertionError("capture splits pads of channels from pads of the image")
            pads[node.name] = node
        elif node.op == "conv2d" and node.inputs[0] in pads:
            pad = pads[node.inputs[0]]
            (top, bottom), (left, right) = pad.attrs["padding"][2:]
            value, own = pad.attrs["value"], node.attrs["padding"]
            if value == 0 or not any(own):
                total = tuple(a + b for a, b in zip(own, (top, left, bottom, right), strict=True))
                node = replace(node, inputs=pad.inputs).with_attrs(padding=total)
                if value != 0:
                    node = node.with_parameters(pad=torch.full((shapes[pad.inputs[0]][1],), value))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _channel_pad(node: FloatNode, shape: tuple) -> FloatNode:
    before, after = node.attrs["padding"][1]
    channels = shape[1]
    weight = torch.zeros(before + channels + after, channels, 1, 1)
    weight[before : before + channels, :, 0, 0] = torch.eye(channels)
    bias = torch.full((before + channels + after,), node.attrs["value"])
    bias[before : before + channels] = 0
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    return replace(node, op="conv2d", attrs=attrs, parameters={"weight": weight, "bias": bias})


# ---- affine ------------------------------------------------------------------------------------------------------


def _join_slices(graph: FloatGraph) -> FloatGraph:
    """concat of consecutive slices of one value that cover it -> the value."""
    r, shapes = Rewriter(graph), graph.shapes()
    for node in graph.nodes:
        node = r.resolve(node)
        made = [r.nodes.get(i) for i in node.inputs]
        if node.op == "concat" and all(m is not None and m.op == "slice" for m in made):
            axis, start, source = node.attrs["axis"], 0, made[0].inputs[0]
            for m in made:
                follows = m.inputs[0] == source and m.attrs["axis"] == axis and m.attrs["start"] == start
                start = m.attrs["stop"] if follows and m.attrs["step"] == 1 else math.nan
            if start == shapes[source][axis]:
                r.names[node.name] = source
                continue
        r.put(node)
    return r.done()


def _split_contractions(graph: FloatGraph) -> FloatGraph:
    """Slices of a contraction's channels, all that is read of it -> contractions, each with a scale of its own."""
    users, split = graph.users(), {}
    for node in graph.nodes:
        axis = channel_axis(len(node.shape))
        parts = users[node.name]
        cuts = all(p.op == "slice" and p.attrs["axis"] == axis and p.attrs["step"] == 1 for p in parts)
        whole = node.op in CONTRACTIONS and node.attrs.get("groups", 1) == 1 and node.name != graph.output
        if parts and cuts and whole and not (node.op == "linear" and axis != len(node.shape) - 1):
            split |= {p.name: (node, slice(p.attrs["start"], p.attrs["stop"])) for p in parts}
    nodes = []
    for node in graph.nodes:
        if node.name in split:
            whole, part = split[node.name]
            parameters = {key: value[part] for key, value in whole.parameters.items()}
            node = replace(whole, name=node.name, shape=node.shape, parameters=parameters)
        nodes.append(node)
    return without_unused(replace(graph, nodes=tuple(nodes)))


def _clamp_before_move(graph: FloatGraph) -> FloatGraph:
    """clamp(concat(a, b)) -> concat(clamp(a), clamp(b)), and likewise for max_pool2d: so that the clamp fuses."""
    r, shapes = Rewriter(graph), graph.shapes()
    for node in graph.nodes:
        node = r.resolve(node)
        move = r.producer(node.inputs[0], "concat", "max_pool2d") if node.op == "clamp" else None
        if move is None or not all(r.producer(i, *_FUSES_CLAMP) for i in move.inputs):
            r.put(node)
            continue
        del r.nodes[move.name]
        inputs = []
        for i, name in enumerate(move.inputs):
            part = f"{node.name}.{i}"
            r.put(replace(node, name=part, inputs=(name,), shape=shapes[name]))
            r.uses[part] = 1
            inputs.append(part)
        r.put(replace(move, inputs=tuple(inputs)))
        r.stand_for(node.name, move.name)
    return r.done()


def _fuse_clamps(graph: FloatGraph) -> FloatGraph:
    """clamp(op(...)) -> op with limits."""
    r = Rewriter(graph)
    for node in graph.nodes:
        node = r.resolve(node)
        before = r.producer(node.inputs[0], *_FUSES_CLAMP) if node.op == "clamp" else None
        if before is None:
            r.put(node)
            continue
        low, high = (min(max(limit, node.low), node.high) for limit in (before.low, before.high))
        r.put(before.with_attrs(low=low, high=high))
        r.stand_for(node.name, before.name)
    return r.done()


def _fuse_residuals(graph: FloatGraph) -> FloatGraph:
    """add(conv(x), y) -> conv(x, residual=y): one rounding for the convolution, the sum and its activation."""
    r = Rewriter(graph)
    order = {graph.input: -1} | {n.name: i for i, n in enumerate(graph.nodes)}
    for node in graph.nodes:
        node = r.resolve(node)
        candidates = []
        if node.op == "add" and node.inputs[0] != node.inputs[1]:
            for conv, other in (node.inputs, node.inputs[::-1]):
                before = r.producer(conv, *CONTRACTIONS)
                if before is not None and not clamps(before) and len(before.inputs) == 1:
                    candidates.append((order[conv], before, other))
        if not candidates:
            r.put(node)
            continue
        _, before, other = max(candidates, key=lambda c: c[0])
        del r.nodes[before.name]  # it moves to the place of the sum, where both operands are known
        limits = {k: node.attrs[k] for k in ("low", "high") if k in node.attrs}
        r.put(replace(before, inputs=(before.inputs[0], other)).with_attrs(**limits))
        r.stand_for(node.name, before.name)
    return r.done()
