"""How fast a compiled network is, how much memory it takes, and what each layer reaches of the core's peak.

The network is measured in a process of its own that only loads and runs it, as where it is deployed.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import intq
from intq.errors import IntqError
from intq.graph import Graph, Node
from intq.probes import reads_recordings, shortest
from intq.value import Value, bind_shape

TOKENS = 128  # of a text, unless told otherwise
AUDIO, SAMPLE_RATE = 10.0, 16000  # seconds of a recording, and samples in one of them, unless told otherwise
ROUNDS = 8  # turns of layers and peak
PASSES = 5  # through the layers, in each turn


def bench(
    folder: str | Path,
    threads: int | None = None,
    batch: int = 1,
    sequence: int | None = None,
    audio: float | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Time a compiled artifact on random input for so many `seconds`.

    sequence: the tokens of each text, 128 or the most there can be. audio: the seconds of each recording, 10.

    The result is JSON: {"model", "threads", "batch", "sequence", "audio", "min_ms", "median_ms", "peak_memory_mb",
    "load_ms", "instruction_set", "peak_gops", "layers": [{"name", "op", "k", "ms", "gops", "peak_share"}]}. A layer's
    time is its minimum; k (the products that each output sums), gops (10**9 multiplications and additions a second) and
    peak_share are null for what multiplies nothing; sequence is null where the input is no text, audio where it is no
    recording. peak_gops is what a loop of the same instruction reaches on as many threads, measured in turn with them.

    Raises IntqError when the artifact is damaged, the library cannot run here, or the texts are too long for it.
    """
    graph = intq.load(folder)
    length = length_of(graph, sequence, audio)
    threads = threads or len(os.sched_getaffinity(0))
    package = str(Path(intq.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "intq.bench", str(folder), *map(str, (threads, batch, length, seconds))]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if run.returncode:
        raise IntqError(f"the process that measures {folder} ended with code {run.returncode}: its message is above")
    return json.loads(run.stdout)


def prediction(
    graph: Graph, gpu: str, batch: int = 1, sequence: int | None = None, audio: float | None = None
) -> dict[str, Any]:
    """The least time of each layer on a GPU, by the model of speed of :mod:`intq.kernels.cuda.speed`.

    The result is JSON: {"model", "gpu", "batch", "sequence", "audio", "ms", "layers": [{"name", "op", "ms", "bound",
    "filled"}]}. Raises IntqError for a GPU whose limits are not known, or texts or recordings of a wrong length.
    """
    speed = import_module("intq.kernels.cuda.speed")
    length, recordings, card = length_of(graph, sequence, audio), reads_recordings(graph), speed.card(gpu)
    layers = speed.predicted(graph, card, {"n": batch, "s": length, "t": length})
    rows = [{"name": p.name, "op": p.op, "ms": 1e3 * p.seconds, "bound": p.bound, "filled": p.filled} for p in layers]
    return {
        "model": graph.metadata.get("model", ""),
        "gpu": card.name,
        "batch": batch,
        "sequence": None if recordings or not length else length,
        "audio": length / graph.metadata.get("sample_rate", SAMPLE_RATE) if recordings else None,
        "ms": sum(row["ms"] for row in rows),
        "layers": rows,
    }


def length_of(graph: Graph, sequence: int | None, audio: float | None) -> int:
    """How many tokens or samples to give a network; 0 for an image."""
    value, recordings = graph.inputs[0], reads_recordings(graph)
    if audio and not recordings:
        raise IntqError(f"the input {value.name} is no recording: leave out --audio")
    if not recordings:
        return _tokens(value, sequence)
    if sequence:
        raise IntqError(f"the input {value.name} is no text: leave out --sequence, or give seconds with --audio")
    samples = round((audio or AUDIO) * graph.metadata.get("sample_rate", SAMPLE_RATE))
    if not shortest(graph) <= samples <= value.longest:
        raise IntqError(f"a recording has {shortest(graph)} to {value.longest} samples here, got {samples}")
    return samples


def _tokens(value: Value, wanted: int | None) -> int:
    if not any(isinstance(size, str) for size in value.shape[1:]):
        if wanted:
            raise IntqError(f"the input {value.name} is no text, it has a fixed shape: leave out --sequence")
        return 0
    if wanted and 0 < value.longest < wanted:
        raise IntqError(f"a text has at most {value.longest} tokens here, got {wanted}: choose a smaller --sequence")
    return wanted or min(TOKENS, value.longest or TOKENS)


def measure(folder: str, threads: int, batch: int, length: int, seconds: float) -> dict[str, Any]:
    """What `bench` returns, of this process, for inputs of `length` tokens or samples."""
    start = time.perf_counter()
    network = intq.compile(folder, threads=threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    rng, graph = np.random.default_rng(0), intq.load(folder)
    sizes = {"n": batch, "s": length, "t": length}
    inputs = [rng.integers(v.low, v.high, bind_shape(v.shape, sizes), v.dtype, endpoint=True) for v in network.inputs]
    if recordings := reads_recordings(graph):
        inputs[1][:] = length
    times = timed(lambda: network(*inputs), seconds)
    memory = peak_memory_mb()
    layers, peak = layer_times(network, inputs, threads)
    return {
        "model": graph.metadata.get("model", Path(folder).name),
        "threads": threads,
        "batch": batch,
        "sequence": None if recordings or not length else length,
        "audio": length / graph.metadata.get("sample_rate", SAMPLE_RATE) if recordings else None,
        "min_ms": 1e3 * min(times),
        "median_ms": 1e3 * statistics.median(times),
        "peak_memory_mb": memory,
        "load_ms": load_ms,
        "instruction_set": network.instruction_set,
        "peak_gops": peak / 1e9,
        "layers": [_layer(node, layers[node.name], sizes, peak) for node in graph.nodes],
    }


def timed(function: Callable[[], Any], seconds: float, warm: int = 3, least: int = 10) -> list[float]:
    """The seconds of each call, of as many as fit, at least `least`."""
    for _ in range(warm):
        function()
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def layer_times(network, inputs, threads: int) -> tuple[dict[str, float], float]:
    """The least seconds of each node, and the most operations a second of the core's own loop, taken in turn."""
    peak_of = import_module("intq.kernels.peak").peak
    peak, best = 0.0, {}
    for _ in range(ROUNDS):
        peak = max(peak, peak_of(network.instruction_set, threads))
        for name, seconds in network.time_layers(*inputs, repeats=PASSES).items():
            best[name] = min(seconds, best.get(name, math.inf))
    return best, peak


def _layer(node: Node, seconds: float, sizes: dict[str, int], peak: float) -> dict[str, Any]:
    layer = {"name": node.name, "op": node.op, "k": None, "ms": 1e3 * seconds, "gops": None, "peak_share": None}
    shape = bind_shape(node.output.shape, sizes)
    if "weight" in node.constants:
        layer["k"] = math.prod(node.constants["weight"].shape[1:])
    elif node.op == "attention":
        layer["k"] = 2 * shape[1]  # of each query: its product with a key and the key's value, for all tokens
    if layer["k"]:
        rate = 2 * layer["k"] * math.prod(shape) / seconds
        layer |= {"gops": rate / 1e9, "peak_share": rate / peak}
    return layer


def peak_memory_mb() -> float:
    """The most memory this process has had resident, in MB (10**6 bytes).

    VmHWM rather than ru_maxrss, which starts from what the parent had before exec.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 / 1e6 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    folder, threads, batch, length, seconds = sys.argv[1:]
    print(json.dumps(measure(folder, int(threads), int(batch), int(length), float(seconds))))
