"""The plan file: which bits every layer of a network gets, how they were found, and of which network.

plan.json holds, for each layer by module path, the bits of its weights and of its inputs, and the shapes of its
weights: by them a plan is known to be for another network, and which layers differ. A person may edit the bits.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intq.cost import Geometry
from intq.documents import listed, number, numbers, read_document, table, text, whole, write_document
from intq.errors import IntqError
from intq.problem import Assignment

FORMAT, VERSION = "intq-plan", 1
WEIGHT_BITS, INPUT_BITS = (2, 4, 8, 16), (4, 8, 16)

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Precision:
    """A layer's bits, and the shapes of its weights as :class:`intq.cost.Geometry` has them."""

    weight_bits: int
    input_bits: int
    shapes: Shapes


@dataclass(frozen=True)
class PrecisionPlan:
    """The bits of a network's layers, and how they were found.

    ``budgets``, ``costs`` and ``w8a8`` (costs of 8 bits everywhere): bytes, BOPS, seconds by name; ``gap``: what a
    better plan could gain at most, relative, None where nothing is proven. For the report: ``sensitivity``, {layer:
    {"W4A8": error}}; ``traces``, {layer: {"weights" and "inputs": mean trace}}, found by ``sensitivity_method``;
    ``fronts``, {cost: ((cost, error), ...)} of the best plans; ``command``, that searched.
    """

    network: str
    layers: Mapping[str, Precision]
    method: str = ""
    minimized: str = "error"
    budgets: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    gap: float | None = None
    seconds: float = 0.0
    seed: int = 0
    evaluations: int = 0
    score: float | None = None
    sensitivity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    w8a8: Mapping[str, float] = field(default_factory=dict)
    traces: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sensitivity_method: str = ""
    sensitivity_seconds: float = 0.0
    fronts: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    command: str = ""

    def patterns(self) -> tuple[dict[str, int], dict[str, int]]:
        """What the quantizer takes: {layer: bits of its input} and {layer: bits of its weights}."""
        bits = {glob.escape(name): layer.input_bits for name, layer in self.layers.items()}
        return bits, {glob.escape(name): layer.weight_bits for name, layer in self.layers.items()}

    def check(self, layers: Mapping[str, Geometry], network: str) -> None:
        """Raise IntqError, naming the layers that differ, unless the plan is for a network of these layers."""
        found = {name: geometry.shapes for name, geometry in layers.items()}
        lines = [f"{name} is not in the network" for name in self.layers if name not in found]
        lines += [f"{name} is not in the plan" for name in found if name not in self.layers]
        lines += [
            f"{name} has weights of {_spelled(found[name])}, the plan's of {_spelled(layer.shapes)}"
            for name, layer in self.layers.items()
            if name in found and found[name] != layer.shapes
        ]
        if lines:
            more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
            raise IntqError(
                f"the plan is for another network ({self.network}, {len(self.layers)} layers) than {network} "
                f"({len(found)} layers): {'; '.join(lines[:3])}{more}; search again for this one"
            )


