"""A float network and calibration data -> an integer :class:`intq.graph.Graph`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intq.calibrate import METHODS, Observation, choose_range, observe
from intq.capture import capture
from intq.emit import emit
from intq.errors import IntqError
from intq.floatgraph import FloatGraph, evaluate
from intq.graph import Graph
from intq.plan import CONTRACTIONS, MOVES, Plan, Quant, Weights
from intq.rounding import round_weights
from intq.simplify import prepend_affine, simplify
from intq.value import Value

CHUNK = 16  # calibration images that go through the network together


@dataclass(frozen=True)
class Options:
    """See :func:`quantize`."""

    method: str = "mse"
    bias_correction: bool = True
    rounding: str = "nearest"
    residual_bits: int = 8


def quantize(
    model: torch.nn.Module,
    calibration: Iterable,
    *,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    method: str = "mse",
    bias_correction: bool = True,
    rounding: str = "nearest",
    residual_bits: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> Graph:
    options = Options(method, bias_correction, rounding, residual_bits)
    report = progress or (lambda stage, done, total: None)
    batches, pixels = _batches(calibration)
    report("capture", 0, 1)
    graph = capture(model, batches[0][:1])
    scale, shift = None, None
    if pixels:
        channels = graph.input_shape[1]
        mean_t = torch.tensor(list(mean) if mean is not None else [0.0] * channels, dtype=torch.float64)
        std_t = torch.tensor(list(std) if std is not None else [1.0] * channels, dtype=torch.float64)
        scale, shift = 1 / (255 * std_t), -mean_t / std_t
        graph = prepend_affine(graph, scale.float(), shift.float())
    with torch.no_grad():
        graph = simplify(graph)
        report("capture", 1, 1)
        observations = observe(graph, batches, lambda done, total: report("calibrate", done, total))
        quants, narrow = choose_quants(graph, observations, options, pixels)
        plan, layers = choose_weights(graph, batches, quants, narrow, options, lambda d, t: report("weights", d, t))
    value = None
    if pixels:
        n, c, h, w = graph.input_shape
        value = Value(
            graph.input, (n, h, w, c), "uint8", 0, 255, tuple(scale.tolist()), tuple((-shift / scale).tolist())
        )
    metadata = {"layers": layers, "notices": list(graph.notices)}
    return emit(plan, value, metadata)


def _batches(calibration: Iterable) -> tuple[list[Tensor], bool]:
    tensors = []
    for batch in calibration:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        tensors.append(torch.as_tensor(np.asarray(batch) if not isinstance(batch, Tensor) else batch))
    if not tensors or sum(len(t) for t in tensors) == 0:
        raise IntqError("no calibration data")
    pixels = tensors[0].dtype == torch.uint8
    whole = torch.cat(tensors)
    if pixels:
        whole = whole.permute(0, 3, 1, 2)
    return [c.float().contiguous() for c in whole.split(CHUNK)], pixels


# ---- scales ------------------------------------------------------------------------------------------------------


def tied_groups(graph: FloatGraph) -> dict[str, str]:
    """value -> the representative of the values that share its scale and zero point."""
    parent = {name: name for name in graph.shapes()}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op in MOVES:
            for name in node.inputs:
                parent[find(name)] = find(node.name)
    return {name: find(name) for name in parent}


def choose_quants(
    graph: FloatGraph, observations: Mapping[str, Observation], options: Options, pixels: bool
) -> tuple[dict[str, Quant], dict[str, Quant]]:
    group_of = tied_groups(graph)
    members: dict[str, list[str]] = {}
    for name, group in group_of.items():
        members.setdefault(group, []).append(name)
    nodes, users = {n.name: n for n in graph.nodes}, graph.users()
    sums = _sums(graph)
    by_group, narrow = {}, {}
    for group, names in members.items():
        fresh = [n for n in names if n not in nodes or nodes[n].op not in MOVES]
        seen = [observations[n] for n in fresh]
        eight = _uint8(*choose_range(seen, options.method, _reader(names, users)))
        if pixels and graph.input in names:
            eight = Quant("uint8", 1.0, 0)
        elif (
            graph.output in names
            and all(not users[n] or users[n][0].op in MOVES for n in names)
            and all(n in nodes and nodes[n].op != "function" for n in fresh)
        ):
            largest = max(max(abs(o.low), abs(o.high)) for o in seen)
            eight = Quant("int32", (largest or 1.0) / 2**23, 0)
        elif options.residual_bits == 16 and len(names) == 1 and names[0] in sums:
            narrow[names[0]] = eight
            largest = max(max(abs(o.low), abs(o.high)) for o in seen)
            eight = Quant("int16", 1.5 * (largest or 1.0) / 2**15, 0)
        by_group[group] = eight
    return {name: by_group[group] for name, group in group_of.items()}, narrow


def _uint8(low: float, high: float) -> Quant:
    scale = (high - low) / 255
    if not scale > 0:
        return Quant("uint8", 1.0, 0)
    return Quant("uint8", scale, min(max(round(-low / scale), 0), 255))


def _sums(graph: FloatGraph) -> set[str]:
    """Values that residual additions read or make."""
    sums = set()
    for node in graph.nodes:
        if node.op == "add":
            sums |= {node.name, *node.inputs}
        elif node.op in ("conv2d", "linear") and len(node.inputs) > 1:
            sums |= {node.name, node.inputs[1]}
    return sums


def _reader(names, users) -> Callable[[Tensor], Tensor] | None:
    """What a value is read through, when functions alone read it."""
    readers = [u for n in names for u in users[n]]
    if len(names) == 1 and readers and all(u.op == "function" for u in readers):
        return lambda x: torch.stack([evaluate(u, x.reshape(-1, 1)).reshape(x.shape) for u in readers]).sum(0)
    return None


# ---- weights -----------------------------------------------------------------------------------------------------


def choose_weights(graph, batches, quants, narrow, options, progress):
    """Walks the float network and its quantized form side by side, a layer at a time."""
    weights: dict[str, Weights] = {}
    plan = Plan(graph, quants, narrow, weights)
    exact: dict[str, list[Tensor]] = {graph.input: list(batches)}
    rough: dict[str, list[Tensor]] = {graph.input: [quants[graph.input].round(b) for b in batches]}
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    layers = []
    for done, node in enumerate(graph.nodes):
        wanted, inputs = [], []
        for k in range(len(batches)):
            wanted.append(evaluate(node, *[exact[i][k] for i in node.inputs]))
            inputs.append([rough[i][k] for i in node.inputs])
        if node.op in CONTRACTIONS:
            read = [plan.read(node, x) for x in inputs]
            weights[node.name] = round_weights(
                node, [[exact[i][k] for i in node.inputs] for k in range(len(batches))], read, options
            )
        got = [plan.step(node, x) for x in inputs]
        layers.append({"name": node.name, "sqnr_db": sqnr_db(wanted, got)})
        exact[node.name], rough[node.name] = wanted, got
        for name in set(node.inputs):
            if last[name] == node.name:
                del exact[name], rough[name]
        progress(done + 1, len(graph.nodes))
    return plan, layers


def sqnr_db(wanted: list[Tensor], got: list[Tensor]) -> float:
    """10 log10(sum wanted**2 / sum (wanted - got)**2), at most 200 dB."""
    signal = sum(float(w.double().square().sum()) for w in wanted)
    noise = sum(float((w.double() - g).square().sum()) for w, g in zip(wanted, got, strict=True))
    if noise <= signal * 1e-20:
        return 200.0
    return 10 * math.log10(max(signal, 1e-300) / noise)
