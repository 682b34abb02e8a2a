"""Affine maps per channel, such as BatchNorm, become part of the weights before or behind them."""

from __future__ import annotations

from dataclasses import replace

import torch

from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode
from intq.rewriter import Rewriter, clamps, without_unused


def fold_affine_backward(graph: FloatGraph) -> FloatGraph:
    """affine(conv(x)) -> conv(x) with scaled weights: BatchNorm vanishes; affine(affine(x)) -> affine(x)."""
    r = Rewriter(graph)
    for node in graph.nodes:
        node = r.resolve(node)
        before = r.producer(node.inputs[0], *CONTRACTIONS, "affine") if node.op == "affine" else None
        if (
            before is None
            or clamps(before)
            or len(before.inputs) > 1
            or (before.op == "linear" and len(node.shape) == 4)
        ):
            r.put(node)
            continue
        scale, shift = (node.parameters[k].double() for k in ("scale", "shift"))
        if before.op == "affine":
            new = {
                "scale": before.parameters["scale"].double() * scale,
                "shift": before.parameters["shift"].double() * scale + shift,
            }
        else:
            weight = before.parameters["weight"]
            new = {
                "weight": weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1)),
                "bias": before.parameters["bias"].double() * scale + shift,
            }
        r.put(before.with_parameters(**{k: v.float() for k, v in new.items()}))
        r.stand_for(node.name, before.name)
    return r.done()


def copy_for_affines(graph: FloatGraph) -> FloatGraph:
    """affines of one contraction, each with other numbers -> contractions of their own, into which they then fold.

    Attention with relative positions adds two vectors to its queries (Dai et al. 2019): two linear layers of 32-bit
    sums lose less than two roundings of one's 8 bits.
    """
    users, copies = graph.users(), {}
    for node in graph.nodes:
        readers = users[node.name]
        plain = node.op in CONTRACTIONS and not clamps(node) and len(node.inputs) == 1 and node.name != graph.output
        if plain and len(readers) > 1 and all(reader.op == "affine" for reader in readers):
            copies |= {reader.name: node for reader in readers[1:]}
    nodes = []
    for node in graph.nodes:
        if node.name in copies:
            copy = replace(copies[node.name], name=f"{node.name}.copy")
            nodes.append(copy)
            node = replace(node, inputs=(copy.name,))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def affine_of_concat(graph: FloatGraph) -> FloatGraph:
    """affine(concat(convs)) -> concat(affine(conv), ...), so that each part folds into its convolution."""
    r, shapes = Rewriter(graph), graph.shapes()
    for node in graph.nodes:
        node = r.resolve(node)
        concat = r.producer(node.inputs[0], "concat") if node.op == "affine" else None
        foldable = (
            concat is not None
            and concat.attrs["axis"] == 1
            and all(r.producer(i, *CONTRACTIONS, "affine") for i in concat.inputs)
        )
        if not foldable:
            r.put(node)
            continue
        parts = torch.split_with_sizes_copy(
            torch.stack([node.parameters["scale"], node.parameters["shift"]]), [shapes[i][1] for i in concat.inputs], 1
        )
        inputs = []
        del r.nodes[concat.name]
        for i, (name, (scale, shift)) in enumerate(zip(concat.inputs, parts, strict=True)):
            part = f"{node.name}.{i}"
            r.put(FloatNode(part, "affine", (name,), shapes[name], {}, {"scale": scale, "shift": shift}, node.module))
            r.uses[part] = 1
            inputs.append(part)
        r.put(replace(concat, inputs=tuple(inputs)))
        r.stand_for(node.name, concat.name)
    return without_unused(r.done())


def concat_of_affines(graph: FloatGraph) -> FloatGraph:
    """concat of affines of slices of one value -> affine(concat(slices)): Inception's transform_input."""
    r, shapes = Rewriter(graph), graph.shapes()
    for node in graph.nodes:
        node = r.resolve(node)
        made = [r.nodes.get(i) for i in node.inputs]
        affine = [m if m is not None and m.op == "affine" and not clamps(m) else None for m in made]
        sources = [a.inputs[0] if a else i for a, i in zip(affine, node.inputs, strict=True)]
        slices = [r.nodes.get(s) for s in sources]
        one_value = all(s is not None and s.op == "slice" for s in slices) and len({s.inputs for s in slices}) == 1
        if node.op != "concat" or node.attrs["axis"] != 1 or not any(affine) or not one_value:
            r.put(node)
            continue
        ones = [torch.ones(shapes[s][1]) for s in sources]
        scale = torch.cat([a.parameters["scale"] if a else o for a, o in zip(affine, ones, strict=True)])
        shift = torch.cat([a.parameters["shift"] if a else 0 * o for a, o in zip(affine, ones, strict=True)])
        joined = f"{node.name}.slices"
        r.put(replace(node, name=joined, inputs=tuple(sources)))
        r.put(replace(node, op="affine", inputs=(joined,), attrs={}, parameters={"scale": scale, "shift": shift}))
    return r.done()


def fold_affine_forward(graph: FloatGraph) -> FloatGraph:
    """conv(affine(x)) -> conv(x) where exact: without padding, or on the input, whose padding becomes a value.

    Padding by ``p`` after ``y = scale * x + shift`` is padding by ``(p - shift) / scale`` before it.
    """
    r = Rewriter(graph)
    for node in graph.nodes:
        node = r.resolve(node)
        before = r.nodes.get(node.inputs[0])
        if before is None or before.op != "affine" or clamps(before) or node.op not in (*CONTRACTIONS, "affine"):
            r.put(node)
            continue
        scale, shift = (before.parameters[k].double() for k in ("scale", "shift"))
        padded = node.op in ("conv1d", "conv2d") and any(node.attrs["padding"])
        if padded and (before.inputs[0] != graph.input or bool((scale == 0).any())):
            r.put(node)
            continue
        if node.op == "affine":
            own = {k: node.parameters[k].double() for k in ("scale", "shift")}
            new = {"scale": own["scale"] * scale, "shift": own["scale"] * shift + own["shift"]}
        elif node.op == "linear":
            if len(node.shape) == 4:
                r.put(node)
                continue
            weight = node.parameters["weight"].double()
            new = {"weight": weight * scale, "bias": node.parameters["bias"].double() + weight @ shift}
        else:
            new = _fold_into_conv(node, scale, shift, padded)
        r.put(
            replace(node, inputs=(before.inputs[0], *node.inputs[1:])).with_parameters(
                **{k: v.float() for k, v in new.items()}
            )
        )
    return r.done()


def _fold_into_conv(node: FloatNode, scale: torch.Tensor, shift: torch.Tensor, padded: bool) -> dict:
    weight, groups = node.parameters["weight"].double(), node.attrs["groups"]
    co, ci = weight.shape[:2]
    per_output = [
        v.reshape(groups, 1, ci).expand(groups, co // groups, ci).reshape(co, ci, *[1] * (weight.ndim - 2))
        for v in (scale, shift)
    ]
    new = {
        "weight": weight * per_output[0],
        "bias": node.parameters["bias"].double() + (weight * per_output[1]).flatten(1).sum(1),
    }
    if padded:
        pad = node.parameters.get("pad", torch.zeros_like(shift)).double()
        new["pad"] = (pad - shift) / scale
    return new
