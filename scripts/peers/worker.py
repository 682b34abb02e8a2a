"""One engine with one quantized network in a process of its own: it loads, runs when told to, and reports.

    python worker.py ENGINE NETWORK INPUT.npy THREADS [SETTING=VALUE ...]

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


def openvino(network: Path, x: np.ndarray, threads: int, **settings: str) -> Run:
    """One synchronous request in one stream, reused, on a model of x's shape: no slower than one of open shape."""
    import openvino

    core = openvino.Core()
    model = core.read_model(network)
    model.reshape(x.shape)
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, **settings}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return run


def torch(network: Path, x: np.ndarray, threads: int) -> Run:
    """A torch.export program."""
    import torch

    torch.set_num_threads(threads)
    module, given = torch.export.load(network).module(), torch.from_numpy(x)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(given).numpy()

    return run


def intq(network: Path, x: np.ndarray, threads: int) -> Run:
    """A compiled artifact. Recordings come with their lengths: x has no padding."""
    import intq

    compiled = intq.compile(network, threads=threads)
    given = [x] if len(compiled.inputs) == 1 else [x, np.full(len(x), x.shape[1], np.int32)]
    return lambda: compiled(*given)


ENGINES = {"intq": intq, "onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}


def peak_memory_mb() -> float:
    """The most memory this process has had resident, in MB (10**6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone: ru_maxrss starts from what the parent had before exec
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(run: Run, seconds: float, warm: int = 2, least: int = 3) -> list[float]:
    """The times of the runs made in `seconds`, at least `least`, after `warm` runs that refill the caches."""
    for _ in range(warm):
        run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def main(engine: str, network: str, x: str, threads: str, *settings: str) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is not a reply
    given = np.load(x)  # kept here: an engine may only look at its memory
    run = ENGINES[engine](Path(network), given, int(threads), **dict(setting.split("=", 1) for setting in settings))
    for line in sys.stdin:
        times = measure(run, float(line))
        print(json.dumps({"times": times, "peak_memory_mb": peak_memory_mb()}), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