def parse_bits(text: str) -> tuple[tuple[int, int], ...]:
    """((weight bits, input bits), ...) of a text such as ``W8A8,W4A8``. Raises IntqError, saying what is understood."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*[Ww](\d+)[Aa](\d+)\s*", part)
        pair = (int(match[1]), int(match[2])) if match else (0, 0)
        if pair[0] not in WEIGHT_BITS or pair[1] not in INPUT_BITS:
            raise IntqError(
                f"bits are offered as W4A8, weights of {', '.join(map(str, WEIGHT_BITS))} bits and inputs of "
                f"{', '.join(map(str, INPUT_BITS))}, several separated by commas; found {part.strip()!r}"
            )
        found.append(pair)
    return tuple(dict.fromkeys(found))


def plan_of(
    found: Assignment,
    layers: Mapping[str, Geometry],
    network: str,
    budgets: Mapping[str, float],
    sensitivity: Mapping[str, Mapping[str, float]] | None = None,
) -> PrecisionPlan:
    """The plan of what a search found."""
    return PrecisionPlan(
        network,
        {name: Precision(*choice.bits, layers[name].shapes) for name, choice in found.choices.items()},
        found.method,
        found.minimized,
        dict(budgets),
        found.error,
        dict(found.costs),
        None if math.isnan(found.gap) else found.gap,
        found.seconds,
        found.seed,
        found.evaluations,
        found.score,
        dict(sensitivity or {}),
    )


def write_plan(path: str | Path, plan: PrecisionPlan) -> None:
    """Write a plan as JSON, whole or not at all. Raises IntqError when the place cannot be written."""
    write_document(path, FORMAT, VERSION, to_document(plan))


def read_plan(path: str | Path) -> PrecisionPlan:
    """A plan from its file. Raises IntqError when it is none, malformed, or of a newer version."""
    document = read_document(path, FORMAT, VERSION)
    try:
        return from_document(document)
    except ValueError as error:
        raise IntqError(f"{path}: {error}; search again, or undo the edit") from None


def to_document(plan: PrecisionPlan) -> dict[str, Any]:
    """A plan as JSON data: what its file holds, and the metadata of a network that was made by it."""
    layers = {
        name: {
            "weight_bits": each.weight_bits,
            "input_bits": each.input_bits,
            "weights": [list(shape) for shape in each.shapes],
        }
        for name, each in plan.layers.items()
    }
    fronts = {cost: [list(point) for point in points] for cost, points in plan.fronts.items()}
    fields = {name: getattr(plan, name) for name in (*_FIELDS, *_TOLD)}
    return fields | {"layers": layers, "fronts": fronts}


def from_document(document: Mapping[str, Any]) -> PrecisionPlan:
    """A plan from its JSON data. Raises ValueError, saying what is missing or malformed."""
    if missing := [name for name in _FIELDS if name not in document]:
        raise ValueError(f"the field {missing[0]!r} is missing")
    known = _FIELDS | {name: read for name, read in _TOLD.items() if name in document}
    return PrecisionPlan(**{name: read(document[name], name) for name, read in known.items()})


def _layers(value: Any, what: str) -> dict[str, Precision]:
    if not table(value, what):
        raise ValueError(f"{what} must name one layer or more")
    return {name: _precision(each, f"{what}[{name!r}]") for name, each in value.items()}


def _precision(value: Any, what: str) -> Precision:
    fields = table(value, what)
    bits = [fields.get(name) for name in ("weight_bits", "input_bits")]
    for name, found, allowed in zip(("weight_bits", "input_bits"), bits, (WEIGHT_BITS, INPUT_BITS), strict=True):
        if type(found) is not int or found not in allowed:
            raise ValueError(f"{what}: {name} must be one of {', '.join(map(str, allowed))}, found {found!r}")
    shapes = [listed(shape, f"{what}: weights") for shape in listed(fields.get("weights"), f"{what}: weights")]
    return Precision(*bits, tuple(tuple(whole(size, f"{what}: weights", 1) for size in shape) for shape in shapes))


def _optional(value: Any, what: str) -> float | None:
    return None if value is None else number(value, what)


def _sensitivity(value: Any, what: str) -> dict[str, dict[str, float]]:
    return {name: numbers(each, f"{what}[{name!r}]") for name, each in table(value, what).items()}


def _fronts(value: Any, what: str) -> dict[str, tuple[tuple[float, float], ...]]:
    found = {}
    for cost, points in table(value, what).items():
        each = [listed(point, f"{what}[{cost!r}]") for point in listed(points, f"{what}[{cost!r}]")]
        if any(len(point) != 2 for point in each):
            raise ValueError(f"{what}[{cost!r}] must be a list of pairs, a cost and an error")
        found[cost] = tuple(tuple(number(x, f"{what}[{cost!r}]") for x in point) for point in each)
    return found


_FIELDS = {
    "network": text,
    "method": text,
    "minimized": text,
    "budgets": numbers,
    "error": number,
    "costs": numbers,
    "gap": _optional,
    "seconds": number,
    "seed": whole,
    "evaluations": whole,
    "score": _optional,
    "layers": _layers,
    "sensitivity": _sensitivity,
}
_TOLD = {  # for the report; a plan that a person wrote may lack them
    "w8a8": numbers,
    "traces": _sensitivity,
    "sensitivity_method": text,
    "sensitivity_seconds": number,
    "fronts": _fronts,
    "command": text,
}


def _spelled(shapes: Shapes) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)
