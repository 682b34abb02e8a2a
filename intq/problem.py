"""What a search for bits is about: layers with their choices, what each costs, what they share; and what is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from intq.cost import Bits, Geometry, Latencies, bits_name, layer_bops, layer_bytes
from intq.errors import IntqError

ERROR, MEMORY = "error", "memory"
SLACK = 1e-9  # relative: by how much rounded sums may differ that are equal


@dataclass(frozen=True)
class Choice:
    """A layer's bits, what they cost in error, and in bytes, BOPS, seconds ... by name."""

    weight_bits: int
    input_bits: int
    error: float
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def bits(self) -> tuple[int, int]:
        return self.weight_bits, self.input_bits


@dataclass(frozen=True)
class Layer:
    """A layer, by module path, and what it may be given."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Live:
    """A value in memory at some moment: ``least`` bytes an element, or two where ``layer`` reads 16 bits of it."""

    elements: int
    layer: str = ""
    least: int = 1

    def bytes(self, input_bits: int) -> int:
        """Its bytes when ``layer`` reads so many bits: 4 bits take a byte, as the kernels keep them."""
        return self.elements * max(self.least, 2 if input_bits > 8 else 1)


@dataclass(frozen=True)
class Problem:
    """Layers with their choices; ``ties``: names of layers that agree in their input bits; ``moments``: what is in
    memory at each step. ``base``: costs of what no choice changes.

    Raises IntqError when it is malformed: a name twice, no choices, costs that differ in kind, or that are not finite.
    """

    layers: tuple[Layer, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    moments: tuple[tuple[Live, ...], ...] = ()
    base: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names or len(set(names)) < len(names):
            raise IntqError(f"a search needs layers of different names, got {names[:8]}")
        for layer in self.layers:
            if len({choice.bits for choice in layer.choices}) < max(1, len(layer.choices)):
                raise IntqError(f"{layer.name}: its choices must be one or more, of different bits")
            for choice in layer.choices:
                if choice.costs.keys() != self.layers[0].choices[0].costs.keys():
                    raise IntqError(
                        f"{layer.name} has the costs {', '.join(choice.costs)}, "
                        f"{self.layers[0].name} has {', '.join(self.layers[0].choices[0].costs)}: they must agree"
                    )
                for what, value in (("error", choice.error), *choice.costs.items()):
                    if not math.isfinite(value) or (value < 0 and what != "error"):
                        raise IntqError(f"{layer.name}: the {what} of {bits_name(choice.bits)} is {value}")
        known = set(names)
        for group in self.ties:
            if unknown := set(group) - known:
                raise IntqError(f"a tie names {min(unknown)!r}, which is no layer of the search")
        if unknown := {live.layer for moment in self.moments for live in moment} - known - {""}:
            raise IntqError(f"a value in memory is read by {min(unknown)!r}, which is no layer of the search")
        if unknown := self.base.keys() - self.costs.keys():
            raise IntqError(f"the network has a {min(unknown)}, its layers have none")
        for group in self.groups:
            if not group.widths:
                raise IntqError(f"{', '.join(group.layers)} read the same value but have no input bits in common")

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def costs(self) -> dict[str, None]:
        """The names of what can be limited or minimised, the error apart."""
        return dict.fromkeys([*self.layers[0].choices[0].costs, *([MEMORY] if self.moments else [])])

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The layers by what they read together, each layer in one group, in the order of the first."""
        leader = {layer.name: layer.name for layer in self.layers}
        for names in self.ties:
            merged = {leader[name] for name in names}
            leader = {name: names[0] if at in merged else at for name, at in leader.items()}
        members: dict[str, list[str]] = {}
        for name, at in leader.items():
            members.setdefault(at, []).append(name)
        found = []
        for names in members.values():
            sets = [{choice.input_bits for choice in self.by_name[name].choices} for name in names]
            found.append(Group(tuple(names), tuple(sorted(set.intersection(*sets)))))
        return tuple(found)


