"""What HAWQ-V3 published for ResNet-18 and -50, as a problem of ours: tests/data/hawq_v3_t4.json.

The numbers are those of Zhen-Dong/HAWQ: ILP.ipynb (layers, ties, what is minimised), bit_config.py (the plans) and
model_zoo.md (accuracy, size, BOPS). The limit of a plan "size_0.5" lies half-way between the sums at 4 and at 8 bits.
"""

from __future__ import annotations

import json
from pathlib import Path

from intq.problem import Assignment, Choice, Layer, Problem, assignment, uniform_plan

NETWORKS = json.loads((Path(__file__).parent / "data" / "hawq_v3_t4.json").read_text())["networks"]
PARAMETERS = {"resnet18": 2**20, "resnet50": 1e6}  # the unit of the column
KINDS = {"modelsize": "size", "bops": "bops", "latency": "latency"}
PLANS = [(network, plan) for network in NETWORKS for plan in NETWORKS[network]["plans"]]


def problem(network: str) -> Problem:
    """Weights and inputs of 4 or 8 bits together; Omega is the mean trace times the squared change of the weights."""
    layers = tuple(
        Layer(
            row["name"],
            tuple(
                Choice(
                    bits,
                    bits,
                    row["mean_trace"] * row[f"dw2_{bits}bit"],
                    {
                        "size": row["parameters"] * PARAMETERS[network] * bits / 8,
                        "bops": row["macs"] * 1e6 * bits * bits,
                        "latency": row[f"latency_int{bits}"] / 1e3,
                    },
                )
                for bits in (4, 8)
            ),
        )
        for row in NETWORKS[network]["layers"]
    )
    return Problem(layers, ties(network))


def ties(network: str) -> tuple[tuple[str, ...], ...]:
    rows = NETWORKS[network]["layers"]
    return tuple(tuple(rows[place]["name"] for place in tie) for tie in NETWORKS[network]["ties"])


def budget(found: Problem, plan: str) -> tuple[str, float]:
    """The cost that a published plan limits, and its limit."""
    kind, _, share = plan.rpartition("_")
    name = KINDS[kind]
    low, high = (uniform_plan(found, bits, bits).costs[name] for bits in (4, 8))
    return name, low + float(share) * (high - low)


def published_plan(found: Problem, network: str, plan: str) -> Assignment:
    chosen = zip(found.layers, NETWORKS[network]["plans"][plan], strict=True)
    return assignment(
        found, {layer.name: next(c for c in layer.choices if c.weight_bits == bits) for layer, bits in chosen}
    )
