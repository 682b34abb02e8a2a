"""What `intq search` does: how sensitive the layers of a network are, what they cost, and which bits they get.

The error of a choice is, for the weights and for what a layer reads, what the network's answers lose by rounding that
alone (:mod:`intq.ablation`), or the mean trace of the Hessian times the squared error of rounding
(:mod:`intq.sensitivity`); that of a value which several layers read together counts once. The loss is the cross entropy
to the network's own answers: no labels are needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from intq import ablation, baselines, dataflow
from intq.budgets import Budget, limits
from intq.calibrate import Histogram, choose_range
from intq.cost import Bits, Geometry, Latencies, bits_name
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph
from intq.graph import Graph
from intq.hessian import Trace, Traces, traces
from intq.losses import of_graph, split, with_drawn_answers, with_own_answers
from intq.plan import LEVELS, NIBBLE, Quant, Weights
from intq.precision import PrecisionPlan, plan_of
from intq.problem import Assignment, Choice, Problem, problem_of, uniform_plan
from intq.quantize import Observed, for_walk, quantized
from intq.quants import affine
from intq.search import pareto
from intq.sensitivity import Fisher, fisher, omega, weight_error

SENSITIVITIES = ("loss", "hessian", "fisher")
TOLERANCE = 0.1  # relative standard error of the traces
PROBES = 32  # of each batch at most
SIZE = 1  # samples that go through the network together: the more batches, the more probes for the same passes
ABLATED = 8  # samples that go through the network together where there are no derivatives
FRONT = 20  # points of a front

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sensitivities:
    """What narrow integers cost, by node: ``weights`` {node: {bits: omega}}, ``inputs`` {value that is read: the same}.

    ``traces``: of the Hessian's blocks, or of the Fisher information's, which the errors are made of or which are told
    beside them. ``seconds``: how long it took.
    """

    method: str
    weights: Mapping[str, Mapping[int, float]]
    inputs: Mapping[str, Mapping[int, float]]
    traces: Traces | Fisher
    seconds: float


@dataclass(frozen=True)
class Searched:
    """What a search found, what it was about, and of each cost the front: (cost, error) of the best plans."""

    found: Assignment
    problem: Problem
    budgets: Mapping[str, float]
    fronts: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def sensitivities(
    seen: Observed,
    offered: Sequence[Bits],
    method: str,
    samples: int,
    *,
    seed: int = 0,
    progress: Progress,
) -> Sensitivities:
    """What each layer of a network costs in the bits that are offered, and in 8, on ``samples`` of the batches.

    ``method``: "loss" rounds each layer as its options say and compares the network's answers;
    "hessian" and "fisher" multiply traces with the squared error of rounding to nearest.
    Raises IntqError for an unknown method and as :func:`intq.hessian.traces`.
    """
    if method not in SENSITIVITIES:
        raise IntqError(f"the sensitivity must be one of {', '.join(SENSITIVITIES)}, got {method!r}")
    start, graph = time.perf_counter(), seen.graph
    widths, reads = sorted({8} | {w for w, _ in offered}), sorted({8} | {a for _, a in offered})
    alone, loss = _first(seen.batches, samples, SIZE), of_graph(graph)
    if method == "hessian":
        found = traces(
            loss,
            with_own_answers(graph.run, alone),
            tolerance=TOLERANCE,
            most=PROBES,
            seed=seed,
            progress=lambda done, total: progress("hessian", done, total),
        )
    else:
        drawn = with_drawn_answers(graph.run, alone, seed)
        found = fisher(loss, drawn, progress=lambda done, total: progress("fisher", done, total))
    nodes, given = [node for node in graph.nodes if node.op in CONTRACTIONS], dataflow.input_readers(graph)
    values = list(dict.fromkeys(node.inputs[0] for node in nodes if node.module not in given))
    if method == "loss":
        weights, inputs = _measured(seen, widths, reads, values, samples, progress)
    else:
        weights = {
            node.name: omega(found.weights[node.name], {b: weight_error(node.parameters["weight"], b) for b in widths})
            for node in nodes
        }
        inputs = {
            value: omega(
                found.activations[value],
                {b: input_error(seen.histograms[value], b, found.activations[value].elements) for b in reads},
            )
            for value in values
        }
    return Sensitivities(method, weights, inputs, found, time.perf_counter() - start)


def _measured(
    seen: Observed,
    widths: Sequence[int],
    reads: Sequence[int],
    values: Sequence[str],
    samples: int,
    progress: Progress,
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """What the answers lose by each layer's weights and by each value alone, in so many bits; 16 bits lose nothing."""
    graph, total = seen.graph, len(seen.graph.nodes)
    rounded: dict[ablation.Key, Weights] = {}
    walk = ablation.rounded(
        graph,
        for_walk(graph, seen.batches),
        [b for b in widths if b < 16],
        seen.options.rounding,
        seen.options.bias_correction,
        seen.options.seed,
    )
    places = {node.name: at for at, node in enumerate(graph.nodes)}
    for key, weights in walk:
        rounded[key] = weights
        progress("weights", places[key[0]] + 1, total)
    quants = {(value, b): input_quant(seen.histograms[value], b) for value in values for b in reads if b < 16}
    of_weights, of_inputs = ablation.omegas(
        graph,
        _first(seen.batches, samples, ABLATED),
        rounded,
        quants,
        lambda done, total: progress("loss", done, total),
    )
    return (
        {name: {b: of_weights.get((name, b), 0.0) for b in widths} for name in dict.fromkeys(n for n, _ in rounded)},
        {value: {b: of_inputs.get((value, b), 0.0) for b in reads} for value in values},
    )


