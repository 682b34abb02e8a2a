"""Hessian-aware pruning: which channels a network can do without, at the least loss for what they cost.

What is lost by changing the weights w of a filter by d, at a minimum of the loss, its Hessian taken for its mean
diagonal (Yu et al. 2022, "Hessian-aware pruning and optimal neural implant", eq. 8):

    trace_p / (2 p) |d|**2,        p weights, trace_p the trace of their block of the Hessian

``d = -w`` for a filter that is removed. For a larger filter that is replaced by its middle tap, a 1x1 (the "neural
implant" of the paper), d, p and trace_p are those of the other taps. A step removes or implants a unit of channels
(:mod:`intq.channels`): of all steps that are left it is the one of least loss for what it saves, until the budget is
met. So what is insensitive goes and what is moderately so is implanted, without thresholds to choose; an implant that
later is the cheapest step goes too.

Implants are not made unless asked for. On the small ResNet of Fashion-MNIST they cost more than they save, at half of
the bit operations and at a fifth, before and after the same 1000 steps of training in float: 87.8 % with them and
88.6 % without, 83.4 % and 84.9 % (one run each; float 90.4 %; filters chosen by their size alone 86.6 % at half).

What is taken away goes on average into the biases of what read it, and the weights that are left are fitted, layer by
layer, to what the layer answered before (:func:`refitted`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intq.calibrate import observe_limits
from intq.channels import IMPLANTED, KEPT, REMOVED, Channels, Thinned, couple, implantable, is_depthwise, thinned
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, contraction, evaluate, scaled_residual
from intq.hessian import filter_traces
from intq.losses import of_graph, split, with_own_answers
from intq.quantize import for_walk
from intq.rounding import by_position, rows_at

BUDGETS = ("bops", "size")
ROUNDS = 4  # after which traces are taken anew
LEAST = 4  # channels that every layer keeps
TRACED, TRACED_AT_ONCE = 256, 8  # samples by which filters' traces are estimated
ROWS = 2**14  # of what a layer reads, multiplied at a time
RIDGE = 1e-3  # of a mean square of what a layer reads: how far fitted weights are held to what they were
NOISE = 0.1  # of the mean size of a layer's filters' traces: one that is smaller, or below zero, counts as that
FASTER = 10  # times the learning rate of other networks: what is left of one that lost channels has further to go
BITS = (8, 8)
EXACT = 1e-9  # by which a sum of costs may be off

Progress = Callable[[str, int, int], None]
Traces = Callable[[FloatGraph], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Pruned:
    """``graph``: the network that is left. By layer, where there are any: ``removed`` and ``implanted`` (outputs of the
    layer as it was). ``kept``: {"bops", "size": the share that is left}; ``loss``: the sum of the steps' losses."""

    graph: FloatGraph
    removed: Mapping[str, tuple[int, ...]]
    implanted: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, float]
    loss: float