@dataclass(frozen=True)
class Group:
    """Layers that read the same integers, and the input widths that all of them may have."""

    layers: tuple[str, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """What a search found: a choice of every layer.

    ``gap``: by how much a better plan may still be better, relative to the objective; 0 is proven, nan not known.
    ``evaluations``: how often a network was tried on data. ``method``, ``minimized``, ``seed``, ``seconds``: how it was
    found.
    """

    choices: Mapping[str, Choice]
    error: float
    costs: Mapping[str, float]
    method: str = ""
    minimized: str = ERROR
    gap: float = math.nan
    seconds: float = 0.0
    seed: int = 0
    evaluations: int = 0
    score: float | None = None  # what `evaluate` said of it

    @property
    def objective(self) -> float:
        return value_of(self, self.minimized)


Evaluate = Callable[[Mapping[str, Choice]], float]


def assignment(problem: Problem, choices: Mapping[str, Choice], **how) -> Assignment:
    """The plan of some choices, with its error and costs."""
    ordered = {layer.name: choices[layer.name] for layer in problem.layers}
    costs = {}
    for name in problem.costs:
        if name == MEMORY:
            costs[name] = max(_bytes(moment, ordered) for moment in problem.moments)
        else:
            costs[name] = problem.base.get(name, 0) + sum(choice.costs[name] for choice in ordered.values())
    return Assignment(ordered, float(sum(choice.error for choice in ordered.values())), costs, **how)


def _bytes(moment: Sequence[Live], choices: Mapping[str, Choice]) -> int:
    return sum(live.bytes(choices[live.layer].input_bits if live.layer else 8) for live in moment)


def value_of(found: Assignment, name: str) -> float:
    """Its error, or one of its costs."""
    return found.error if name == ERROR else found.costs[name]


def fits(problem: Problem, found: Assignment, budgets: Mapping[str, float]) -> bool:
    """Whether a plan is within every budget, but for how sums are rounded."""
    return all(value_of(found, name) <= limit + slack(problem, name, limit) for name, limit in budgets.items())


def slack(problem: Problem, name: str, limit: float) -> float:
    """How far rounded sums may exceed a limit: errors may be of either sign, and cancel."""
    least = sum(abs(min(c.error for c in layer.choices)) for layer in problem.layers) if name == ERROR else 0.0
    return SLACK * max(abs(limit), least)


def uniform_plan(problem: Problem, weight_bits: int = 8, input_bits: int = 8) -> Assignment:
    """The plan that gives every layer these bits, or of what it may have the next wider, else the widest."""
    choices = {}
    for group in problem.groups:
        width = _at_least(group.widths, input_bits)
        for name in group.layers:
            offered = {c.weight_bits: c for c in problem.by_name[name].choices if c.input_bits == width}
            choices[name] = offered[_at_least(offered, weight_bits)]
    return assignment(problem, choices, method="uniform")


def _at_least(offered, wanted: int) -> int:
    return min((bits for bits in offered if bits >= wanted), default=max(offered))


def problem_of(
    layers: Mapping[str, Geometry],
    weight_errors: Mapping[str, Mapping[int, float]],
    input_errors: Mapping[str, Mapping[int, float]] | None = None,
    *,
    ties: Sequence[Sequence[str]] = (),
    moments: Sequence[Sequence[Live]] = (),
    latencies: Latencies | None = None,
    offered: Collection[Bits] = (),
) -> Problem:
    """The search over a network's layers (:func:`intq.dataflow.layers`).

    A choice's error is that of its weights and that of its inputs, which the Hessian's blocks add (HAWQ-V2, Dong et al.
    2020): ``weight_errors[layer][bits] + input_errors[layer][bits]``. The bits that a layer is offered are
    those that have errors; without input errors all inputs have 8 bits. Layers that are tied read one value: each
    brings its own error of reading it, or one of them the value's and the others 0.
    ``offered``: the pairs of bits, of weights and inputs, that layers may have; a layer that has errors for none of
    them, because it reads an input as it comes, may have all that it has errors for.
    Raises IntqError when a layer has no errors, or a latency is missing.
    """
    input_errors = input_errors if input_errors is not None else {name: {8: 0.0} for name in layers}
    found = []
    for name, geometry in layers.items():
        for what, errors in (("weights", weight_errors), ("inputs", input_errors)):
            if not errors.get(name):
                raise IntqError(f"the error of the {what} of {name!r} is not known at any width; measure it first")
        choices, pairs = [], sorted(product(weight_errors[name], input_errors[name]))
        for bits in [pair for pair in pairs if pair in offered] or pairs:
            costs = {"size": layer_bytes(geometry, bits[0]), "bops": layer_bops(geometry, *bits)}
            if latencies is not None:
                costs["latency"] = latencies.of(name, *bits)
            choices.append(Choice(*bits, weight_errors[name][bits[0]] + input_errors[name][bits[1]], costs))
        found.append(Layer(name, tuple(choices)))
    base = {} if latencies is None else {"latency": latencies.other}
    return Problem(tuple(found), tuple(map(tuple, ties)), tuple(map(tuple, moments)), base)