def layer_traces(graph: FloatGraph, found: Sensitivities) -> dict[str, dict[str, float]]:
    """{layer: {"weights" and "inputs": mean trace}}."""
    each: dict[str, dict[str, list[Trace]]] = {}
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            kinds = each.setdefault(node.module, {"weights": [], "inputs": []})
            kinds["weights"].append(found.traces.weights[node.name])
            kinds["inputs"].append(found.traces.activations[node.inputs[0]])
    return {
        name: {kind: sum(t.trace for t in made) / sum(t.elements for t in made) for kind, made in kinds.items()}
        for name, kinds in each.items()
    }


def _first(batches: Sequence[torch.Tensor], samples: int, size: int) -> list[torch.Tensor]:
    """The first samples, so many or some more, in batches of at most ``size``."""
    found: list[torch.Tensor] = []
    for batch in split(list(batches), size):
        if sum(map(len, found)) >= samples:
            break
        found.append(batch)
    return found


def input_quant(histogram: Histogram, bits: int) -> Quant:
    """What 8 or 4 bits of a value mean, by its histogram."""
    dtype = NIBBLE if bits == 4 else "uint8"
    return affine(dtype, *choose_range([histogram], "mse", None, LEVELS[dtype][1]))


def input_error(histogram: Histogram, bits: int, elements: float) -> float:
    """|Q_b(a) - a|**2 of a value, the mean over samples of the sum over its ``elements``, by its histogram."""
    if bits == 16 or not float(histogram.counts.sum()):
        return 0.0
    centers, counts = histogram.centers(), histogram.counts
    error = (input_quant(histogram, bits).round(centers) - centers).square()
    return float((error * counts).sum() / counts.sum()) * elements


def problem(
    seen: Observed,
    found: Sensitivities,
    offered: Sequence[Bits],
    fixed: Collection[str] = (),
    latencies: Latencies | None = None,
) -> tuple[Problem, dict[str, Geometry]]:
    """The search for a network's bits: layers, what they may have, errors, costs, ties and memory.

    ``offered``: pairs of bits, of weights and inputs. ``fixed``: patterns of layers that keep 8 bits of both. Layers
    that read the network's input read it as it comes.
    Raises IntqError for a pattern that matches no layer.
    """
    graph, sizes = seen.graph, sizes_of(seen)
    for pattern in fixed:
        if not any(fnmatchcase(node.module, pattern) for node in graph.nodes if node.op in CONTRACTIONS):
            raise IntqError(f"no layer is called {pattern!r}, which is to keep 8 bits")
    layers, ties, given = dataflow.layers(graph, sizes), dataflow.ties(graph), dataflow.input_readers(graph)
    weight_errors: dict[str, dict[int, float]] = {name: {} for name in layers}
    input_errors: dict[str, dict[int, float]] = {name: {} for name in layers}
    counted: set[str] = set()
    for node in graph.nodes:
        if node.op not in CONTRACTIONS:
            continue
        name, value = node.module, node.inputs[0]
        keeps = any(fnmatchcase(name, pattern) for pattern in fixed)
        for bits in {8} if keeps else {bits for bits, _ in offered}:
            weight_errors[name][bits] = weight_errors[name].get(bits, 0.0) + found.weights[node.name][bits]
        for bits in {8} if keeps or name in given else {bits for _, bits in offered}:
            error = 0.0 if value in counted or name in given else found.inputs[value][bits]
            input_errors[name][bits] = input_errors[name].get(bits, 0.0) + error
        counted.add(value)
    moments = dataflow.moments(graph, sizes, seen.options.residual_bits)
    made = problem_of(
        layers, weight_errors, input_errors, ties=ties, moments=moments, latencies=latencies, offered=offered
    )
    return made, layers


def sizes_of(seen: Observed) -> dict[str, int]:
    """The symbolic axes' sizes (tokens, samples) that costs are counted for: those of the calibration data."""
    shape = seen.graph.input_shape
    longest = max(seen.batches, key=lambda batch: batch.numel() / len(batch))
    return {d: int(longest.shape[i]) for i, d in enumerate(shape) if i and isinstance(d, str)}


