"""How long each layer of a network takes here at each precision: the table for a search with a budget of latency.

The network is quantized in the same bits everywhere, for each pair of bits that a search may offer; each of these
networks is compiled, runs alone in a process of its own, and its nodes are timed (:mod:`intq.bench`). A layer's time is
that of the nodes that stand for it (:func:`intq.dataflow.results`) and of what layers alone read and only integers
need, such as a copy in 4 bits: it falls to the first layer that reads it. Layers that read together have the same bits
(:func:`intq.dataflow.ties`), so that sums are right wherever a search mixes. What remains is no layer's: pooling, sums,
curves, attention. Its time is that at W8A8.

Weights are rounded to the nearest integers on one sample, because what they are does not change how long they take.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from intq import dataflow, searching
from intq.assets import cache_folder
from intq.bench import bench
from intq.cost import Bits, Latencies, bits_name, read_latencies, write_latencies
from intq.errors import IntqError
from intq.floatgraph import FloatGraph
from intq.graph import Graph
from intq.losses import split
from intq.quantize import Observed

WIDE = (8, 8)  # what relative budgets are relative to, and what layers have that keep their bits
TURNS = 2  # through the networks: a machine is not as fast all the time

Progress = Callable[[int, int, str], None]


def measured(
    seen: Observed,
    network: str,
    offered: Sequence[Bits],
    *,
    complete: Callable[[Graph], Graph] = lambda graph: graph,
    threads: int | None = None,
    sequence: int | None = None,
    audio: float | None = None,
    progress: Progress | None = None,
) -> tuple[Latencies, Path]:
    """The seconds of every layer at W8A8 and at the ``offered`` bits, (weights, inputs), and the file that keeps them.

    A network of the same layers, on the same kind of processor with as many threads and the same offer, is measured
    once: then the table is read from the cache. ``network``: its name, for people; ``complete``: what the domain adds
    to a graph. ``sequence`` and ``audio`` (seconds): the length of inputs, as :func:`intq.bench.bench` takes them.
    Layers that read the network's input read it as it comes, so that W4A4 is W4A8 for them.
    Raises IntqError as :func:`intq.quantize.quantized` and :func:`intq.bench.bench`.
    """
    pairs, threads = tuple(dict.fromkeys([WIDE, *offered])), threads or len(os.sched_getaffinity(0))
    target = target_name()
    asked = (sorted(pairs), threads, target, _processor(), sequence, audio, seen.options.residual_bits)
    kept = cache_folder() / "latencies" / f"{_digest(seen.graph, asked)}.json"
    try:
        return replace(read_latencies(kept), network=network), kept
    except IntqError:  # there is none, or a damaged one: measure
        pass
    few = replace(seen, batches=split(seen.batches[:1], 1)[:1])
    nodes: dict[Bits, dict[str, float]] = {pair: {} for pair in pairs}
    owners: dict[Bits, dict[str, str]] = {}
    report, done = progress or (lambda done, total, now: None), 0
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(TURNS):
            for pair in pairs:
                report(done, TURNS * len(pairs), bits_name(pair))
                folder = Path(temporary, bits_name(pair))
                if not turn:
                    graph = complete(searching.applied(few, searching.uniform(seen.graph, pair)))
                    owners[pair] = layer_of_nodes(seen.graph, graph)
                    graph.save(folder)
                value = bench(folder, threads, sequence=sequence, audio=audio, seconds=0.0)
                for node in value["layers"]:
                    seconds = node["ms"] / 1e3
                    nodes[pair][node["name"]] = min(seconds, nodes[pair].get(node["name"], seconds))
                done += 1
    found = summed(seen.graph, nodes, owners)
    table = Latencies(network, target, threads, found, _elsewhere(nodes[WIDE], owners[WIDE]))
    write_latencies(kept, table)
    return table, kept


def layer_of_nodes(graph: FloatGraph, integers: Graph) -> dict[str, str]:
    """{node of the integer network: the layer whose time its time is}."""
    made, known = dataflow.results(graph), graph.shapes().keys()
    found: dict[str, str] = {}
    for place in range(len(integers.nodes) - 1, -1, -1):
        node = integers.nodes[place]
        readers = [later.name for later in integers.nodes[place + 1 :] if node.name in later.inputs]
        if node.name in made:
            found[node.name] = made[node.name]
        elif node.name not in known and readers and found.keys() >= set(readers):
            found[node.name] = found[readers[0]]
    return found


def summed(
    graph: FloatGraph, nodes: Mapping[Bits, Mapping[str, float]], owners: Mapping[Bits, Mapping[str, str]]
) -> dict[str, dict[Bits, float]]:
    """{layer: {bits: seconds}} of the seconds of nodes in networks of the same bits everywhere."""
    found: dict[str, dict[Bits, float]] = {name: {} for name in dataflow.shapes(graph)}
    for pair, times in nodes.items():
        totals = dict.fromkeys(found, 0.0)
        for node, layer in owners[pair].items():
            totals[layer] += times[node]
        for name, choice in searching.uniform(graph, pair).items():
            known = found[name].get(choice.bits, totals[name])  # of an input as it comes there are several measures
            found[name][choice.bits] = min(known, totals[name])
    return found


def _elsewhere(times: Mapping[str, float], layers: Collection[str]) -> float:
    return sum(seconds for node, seconds in times.items() if node not in layers)


def target_name() -> str:
    """What networks are compiled for here, such as "sapphirerapids, vnni"."""
    choice = import_module("intq.kernels.targets").choose()
    return f"{choice.target.attrs.get('mcpu', choice.triple)}, {choice.isa.name}"


def _processor() -> str:
    """The processor's own name, which says more of its speed than what it is compiled for; empty where none is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _digest(graph: FloatGraph, asked: tuple) -> str:
    """Of all that times depend on: the network's layers and shapes, what was asked, and the kernels themselves."""
    state = hashlib.sha256(import_module("intq.kernels.library").compiler_digest())
    state.update(repr((graph.input_shape, graph.output, asked)).encode())
    for node in graph.nodes:
        shapes = [(name, tuple(each.shape)) for name, each in sorted(node.parameters.items())]
        state.update(repr((node.name, node.op, node.inputs, node.shape, shapes)).encode())
    return state.hexdigest()[:32]
