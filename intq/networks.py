"""What the commands do their work on: a checkpoint, its integer network, an artifact or a float network to run."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import intq
from intq import artifact, domains
from intq.budgets import parse_budgets
from intq.console import step
from intq.errors import IntqError
from intq.graph import Graph
from intq.precision import read_plan, to_document

RANDOM_SAMPLES = 8  # made-up data needs no more: its statistics are all the same


@dataclass(frozen=True)
class Network:
    """A network as `run` and `eval` see it, integer or float: from the raw input to scores."""

    domain: ModuleType
    metadata: Mapping[str, Any]
    reader: Any
    predict: Callable


def network_of(
    name: str,
    task: str | None = None,
    *,
    labels: str | None = None,
    truncate: bool = False,
    threads: int | None = None,
) -> Network:
    """The network of an artifact's folder, compiled when it first runs, or of `float:CHECKPOINT`."""
    if name.startswith("float:"):
        domain, source = opened(name.removeprefix("float:"), 0, task=task, labels=labels)
        metadata, predict = domain.metadata(source), domain.network(source)
    else:
        source = Path(name)
        metadata = renamed(artifact.load(source).metadata, labels)
        domain = domains.of_graph(metadata)
        ready = functools.cache(lambda: compiled(source, threads))

        def predict(*inputs: np.ndarray) -> np.ndarray:
            return ready()(*inputs)

    refuse_options(domain, task=task, truncate=truncate)
    options = {"truncate": True} if truncate else {}
    return Network(domain, metadata, domain.reader(source, metadata, **options), predict)


def opened(source: str, seed: int, *, random: bool = False, task: str | None = None, labels: str | None = None):
    """(domain, checkpoint) of a checkpoint, or of an architecture with random weights."""
    if random:
        domain = domains.of_architecture(source)
    else:
        domain = domains.domain("nlp") if task and not Path(source).exists() else domains.of_checkpoint(source)
    with step(f"Loading {source}"):
        checkpoint = domain.random(source, seed) if random else domain.load(source)
    if labels:
        names = renamed({"labels": checkpoint.labels}, labels)["labels"]
        checkpoint = replace(checkpoint, labels=tuple(names))
    return domain, checkpoint


def renamed(metadata: Mapping[str, Any], labels: str | None) -> dict[str, Any]:
    """The metadata with the classes called as --labels says."""
    if not labels:
        return dict(metadata)
    names = [name.strip() for name in labels.split(",")]
    if len(names) != len(metadata["labels"]) or len(set(names)) != len(names):
        raise IntqError(
            f"--labels needs a name for each of the {len(metadata['labels'])} classes "
            f"({', '.join(metadata['labels'][:5])}), found {labels}"
        )
    return {**metadata, "labels": names}


def layer_bits(options: list[str] | None, name: str) -> dict[str, int]:
    """What the option called ``name`` says: a number of bits for the layers of each pattern."""
    found = {}
    for option in options or ():
        pattern, equals, width = option.rpartition("=")
        if not (pattern and equals and width.isdecimal()):
            raise IntqError(f"{name} takes layers and bits, as in '*.output.dense=16'; found {option!r}")
        found[pattern] = int(width)
    return found


def pruning(text: str | None, seed: int) -> dict[str, Any]:
    """The quantizer's option ``prune``, of what the command line says."""
    if text is None:
        return {}
    from intq.prune import BUDGETS, Pruning

    budgets = parse_budgets(text)
    if wrong := [name for name, budget in budgets.items() if name not in BUDGETS or not budget.relative]:
        raise IntqError(f"--prune takes shares that are left, as bops=0.5x or size=0.5x; found {wrong[0]} in {text!r}")
    return {"prune": Pruning({name: budget.value for name, budget in budgets.items()}, seed)}


def check_of(plan: Path | None, name: str) -> Callable | None:
    """What refuses the float graph of another network than the plan's; None without a plan."""
    if plan is None:
        return None
    from intq.dataflow import shapes

    return lambda graph: read_plan(plan).check(shapes(graph), name)