def prune(
    graph: FloatGraph,
    traces: Traces,
    batches: Sequence[Tensor],
    keep: Mapping[str, float],
    *,
    rounds: int = ROUNDS,
    implant: bool = False,
    refit: bool = True,
    bits: Mapping[str, tuple[int, int]] | None = None,
    least: int = LEAST,
) -> Pruned:
    """The network within a budget.

    ``traces(graph)``: {layer: (outputs, taps)} as :func:`intq.hessian.filter_traces` has them, of the network and, at
    the beginning of every other round, of what is left of it. ``batches``: samples as the graph takes them. ``keep``:
    {"bops" or "size": the share to be left, between 0 and 1}, of the layers' bit operations and of their weights' bits;
    each round leaves the same share of what was left. ``implant``: also by 1x1 filters in place of larger ones;
    ``refit``: see :func:`refitted`. ``bits``: {layer: (of its weights, of its inputs)}, 8 and 8 by default. ``least``:
    channels that every layer keeps.
    Raises IntqError for a budget that cannot be met, with the smallest that can.
    """
    for name, share in keep.items():
        if name not in BUDGETS or not 0 < share <= 1:
            known = " and ".join(BUDGETS)
            raise IntqError(f"pruning keeps shares of {known}, above 0 and up to 1; got {name}={share}")
    channels = couple(graph)
    layers = _layers(graph, channels, bits or {})
    state, loss = np.full(len(channels.fixed), KEPT), 0.0
    may_implant = channels.movable & (layers.makes[layers.small].sum(0) > 0) & implant
    floor = np.minimum(least, layers.makes.sum(1))
    walked = for_walk(graph, list(batches))
    with torch.no_grad():
        means = {name: seen.mean for name, seen in observe_limits(graph, batches, lambda done, total: None).items()}
    thin = thinned(graph, channels, state, means)
    for turn in range(1, rounds + 1):
        losses = _losses(layers, channels, thin, traces(thin.graph))
        state, lost = _chosen(layers, channels, losses, state, keep, turn / rounds, floor, may_implant)
        loss += lost
        thin = thinned(graph, channels, state, means)
        thin = replace(thin, graph=refitted(thin, graph, walked)) if refit else thin
    outputs = {node.name: state[channels.units[node.name]] for node in layers.nodes}
    small = {node.name for node, is_small in zip(layers.nodes, layers.small, strict=True) if is_small}
    removed = {name: tuple(np.flatnonzero(of == REMOVED).tolist()) for name, of in outputs.items()}
    implanted = {name: tuple(np.flatnonzero(outputs[name] == IMPLANTED).tolist()) for name in outputs if name in small}
    kept = dict(zip(BUDGETS, layers.shares(state).tolist(), strict=True))
    notice = (
        f"pruned: {sum(map(len, removed.values()))} of {sum(map(len, outputs.values()))} filters are left out and "
        f"{sum(map(len, implanted.values()))} are 1x1 instead; the network keeps "
        + " and ".join(f"{100 * kept[name]:.1f} % of its {name}" for name in BUDGETS)
    )
    return Pruned(
        replace(thin.graph, notices=(*graph.notices, notice)),
        {name: found for name, found in removed.items() if found},
        {name: found for name, found in implanted.items() if found},
        kept,
        loss,
    )


@dataclass(frozen=True)
class Pruning:
    """:func:`by_hessian` as `intq.quantize` takes it: ``keep``, the shares of {"bops", "size"} that are left."""

    keep: Mapping[str, float]
    seed: int = 0

    def __call__(self, graph: FloatGraph, batches: Sequence[Tensor]) -> FloatGraph:
        return by_hessian(graph, batches, self.keep, seed=self.seed).graph


def by_hessian(
    graph: FloatGraph,
    batches: Sequence[Tensor],
    keep: Mapping[str, float],
    *,
    samples: int = TRACED,
    probes: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
    **choices: Any,
) -> Pruned:
    """:func:`prune`, with its ``choices``, by the Hessian of the cross entropy to the network's own answers: no labels.

    ``samples``: of the batches, that are used for it; ``probes``: of each few of them. More of either make the filters'
    traces more exact. The same data and seed give the same network.
    """
    chosen = split(spread(batches, samples), TRACED_AT_ONCE)
    report = None if progress is None else lambda done, total: progress("traces", done, total)

    def traces(left: FloatGraph) -> Mapping[str, Tensor]:
        own = with_own_answers(left.run, chosen)
        return filter_traces(of_graph(left), own, probes=probes, seed=seed, progress=report)

    return prune(graph, traces, batches, keep, **choices)


