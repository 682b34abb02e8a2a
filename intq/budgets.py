"""What a network may cost: budgets as people write them, ``size=7.5MB,bops=0.5x,latency=0.8x``.

A budget is absolute, a number with a unit, or relative: ``0.5x`` is half of what the network costs at W8A8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from intq.errors import IntqError

_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_BOPS = {"BOPS": 1, "MBOPS": 1e6, "GBOPS": 1e9, "TBOPS": 1e12, "M": 1e6, "G": 1e9, "T": 1e12}
# What can be limited: the units of each, the one for people first.
UNITS: dict[str, dict[str, float]] = {
    "size": {"MB": 1e6, **_BYTES},
    "bops": {"GBOPS": 1e9, **_BOPS},
    "latency": {"ms": 1e-3, "s": 1, "us": 1e-6, "µs": 1e-6},
    "memory": {"MB": 1e6, **_BYTES},
}
_SPELLED = {
    "size": {unit: _BYTES[unit] for unit in ("GB", "MB", "kB", "B")},
    "bops": {unit: _BOPS[unit] for unit in ("TBOPS", "GBOPS", "MBOPS", "BOPS")},
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "memory": {unit: _BYTES[unit] for unit in ("GB", "MB", "kB", "B")},
}
_PART = re.compile(r"\s*(?P<name>\w+)\s*=\s*(?P<number>[0-9.]+(?:[eE][-+]?\d+)?)\s*(?P<unit>[^\W\d]*)\s*")


@dataclass(frozen=True)
class Budget:
    """At most ``value`` (bytes, BOPS or seconds), or with ``relative`` at most so many times W8A8's."""

    value: float
    relative: bool = False


def parse_budgets(text: str) -> dict[str, Budget]:
    """{"size": Budget, ...} of a text such as ``size=7.5MB,bops=0.5x,latency=0.8x``.

    Raises IntqError, saying what is understood.
    """
    budgets: dict[str, Budget] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or match["name"] not in UNITS:
            known = ", ".join(f"{name}=1{next(iter(units))}" for name, units in UNITS.items())
            raise IntqError(
                f"a budget is a name, = and a number with its unit, or with x for so many times W8A8's: {known}, "
                f"bops=0.5x; several are separated by commas; found {part.strip()!r}"
            )
        name, unit = match["name"], match["unit"]
        if name in budgets:
            raise IntqError(f"the budget {name} is given twice in {text!r}; give it once")
        if unit != "x" and unit not in UNITS[name]:
            units = ", ".join(UNITS[name])
            raise IntqError(f"the unit of {name} is one of {units}, or x for so many times W8A8's; found {part!r}")
        try:
            value = float(match["number"]) * (1 if unit == "x" else UNITS[name][unit])
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise IntqError(f"the budget {name} must be a number above 0, found {match['number']!r}")
        budgets[name] = Budget(value, unit == "x")
    return budgets


def limits(budgets: Mapping[str, Budget], costs: Mapping[str, float]) -> dict[str, float]:
    """The budgets in bytes, BOPS and seconds, for a network whose W8A8 has these ``costs``.

    Raises IntqError for a budget of what is not known of the network.
    """
    for name in budgets:
        if name not in costs:
            remedy = "; measure a table of latencies first (intq bench --latencies)" if name == "latency" else ""
            raise IntqError(f"there is no {name} to limit; the network has {', '.join(costs)}{remedy}")
    return {name: b.value * costs[name] if b.relative else b.value for name, b in budgets.items()}


def spelled(name: str, value: float, up: bool = False) -> str:
    """A cost for people, ``7.5 MB``, to six digits, or with ``up`` the next larger number of six; a bare number where
    the kind is unknown."""
    units = _SPELLED.get(name, {"": 1.0})
    unit = next((unit for unit, factor in units.items() if abs(value) >= factor), list(units)[-1])
    scaled = value / units[unit]
    if up and scaled > 0:
        step = 10.0 ** (math.floor(math.log10(scaled)) - 5)
        scaled = math.ceil(scaled / step * (1 - 1e-12)) * step
    return f"{scaled:.6g} {unit}".strip()