def planned_bits(path: Path | None, bits: list[str] | None, weight_bits: list[str] | None) -> dict[str, dict[str, int]]:
    """The quantizer's options ``bits`` and ``weight_bits``: of a plan, then of the command line."""
    reads, weights = read_plan(path).patterns() if path else ({}, {})
    options = {"bits": reads | layer_bits(bits, "--bits")}
    return options | {"weight_bits": weights | layer_bits(weight_bits, "--weight-bits")}


def refuse_options(domain: ModuleType, **given: Any) -> None:
    """Raise IntqError for an option of another domain."""
    for name, value in given.items():
        if value and name not in domain.OPTIONS:
            owner = next(other.READS for other in map(domains.domain, domains.DOMAINS) if name in other.OPTIONS)
            option = name.replace("_", "-")
            raise IntqError(f"--{option} is for networks that read {owner}, and this one reads {domain.READS}")


def integer_network(
    domain: ModuleType,
    checkpoint: Any,
    data: str | None,
    seed: int,
    *,
    random: bool = False,
    samples: int = 128,
    plan: Path | None = None,
    **options: Any,
) -> Graph:
    """The graph of a checkpoint, calibrated on `data`, or on made-up data when its weights are random.

    plan: a file of bits, which must be for this network.
    """
    if random:  # weights that mean nothing deserve no careful rounding
        samples, options = min(samples, RANDOM_SAMPLES), options | {"rounding": "nearest"}
    with step(f"Quantizing {checkpoint.name}") as advance:

        def progress(stage: str, done: int, total: int) -> None:
            advance(done, total, stage)

        prepared = domain.prepare(checkpoint, data, samples=samples, seed=seed, progress=progress, **options)
        return recorded(prepared.quantize(progress, check_of(plan, checkpoint.name)), seed, plan)


def recorded(graph: Graph, seed: int, plan: Path | None) -> Graph:
    """The graph with what it takes to make it again in its metadata: command, seed, versions, plan."""
    found = {"made": {"command": asked(), "seed": seed, "versions": versions()}}
    if plan:
        found["plan"] = to_document(read_plan(plan))
    return replace(graph, metadata={**graph.metadata, **found})


def asked() -> str:
    """The command that runs, as it was typed."""
    return shlex.join(["intq", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """What decides the numbers of a network, and in which version."""
    found = {"intq": intq.__version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "scipy", "apache-tvm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def latency_table(
    source: str,
    path: Path,
    offer: str,
    sequence: int | None,
    audio: float | None,
    seed: int,
    threads: int | None,
) -> dict[str, Any]:
    """The documented value of `intq bench --latencies`, which is also written to ``path``: a checkpoint's layers or,
    with random weights, an architecture's, timed in all the bits of ``offer``."""
    from intq import latency
    from intq.cost import bits_name, write_latencies
    from intq.precision import parse_bits
    from intq.quantize import observe

    offered = parse_bits(offer)
    if path.is_dir() or not path.parent.is_dir():
        raise IntqError(f"{path} cannot be written: give the name of a file in a folder that exists")
    if artifact.is_artifact(Path(source)):
        raise IntqError(f"{source} is an artifact, whose layers have their bits: give the checkpoint it was made from")
    random = source in domains.architectures() and not Path(source).exists()
    domain, checkpoint = opened(source, seed, random=random)
    with step(f"Observing {checkpoint.name}"):  # made-up data: it does not change how long layers take
        prepared = domain.prepare(checkpoint, None, samples=RANDOM_SAMPLES, seed=seed)
        seen = observe(prepared.model, prepared.samples, **prepared.options)
    with step(f"Timing the layers of {checkpoint.name}") as advance:
        table, kept = latency.measured(
            seen,
            checkpoint.name,
            offered,
            complete=prepared.complete,
            threads=threads,
            sequence=sequence,
            audio=audio,
            progress=advance,
        )
    write_latencies(path, table)
    layers = {name: {bits_name(bits): s for bits, s in each.items()} for name, each in table.layers.items()}
    told = {"network": table.network, "target": table.target, "threads": table.threads, "kept": str(kept)}
    return {"latencies": str(path), **told, "other": table.other, "layers": layers}


def compiled(folder: Path, threads: int | None) -> Callable:
    """The artifact's network for this machine."""
    with step(f"Loading {folder}"):
        return intq.compile(folder, threads=threads)