def chosen(
    made: Problem,
    budgets: Mapping[str, Budget],
    method: str,
    *,
    seed: int = 0,
    trials: int = 100,
    evaluate: baselines.Evaluate | None = None,
) -> Searched:
    """The plan of a method within budgets, and the fronts of error against each cost that is limited."""
    if method not in baselines.METHODS:
        raise IntqError(f"the method must be one of {', '.join(baselines.METHODS)}, got {method!r}")
    bounds = limits(budgets, uniform_plan(made, 8, 8).costs)
    best = baselines.METHODS[method](made, bounds, seed=seed, trials=trials, evaluate=evaluate)
    fronts = {cost: _points(pareto(made, cost, points=FRONT), cost) for cost in bounds or ("size",) if cost != "error"}
    return Searched(best, made, bounds, fronts)


def within_drop(
    made: Problem,
    budgets: Mapping[str, Budget],
    cost: str,
    drop_of: Callable[[Mapping[str, Choice]], float],
    most: float,
    progress: Callable[[int, int], None],
) -> Searched:
    """The plan of least ``cost`` on the front whose drop of accuracy is at most ``most``, by bisection.

    Raises IntqError when not even the plan of least error is within it.
    """
    bounds = limits(budgets, uniform_plan(made, 8, 8).costs)
    front = pareto(made, cost, bounds, FRONT)
    low, high, tried = 0, len(front) - 1, 0
    drops: dict[int, float] = {}

    def drop(at: int) -> float:
        nonlocal tried
        if at not in drops:
            drops[at] = drop_of(front[at].choices)
            tried += 1
            progress(tried, len(front).bit_length() + 1)
        return drops[at]

    if drop(high) > most:
        raise IntqError(
            f"even the plan of least error loses {drop(high):.2f} points, and {most:g} are allowed: allow more, offer "
            "more bits (--offer), or fine-tune"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if drop(middle) <= most else (middle + 1, high)
    best = replace(front[high], evaluations=tried, score=drops[high], method="ilp", minimized=cost)
    return Searched(best, made, bounds, {cost: _points(front, cost)})


def _points(front: Sequence[Assignment], cost: str) -> list[tuple[float, float]]:
    return [(point.costs[cost], point.error) for point in front]


def precision_plan(
    value: Searched, name: str, graph: FloatGraph, layers: Mapping[str, Geometry], found: Sensitivities
) -> PrecisionPlan:
    """The plan of the network called ``name``, with what it tells the report: errors of choices, traces, fronts."""
    errors = {layer.name: {bits_name(c.bits): c.error for c in layer.choices} for layer in value.problem.layers}
    return replace(
        plan_of(value.found, layers, name, value.budgets, errors),
        w8a8=dict(uniform_plan(value.problem, 8, 8).costs),
        traces=layer_traces(graph, found),
        sensitivity_method=found.method,
        sensitivity_seconds=found.seconds,
        fronts={cost: tuple(points) for cost, points in value.fronts.items()},
    )


def uniform(graph: FloatGraph, pair: Bits) -> dict[str, Choice]:
    """The same bits for every layer, (weights, inputs); what reads the network's input takes it in 8."""
    given = dataflow.input_readers(graph)
    return {name: Choice(pair[0], 8 if name in given else pair[1], 0.0) for name in dataflow.shapes(graph)}


def applied(seen: Observed, choices: Mapping[str, Choice], rounding: str = "nearest") -> Graph:
    """The integer network of a network with these bits, weights rounded quickly."""
    bits = {name: choice.input_bits for name, choice in choices.items()}
    weight_bits = {name: choice.weight_bits for name, choice in choices.items()}
    options = replace(seen.options, bits=bits, weight_bits=weight_bits, rounding=rounding)
    return quantized(replace(seen, options=options))


def as_json(value: Searched, found: Sensitivities) -> dict[str, Any]:
    """The documented value of `intq search`."""
    best = value.found
    return {
        "method": best.method,
        "error": best.error,
        "costs": dict(best.costs),
        "budgets": dict(value.budgets),
        "w8a8": dict(uniform_plan(value.problem, 8, 8).costs),
        "gap": None if math.isnan(best.gap) else best.gap,
        "search_seconds": best.seconds,
        "sensitivity": found.method,
        "sensitivity_seconds": found.seconds,
        "evaluations": best.evaluations,
        "score": best.score,
        "layers": {
            name: {"weight_bits": c.weight_bits, "input_bits": c.input_bits} for name, c in best.choices.items()
        },
        "fronts": {cost: [list(point) for point in points] for cost, points in value.fronts.items()},
        "traces": {
            kind: {name: asdict(trace) for name, trace in each.items()}
            for kind, each in (("weights", found.traces.weights), ("activations", found.traces.activations))
        },
    }