def spread(batches: Sequence[Tensor], wanted: int) -> list[Tensor]:
    """At most so many samples from all over the batches."""
    counts = [len(batch) for batch in batches]
    total, starts = sum(counts), np.cumsum([0, *counts])
    at = np.unique(np.arange(min(wanted, total)) * total // min(wanted, total))
    chosen = [at[(at >= start) & (at < start + n)] - start for start, n in zip(starts, counts, strict=False)]
    return [batch[torch.from_numpy(rows)] for batch, rows in zip(batches, chosen, strict=True) if len(rows)]


# ---- what goes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layers:
    """What the layers cost, as tables (layers, units): how many of a unit's channels a layer makes and, for each of its
    outputs, reads (none, where each output reads one of its own). ``taps`` (layers,) of a filter; ``prices`` (budgets,
    layers): of a filter's taps on one input. ``small`` (layers,): whose filters 1x1 may replace.
    """

    nodes: tuple[FloatNode, ...]
    makes: np.ndarray
    reads: np.ndarray
    prices: np.ndarray
    taps: np.ndarray
    small: np.ndarray

    def shares(self, state: np.ndarray) -> np.ndarray:
        """(budgets,): of what the whole network costs."""
        return self.costs(state)[0] / self.costs(np.full_like(state, KEPT))[0]

    def costs(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(budgets,) all that is left costs; (budgets, units) what each unit costs; what its implant would save."""
        alive = state != REMOVED
        size = np.where(self.small[:, None] & (state == IMPLANTED), 1 / self.taps[:, None], 1.0) * self.makes * alive
        reads = self.reads * alive
        inputs = np.where(self.reads.any(1), reads.sum(1), 1)  # of each output; one, where each reads its own
        outputs = size.sum(1)
        of_each = size * inputs[:, None] + reads * outputs[:, None] - size * reads
        larger = self.small[:, None] * (self.makes - self.makes / self.taps[:, None]) * (state == KEPT)
        return self.prices @ (outputs * inputs), self.prices @ of_each, self.prices @ (larger * inputs[:, None])


def _layers(graph: FloatGraph, channels: Channels, bits: Mapping[str, tuple[int, int]]) -> _Layers:
    nodes = tuple(node for node in graph.nodes if node.op in CONTRACTIONS)
    if not nodes:
        raise IntqError("pruning takes channels from convolutions and linear layers, of which this network has none")
    count = len(channels.fixed)
    makes = np.stack([np.bincount(channels.units[n.name], minlength=count) for n in nodes]).astype(float)
    reads = np.stack([np.bincount(channels.units[n.inputs[0]], minlength=count) for n in nodes]).astype(float)
    taps = np.array([n.parameters["weight"][0, 0].numel() for n in nodes], float)
    prices = []
    for i, node in enumerate(nodes):
        reads[i] /= math.inf if is_depthwise(node) else node.attrs.get("groups", 1)
        weight_bits, input_bits = bits.get(node.name, BITS)
        axes = node.shape[2:] if node.op == "conv2d" else node.shape[1:-1]
        places = math.prod(d for d in axes if isinstance(d, int))  # of a symbolic axis one, as of all others
        prices.append((taps[i] * places * weight_bits * input_bits, taps[i] * weight_bits))
    small = np.array([implantable(node, graph) for node in nodes])
    return _Layers(nodes, makes, reads, np.array(prices).T, taps, small)


def _chosen(
    layers: _Layers,
    channels: Channels,
    losses: np.ndarray,
    state: np.ndarray,
    keep: Mapping[str, float],
    done: float,
    floor: np.ndarray,
    may_implant: np.ndarray,
) -> tuple[np.ndarray, float]:
    """(units,) what becomes of each after more steps, until ``keep ** done`` is met; and what these steps lose."""
    whole, rest, outer = losses
    state, total = state.copy(), 0.0
    at_first = layers.costs(np.full_like(state, KEPT))[0]
    most = np.array([keep.get(name, math.inf) ** done for name in BUDGETS]) * at_first
    while True:
        costs, of_unit, of_implant = layers.costs(state)
        over = costs > most * (1 + EXACT)
        if not over.any():
            return state, total
        alive = state != REMOVED
        made = (layers.makes * alive).sum(1, keepdims=True)
        short = ((layers.makes > 0) & (made - layers.makes < floor[:, None])).any(0)
        price = over / at_first
        saved = np.stack([(price @ of_unit) * (alive & ~channels.fixed & ~short), (price @ of_implant) * may_implant])
        lost = np.stack([np.where(state == IMPLANTED, rest, whole), outer])
        rate = np.divide(lost, saved, out=np.full_like(lost, math.inf), where=saved > 0)
        step, unit = np.unravel_index(int(rate.argmin()), rate.shape)
        if math.isinf(rate[step, unit]):
            asked = ", ".join(f"{name}={share:.3g}" for name, share in keep.items())
            reached = ", ".join(f"{n}={s:.3g}" for n, s in zip(BUDGETS, costs / at_first, strict=True) if n in keep)
            raise IntqError(
                f"pruning cannot keep as little as {asked}: with {int(floor.max())} channels in every layer it comes "
                f"down to {reached}; ask for more, or for fewer bits"
            )
        state[unit] = (REMOVED, IMPLANTED)[step]
        total += float(lost[step, unit])


def _losses(layers: _Layers, channels: Channels, thin: Thinned, traces: Mapping[str, Tensor]) -> np.ndarray:
    """(3, units): what removing loses, what removing an implant loses, and what implanting loses."""
    found = np.zeros((3, len(channels.fixed)))
    small = {node.name for node, is_small in zip(layers.nodes, layers.small, strict=True) if is_small}
    for node in thin.graph.nodes:
        if node.op not in CONTRACTIONS:
            continue
        weight = node.parameters["weight"].detach().double()
        square = weight.reshape(*weight.shape[:2], -1).square().sum(1)  # (outputs, taps)
        if node.name not in traces or traces[node.name].shape != square.shape:
            raise IntqError(f"{node.name}: pruning needs this layer's traces (outputs, taps), {tuple(square.shape)}")
        trace, (name, outputs) = traces[node.name].double(), thin.origin[node.name]
        units, inputs = channels.units[name][outputs], weight.shape[1]
        middle = torch.ones(square.shape[1], dtype=torch.bool)
        if name in small:
            middle = torch.arange(square.shape[1]) == square.shape[1] // 2
        for kind, taps in enumerate((torch.ones_like(middle), middle, ~middle)):
            p = inputs * max(int(taps.sum()), 1)
            own = trace[:, taps].sum(1)
            own = own.clamp_min(NOISE * float(own.abs().mean()))
            loss = own / (2 * p) * square[:, taps].sum(1)
            np.add.at(found[kind], units, loss.numpy())
    return found


# ---- what is left ------------------------------------------------------------------------------------------------


@torch.no_grad()
def refitted(thin: Thinned, graph: FloatGraph, batches: Sequence[Tensor]) -> FloatGraph:
    """The network that is left, the weights and biases of each layer fitted to what it answered in ``graph``:

        minimise  |W x' + r' + b - (W0 x + r + b0)|^2 + RIDGE mean(x'^2) |W - W'|^2

    before the activation, over all samples and places; x' and the residual r' are what the fitted layers before make of
    them, W' the weights that are left. Without an error there is none to fit: weights that answer alike stay.
    """
    exact, rough = {graph.input: list(batches)}, {graph.input: list(batches)}
    done, done_thin = graph.done_after(), thin.graph.done_after()
    left, nodes = iter(thin.graph.nodes), []
    for node in graph.nodes:
        inputs = [list(x) for x in zip(*(exact[name] for name in node.inputs), strict=True)]
        wanted = [by_position(_answer(node, *x)) for x in inputs] if node.op in CONTRACTIONS else []
        exact[node.name] = [evaluate(node, *x) for x in inputs]
        for name in done[node.name]:
            del exact[name]
        while not nodes or nodes[-1].name != node.name:  # a layer in parts ends in one that has its name
            part = next(left)
            inputs = [list(x) for x in zip(*(rough[name] for name in part.inputs), strict=True)]
            if part.name in thin.origin:
                outputs = torch.from_numpy(thin.origin[part.name][1])
                part = _fitted(part, inputs, [y[:, outputs] for y in wanted])
            rough[part.name] = [evaluate(part, *x) for x in inputs]
            for name in done_thin[part.name]:
                del rough[name]
            nodes.append(part)
    return replace(thin.graph, nodes=tuple(nodes))


def _answer(node: FloatNode, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """What a layer answers before its activation."""
    y = contraction(node, x, node.parameters["weight"], node.parameters["bias"])
    return y if residual is None else y + scaled_residual(node, residual)


def _fitted(node: FloatNode, inputs: Sequence[Sequence[Tensor]], wanted: Sequence[Tensor]) -> FloatNode:
    """The layer with the weights and the bias of least squares; ``wanted``: (places, outputs) of each batch."""
    weight = node.parameters["weight"]
    groups = node.attrs.get("groups", 1)
    k, each = weight[0].numel(), len(weight) // groups
    squares = torch.zeros(groups, k + 1, k + 1, dtype=torch.float64)
    short = torch.zeros(groups, k + 1, each, dtype=torch.float64)
    for x, y in zip(inputs, wanted, strict=True):
        error = (y - by_position(_answer(node, *x))).unflatten(1, (groups, each))
        for at in torch.arange(len(y)).split(ROWS):
            rows = F.pad(rows_at(node, x[0], at), (0, 1), value=1.0).transpose(0, 1)  # (groups, places, k + 1)
            squares += rows.transpose(1, 2) @ rows
            short += rows.transpose(1, 2) @ error[at].transpose(0, 1)
    level = squares.diagonal(dim1=1, dim2=2)[:, :k].mean(1, keepdim=True)
    ridge = torch.where(level > 0, RIDGE * level, 1.0).expand(groups, k)
    squares += torch.diag_embed(F.pad(ridge, (0, 1)))
    change = torch.linalg.solve(squares, short).transpose(1, 2).reshape(len(weight), k + 1)  # (outputs, k + 1)
    return node.with_parameters(
        weight=(weight.double() + change[:, :k].reshape(weight.shape)).to(weight),
        bias=(node.parameters["bias"].double() + change[:, k]).to(node.parameters["bias"]),
    )
