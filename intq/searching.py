"""What `intq search` does: how sensitive the layers of a network are, what they cost, and which bits they get.

The error of a choice is, for the weights and for what a layer reads, the mean trace of the Hessian times the squared
error of rounding to so many bits (:mod:`intq.sensitivity`); that of a value which several layers read together counts
once. The loss is the cross entropy to the network's own answers: no labels are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from intq import baselines, dataflow
from intq.budgets import Budget, limits
from intq.calibrate import Histogram, choose_range
from intq.cost import Bits, Geometry, Latencies, bits_name
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph
from intq.graph import Graph
from intq.hessian import Trace, traces
from intq.losses import of_graph, split, with_drawn_answers, with_own_answers
from intq.plan import LEVELS, NIBBLE
from intq.precision import PrecisionPlan, plan_of
from intq.problem import Assignment, Choice, Problem, problem_of, uniform_plan
from intq.quantize import Observed, quantized
from intq.quants import affine
from intq.search import pareto
from intq.sensitivity import fisher, omega, weight_error

SENSITIVITIES = ("hessian", "fisher")
TOLERANCE = 0.1  # relative standard error of the traces
PROBES = 32  # of each batch at most
SIZE = 1  # samples that go through the network together: the more batches, the more probes for the same passes
FRONT = 20  # points of a front

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sensitivities:
    """By node: the traces of the weights and of the values that layers read; and how long they took.

    ``layers``: {layer: {"weights" and "inputs": mean trace}}, for the report.
    """

    method: str
    weights: Mapping[str, Trace]
    activations: Mapping[str, Trace]
    layers: Mapping[str, Mapping[str, float]]
    seconds: float


@dataclass(frozen=True)
class Searched:
    """What a search found, what it was about, and of each cost the front: (cost, error) of the best plans."""

    found: Assignment
    plan: PrecisionPlan
    problem: Problem
    budgets: Mapping[str, float]
    fronts: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def sensitivities(
    graph: FloatGraph, batches: Sequence[torch.Tensor], method: str, samples: int, seed: int, progress: Progress
) -> Sensitivities:
    """How the loss curves with each weight and each value, on ``samples`` of the batches.

    Raises IntqError for an unknown method and as :func:`intq.hessian.traces`.
    """
    if method not in SENSITIVITIES:
        raise IntqError(f"the sensitivity must be one of {', '.join(SENSITIVITIES)}, got {method!r}")
    start, inputs = time.perf_counter(), _first(batches, samples)
    loss = of_graph(graph)
    if method == "fisher":
        drawn = with_drawn_answers(graph.run, inputs, seed)
        found = fisher(loss, drawn, progress=lambda done, total: progress("fisher", done, total))
    else:
        answered = with_own_answers(graph.run, inputs)
        found = traces(
            loss,
            answered,
            tolerance=TOLERANCE,
            most=PROBES,
            seed=seed,
            progress=lambda done, total: progress("hessian", done, total),
        )
    layers = _of_layers(graph, found.weights, found.activations)
    return Sensitivities(method, found.weights, found.activations, layers, time.perf_counter() - start)


def _of_layers(
    graph: FloatGraph, weights: Mapping[str, Trace], activations: Mapping[str, Trace]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[Trace]]] = {}
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            each = found.setdefault(node.module, {"weights": [], "inputs": []})
            each["weights"].append(weights[node.name])
            each["inputs"].append(activations[node.inputs[0]])
    return {
        name: {kind: sum(t.trace for t in made) / sum(t.elements for t in made) for kind, made in each.items()}
        for name, each in found.items()
    }


def _first(batches: Sequence[torch.Tensor], samples: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for batch in split(list(batches), SIZE):
        if sum(map(len, found)) >= samples:
            break
        found.append(batch)
    return found


def input_error(histogram: Histogram, bits: int, elements: float) -> float:
    """|Q_b(a) - a|**2 of a value, the mean over samples of the sum over its ``elements``, by its histogram."""
    if bits == 16 or not float(histogram.counts.sum()):
        return 0.0
    dtype = NIBBLE if bits == 4 else "uint8"
    quant = affine(dtype, *choose_range([histogram], "mse", None, LEVELS[dtype][1]))
    centers, counts = histogram.centers(), histogram.counts
    error = (quant.round(centers) - centers).square()
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
        name, value, weight = node.module, node.inputs[0], node.parameters["weight"]
        keeps = any(fnmatchcase(name, pattern) for pattern in fixed)
        widths = {8} if keeps else {bits for bits, _ in offered}
        errors = omega(found.weights[node.name], {bits: weight_error(weight, bits) for bits in widths})
        weight_errors[name] = {b: weight_errors[name].get(b, 0.0) + e for b, e in errors.items()}
        widths = {8} if keeps or name in given else {bits for _, bits in offered}
        trace = found.activations[value]
        errors = dict.fromkeys(widths, 0.0)
        if value not in counted and name not in given:
            errors = omega(trace, {b: input_error(seen.histograms[value], b, trace.elements) for b in widths})
        counted.add(value)
        input_errors[name] = {b: input_errors[name].get(b, 0.0) + e for b, e in errors.items()}
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
    name: str,
    made: Problem,
    layers: Mapping[str, Geometry],
    found: Sensitivities,
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
    fronts = {cost: _front(made, cost) for cost in (bounds or {"size": 0.0}) if cost != "error"}
    return Searched(best, _plan(best, name, made, layers, found, bounds, fronts), made, bounds, fronts)


def within_drop(
    name: str,
    made: Problem,
    layers: Mapping[str, Geometry],
    found: Sensitivities,
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
    fronts = {cost: [(p.costs[cost], p.error) for p in front]}
    return Searched(best, _plan(best, name, made, layers, found, bounds, fronts), made, bounds, fronts)


def _front(made: Problem, cost: str) -> list[tuple[float, float]]:
    return [(point.costs[cost], point.error) for point in pareto(made, cost, points=FRONT)]


def _plan(
    best: Assignment,
    name: str,
    made: Problem,
    layers: Mapping[str, Geometry],
    found: Sensitivities,
    bounds: Mapping[str, float],
    fronts: Mapping[str, Sequence[tuple[float, float]]],
) -> PrecisionPlan:
    """The plan, with what it tells the report: the errors of each layer's choices, traces, fronts."""
    errors = {layer.name: {bits_name(c.bits): c.error for c in layer.choices} for layer in made.layers}
    return replace(
        plan_of(best, layers, name, bounds, errors),
        w8a8=dict(uniform_plan(made, 8, 8).costs),
        traces=found.layers,
        sensitivity_method=found.method,
        sensitivity_seconds=found.seconds,
        fronts={cost: tuple(points) for cost, points in fronts.items()},
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
        "gap": value.plan.gap,
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
            for kind, each in (("weights", found.weights), ("activations", found.activations))
        },
    }
