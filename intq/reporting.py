"""What `intq report` tells of an artifact: what its files hold, and what was measured for the report alone."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from intq import artifact, cost
from intq.artifact import GRAPH_FILE
from intq.bench import length_of
from intq.errors import IntqError
from intq.graph import Graph
from intq.networks import asked, versions
from intq.precision import PrecisionPlan, Shapes, from_document

BATCH = 8  # samples that go through the float network together

Progress = Callable[[str, int, int], None]


def plan_of(graph: Graph) -> PrecisionPlan | None:
    """The plan by which a network was made, where it was made by one."""
    document = graph.metadata.get("plan")
    return from_document(document) if document else None


def facts(
    folder: Path,
    graph: Graph,
    plan: PrecisionPlan | None = None,
    *,
    accuracy: Sequence[Mapping[str, Any]] = (),
    verified: Mapping[str, Any] | None = None,
    timed: Mapping[str, Any] | None = None,
    curvature: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report as JSON: what :func:`intq.report.page` shows, and the documented value of `intq report`.

    ``accuracy``: rows of :func:`row`, the artifact's own the last; the others: values of :func:`intq.verify`,
    :func:`intq.bench` and :func:`curvature_of`, or None for what was not measured.
    """
    length = length_of(graph, None, None)
    sizes = {"s": length, "t": length} if length else {}
    proof, written = graph.verify(), (folder / GRAPH_FILE).stat().st_mtime
    rows = layers(graph, sizes, plan, timed)
    return {
        "network": {
            "model": graph.metadata.get("model", folder.name),
            "artifact": str(folder),
            "domain": graph.metadata.get("domain"),
            "source": graph.metadata.get("source"),
            "labels": len(graph.metadata.get("labels", ())),
            "inputs": [{"name": v.name, "dtype": v.dtype, "shape": list(v.shape)} for v in graph.inputs],
            "nodes": len(graph.nodes),
            "length": length,
            "calibration": graph.metadata.get("calibration"),
            "notices": list(graph.metadata.get("notices", ())),
            "digest": artifact.digest(graph),
            "written": datetime.fromtimestamp(written).astimezone().isoformat(timespec="seconds"),
            "made": graph.metadata.get("made"),
        },
        "costs": asdict(cost.network_cost(graph, sizes)),
        "w8a8": _eight_bits(graph, sizes, rows),
        "layers": rows,
        "plan": _told(plan),
        "accuracy": [dict(each) for each in accuracy],
        "training": graph.metadata.get("training"),
        "curvature": curvature,
        "overflow": {"widest_bits": proof.widest_bits, "node": proof.node},
        "verify": verified,
        "bench": timed,
        "report": {
            "command": asked(),
            "versions": versions(),
            "machine": platform.machine(),
            "written": datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    }


def layers(
    graph: Graph, sizes: Mapping[str, int], plan: PrecisionPlan | None = None, timed: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """A row for each layer that has weights to multiply by; the last, of no name, is all the rest.

    Raises IntqError for a plan of another network.
    """
    products = {product.node: product for product in cost.products(graph, sizes)}
    sqnr = {each["name"]: each["sqnr_db"] for each in graph.metadata.get("layers", ())}
    ms = {each["name"]: each["ms"] for each in timed["layers"]} if timed else {}
    names = {node.source: node.source for node in graph.nodes if node.op in cost.CONTRACTIONS}
    if plan:
        names = layer_names(graph, {name: layer.shapes for name, layer in plan.layers.items()}, "the plan")
    rows = {name: _row(name) for name in (*names.values(), "")}
    for node in graph.nodes:
        row = rows[names.get(node.source, "")]
        row["bytes"] += cost.node_bytes(node)
        row["ms"] += ms.get(node.name, 0.0)
        if (product := products.get(node.name)) is not None:
            row["macs"] += product.macs
            row["bops"] += product.bops
        if row["name"] and node.name in sqnr:
            row["sqnr_db"] = sqnr[node.name]
        if row["name"] and node.op in cost.CONTRACTIONS:
            row |= {"weight_bits": product.weight_bits, "input_bits": product.input_bits}
            row["parameters"] += node.constants["weight"].size
    for row in rows.values():
        row["ms"] = row["ms"] if ms else None
        if plan and row["name"] in plan.layers:
            layer = plan.layers[row["name"]]
            row |= {"weight_bits": layer.weight_bits, "input_bits": layer.input_bits}
            row |= {"errors": dict(plan.sensitivity.get(row["name"], {})), "traces": plan.traces.get(row["name"])}
    return list(rows.values())


def _row(name: str) -> dict[str, Any]:
    known = {"name": name, "weight_bits": None, "input_bits": None, "parameters": 0, "bytes": 0, "macs": 0, "bops": 0}
    return known | {"sqnr_db": None, "ms": 0.0, "errors": {}, "traces": None}


def _told(plan: PrecisionPlan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    names = ("network", "method", "minimized", "budgets", "costs", "w8a8", "error", "gap", "seconds", "seed")
    names += ("evaluations", "score", "sensitivity_method", "sensitivity_seconds", "command")
    fronts = {name: [list(point) for point in points] for name, points in plan.fronts.items()}
    return {name: getattr(plan, name) for name in names} | {"fronts": fronts}


def _eight_bits(graph: Graph, sizes: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """What the same network costs with 8 bits everywhere; None where it has 16 somewhere, which is several products."""
    if any((row[kind] or 8) > 8 for row in rows for kind in ("weight_bits", "input_bits")):
        return None
    size = cost.network_bytes(graph)
    for node in graph.nodes:
        if node.op in cost.CONTRACTIONS:
            count = node.constants["weight"].size
            size += count - cost.weight_bytes(count, node.attrs.get("weight_bits", 8))
    return {"size": size, "bops": 64 * cost.network_cost(graph, sizes).macs}


def layer_names(graph: Graph, shapes: Mapping[str, Shapes], whose: str) -> dict[str, str]:
    """{source of nodes: layer of the float network}, by the names and weights that a plan or that network has.

    A layer that ends in a curve has the curve's name in the integer network: those are told by their order, which is
    the same, and their sizes. Raises IntqError when the weights are another network's.
    """
    mine: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in cost.CONTRACTIONS:
            mine.setdefault(node.source, node.constants["weight"].size)
    sizes = {name: math.prod(each[0]) for name, each in shapes.items()}
    found = {name: name for name in mine if name in sizes}
    found |= dict(zip((n for n in mine if n not in sizes), (n for n in sizes if n not in mine), strict=False))
    differing = [name for name, size in mine.items() if name not in found or sizes[found[name]] != size]
    if differing or len(mine) != len(sizes):
        where = f": {differing[0]} is not the same" if differing else ""
        raise IntqError(
            f"{whose} is of another network ({len(sizes)} layers) than this artifact ({len(mine)} layers){where}; give "
            "that of the network which it was made from"
        )
    return {name: found[name] for name in mine}


def row(name: str, arithmetic: str, value: Mapping[str, Any], data: str | None, graph: Graph | None) -> dict[str, Any]:
    """A row of accuracy: of which network, on what, and how large that is; ``value``: of a domain's evaluate."""
    size = cost.network_bytes(graph) if graph else None
    return {
        "name": name,
        "arithmetic": arithmetic,
        "data": data or value["task"],
        "examples": value["examples"],
        "metrics": dict(value["metrics"]),
        "bytes": size,
    }


def curvature_of(
    domain: ModuleType,
    checkpoint: Any,
    graph: Graph,
    data: str | None,
    given: Mapping[str, Any],
    samples: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """The float network's top eigenvalues, their density and the loss around it, by relative changes of its filters.

    The loss is the divergence from the network's own answers, as for `intq search`; labels are not needed. Raises
    IntqError when ``graph`` was made of another network.
    """
    from intq.dataflow import shapes
    from intq.landscape import landscape, relative
    from intq.losses import of_graph, split, with_own_answers
    from intq.quantize import observe
    from intq.spectrum import density, eigenvalues

    prepared = domain.prepare(checkpoint, data, samples=samples, seed=seed, progress=progress, **given)
    seen = observe(prepared.model, prepared.samples, progress=progress, **prepared.options)
    layer_names(graph, {name: each.shapes for name, each in shapes(seen.graph).items()}, checkpoint.name)
    loss = relative(of_graph(seen.graph))
    batches = with_own_answers(seen.graph.run, split(seen.batches, BATCH))
    top = eigenvalues(loss, batches, seed=seed, progress=lambda done, total: progress("eigenvalues", done, total))
    found = density(loss, batches, seed=seed, progress=lambda done, total: progress("density", done, total))
    plane = landscape(loss, batches, top, progress=lambda done, total: progress("landscape", done, total))
    return {
        "samples": sum(len(x) for x, _ in batches),
        "eigenvalues": list(top.values),
        "residuals": list(top.residuals),
        "products": top.products,
        "trace": found.trace(),
        "parameters": found.size,
        "density": {"grid": list(found.grid), "values": list(found.density)},
        "landscape": {
            "places": list(plane.places),
            "loss": [[value - plane.middle for value in line] for line in plane.loss],
        },
    }
