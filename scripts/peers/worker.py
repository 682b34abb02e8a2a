"""One engine with one quantized network in a process of its own: it loads, runs when told to, and reports.

    python worker.py ENGINE NETWORK INPUT.npy THREADS

For each line on standard input, a number of seconds, it runs for that long and writes one JSON line: the time of each
run, in seconds, and the process's peak memory so far. Nothing else is imported here, so the peak is the engine's:
interpreter, NumPy, engine, network and buffers.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What loading gives: a function that computes the scores of what the array `x` then holds.
Run = Callable[[], np.ndarray]


def onnxruntime(network: Path, x: np.ndarray, threads: int) -> Run:
    """A sequential session with the default (full) graph optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)[0]


def openvino(network: Path, x: np.ndarray, threads: int) -> Run:
    """One synchronous request in one stream, reused, on a model of static shape.

    What is not int8 is float32, as in the other engines. (bfloat16, the default where the processor has it, brings an
    int8 network no time and costs accuracy.)
    """
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    compiled = core.compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return run


def intq(network: Path, x: np.ndarray, threads: int) -> Run:
    """A compiled artifact."""
    import intq

    compiled = intq.compile(network, threads=threads)
    return lambda: compiled(x)


ENGINES = {"intq": intq, "onnxruntime": onnxruntime, "openvino": openvino}


def peak_memory_mb() -> float:
    """The most memory this process has had resident, in MB (10**6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone: ru_maxrss starts from what the parent had before exec
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(run: Run, seconds: float, warm: int = 2, least: int = 5) -> list[float]:
    """The times of the runs made in `seconds`, at least `least`, after `warm` runs that refill the caches."""
    for _ in range(warm):
        run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main(engine: str, network: str, x: str, threads: str) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is not a reply
    pixels = np.load(x)  # kept here: an engine may only look at its memory
    run = ENGINES[engine](Path(network), pixels, int(threads))
    for line in sys.stdin:
        times = measure(run, float(line))
        print(json.dumps({"times": times, "peak_memory_mb": peak_memory_mb()}), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
