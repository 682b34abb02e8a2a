"""The peers: one network exported, quantized by each in the way that suits it best, and cached outside the tree."""

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from intq.assets import cache_folder
from intq.errors import IntqError

WORKER = Path(__file__).with_name("worker.py")
# What is not int8 is float32, as in the other engines. (bfloat16, the default where the processor has it, brings a
# convolutional int8 network no time and costs accuracy.)
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
PAUSE = 0.1  # seconds between two turns: threads that wait for more work keep a core busy for a while


@dataclass(frozen=True)
class Entry:
    """One competitor: what `worker.py` needs to run it; `settings` are the engine's own, `note` is for people."""

    engine: str
    precision: str
    network: Path
    input: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class OnnxRuntime:
    """Settings of ONNX Runtime's static quantization, `options` being its extra ones; weights per channel always."""

    format: str = "QDQ"  # or QOperator
    activation: str = "QUInt8"
    weight: str = "QInt8"
    method: str = "MinMax"
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return f"{self.format} {self.activation}/{self.weight}"


# Those that some processor runs fast; QOperator with signed activations has no fast kernel on x86 and is warned about.
ONNX_RUNTIME_CANDIDATES = (
    OnnxRuntime("QDQ", "QUInt8", "QInt8"),
    OnnxRuntime("QOperator", "QUInt8", "QInt8"),
    OnnxRuntime("QDQ", "QInt8", "QInt8"),
    OnnxRuntime("QOperator", "QUInt8", "QUInt8"),
)


def export_onnx(module: torch.nn.Module, x: np.ndarray, path: Path, **options) -> Path:
    """Write a network as ONNX for inputs of x's shape, with BatchNorm folded and shapes inferred.

    options: those of ONNX Runtime's preparation for quantization.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raw = path.with_suffix(".raw.onnx")
    with quiet():
        torch.onnx.export(
            module, (torch.from_numpy(x),), raw, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
        )
        quant_pre_process(raw, path, **options)
    raw.unlink()
    return path


def quantize_onnxruntime(onnx: Path, calibration: Sequence[np.ndarray], path: Path, settings: OnnxRuntime) -> Path:
    """ONNX Runtime's static quantization, with ranges from the batches of `calibration`, each of the export's shape."""
    from onnxruntime import quantization
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(calibration)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    with quiet():
        quantization.quantize_static(
            onnx,
            path,
            Reader(),
            quant_format=quantization.QuantFormat[settings.format],
            activation_type=quantization.QuantType[settings.activation],
            weight_type=quantization.QuantType[settings.weight],
            calibrate_method=quantization.CalibrationMethod[settings.method],
            per_channel=True,
            extra_options=dict(settings.options),
        )
    return path


def save_openvino(onnx: Path, path: Path) -> Path:
    """The float32 network in OpenVINO's format."""
    import openvino

    openvino.save_model(openvino.convert_model(onnx), path, compress_to_fp16=False)
    return path


def quantize_openvino(onnx: Path, calibration: Sequence[np.ndarray], path: Path, **options) -> Path:
    """NNCF's post-training quantization of the OpenVINO network; `options` are those of nncf.quantize."""
    import openvino

    with quiet():
        import nncf

        dataset = nncf.Dataset(list(calibration))
        model = nncf.quantize(openvino.convert_model(onnx), dataset, subset_size=len(calibration), **options)
    openvino.save_model(model, path)
    return path


def prepare(name: str, module: torch.nn.Module, calibration: Sequence[np.ndarray], threads: int) -> list[Entry]:
    """Every peer's int8 and float32 network of a convolutional one, quantized now or found in the cache.

    `calibration`: float32 batches (n, c, h, w), of which the first is also the input that is timed. ONNX Runtime gets
    the settings that are fastest on this processor with `threads` threads: each is tried.
    """

    def build(folder: Path) -> None:
        np.save(folder / "x.npy", calibration[0])
        onnx = export_onnx(module, calibration[0], folder / "float32.onnx")
        save_openvino(onnx, folder / "float32.xml")
        quantize_openvino(onnx, calibration, folder / "int8.xml")
        fastest_onnxruntime(onnx, calibration, folder, threads)

    key = [Path(__file__).read_bytes(), processor(), *map(version, ("torch", "onnxruntime", "openvino", "nncf"))]
    folder = cached(name, [*key, *module.state_dict().values(), *calibration], build)
    x, tried = folder / "x.npy", note(folder / "onnxruntime.json")
    return [
        Entry("onnxruntime", "int8", folder / "int8.onnx", x, note=tried),
        Entry("openvino", "int8", folder / "int8.xml", x, FLOAT32),
        Entry("onnxruntime", "float32", folder / "float32.onnx", x),
        Entry("openvino", "float32", folder / "float32.xml", x, FLOAT32),
    ]


def fastest_onnxruntime(onnx: Path, calibration: Sequence[np.ndarray], folder: Path, threads: int) -> None:
    """Quantize with each candidate's settings and keep the fastest network as `int8.onnx`.

    The times are in `onnxruntime.json`. The networks are run on `x.npy`, which is in the folder already.
    """
    entries = {
        str(settings): Entry(
            "onnxruntime",
            "int8",
            quantize_onnxruntime(onnx, calibration, folder / f"candidate{i}.onnx", settings),
            folder / "x.npy",
        )
        for i, settings in enumerate(ONNX_RUNTIME_CANDIDATES)
    }
    best = fastest(entries, threads, folder / "onnxruntime.json")
    entries[best].network.replace(folder / "int8.onnx")
    for path in folder.glob("candidate*"):
        path.unlink()


def fastest(candidates: Mapping[str, Entry], threads: int, log: Path) -> str:
    """The name of the fastest of an engine's candidates that it can run.

    `log` gets {name: least time in ms} of those, by their times.
    """
    runnable = {name: entry for name, entry in candidates.items() if runs(entry, threads)}
    timings = race(list(runnable.values()), threads, rounds=4)
    times = {name: round(timing.min_ms, 3) for name, timing in zip(runnable, timings, strict=True)}
    times = dict(sorted(times.items(), key=lambda item: item[1]))
    log.write_text(json.dumps(times, indent=2) + "\n")
    return next(iter(times))


def note(log: Path) -> str:
    """What `fastest` wrote, as a line: the first of them is the one that was taken."""
    return ", ".join(f"{name} {ms:.2f} ms" for name, ms in json.loads(log.read_text()).items())


@dataclass(frozen=True)
class Timing:
    """What a race measured of one entry."""

    min_ms: float
    median_ms: float
    peak_memory_mb: float


def race(
    entries: Sequence[Entry],
    threads: int,
    rounds: int,
    seconds: float = 0.25,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timing]:
    """Time the entries against each other: each in a process of its own, in turn, `rounds` times for `seconds` each.

    Taking turns lets whatever else the machine does hit all of them alike. Raises IntqError when one fails.
    """
    times: list[list[float]] = [[] for _ in entries]
    memory = [0.0] * len(entries)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(entry, threads)) for entry in entries]
        for turn in range(rounds * len(entries)):
            i = turn % len(entries)
            time.sleep(PAUSE)
            reply = _ask(workers[i], entries[i], seconds)
            times[i] += reply["times"]
            memory[i] = reply["peak_memory_mb"]
            advance(turn + 1, rounds * len(entries))
    return [
        Timing(1e3 * min(each), 1e3 * statistics.median(each), peak) for each, peak in zip(times, memory, strict=True)
    ]


def runs(entry: Entry, threads: int) -> bool:
    """Whether an engine can run a network that its own tools made (ONNX Runtime cannot run some of its own)."""
    return subprocess.run(**_process(entry, threads), input="0\n", capture_output=True).returncode == 0


def _process(entry: Entry, threads: int) -> dict:
    settings = [f"{key}={value}" for key, value in entry.settings.items()]
    arguments = [entry.engine, entry.network, entry.input, threads, *settings]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(WORKER.parents[2])}
    return {"args": [sys.executable, WORKER, *map(str, arguments)], "env": environment, "text": True}


@contextlib.contextmanager
def _worker(entry: Entry, threads: int) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(**_process(entry, threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen, entry: Entry, seconds: float) -> dict:
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
    reply = process.stdout.readline()
    if not reply:
        raise IntqError(f"{entry.engine} {entry.precision} failed on {entry.network}: its own message is above")
    return json.loads(reply)


def cached(name: str, key: Iterable[bytes | str | np.ndarray | torch.Tensor], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for this name and key, now or before: it is in the cache whole or not at all."""
    digest = hashlib.sha256()
    for item in key:
        item = item.encode() if isinstance(item, str) else item
        digest.update(item if isinstance(item, bytes) else np.ascontiguousarray(item).tobytes())
    folder = cache_folder() / "peers" / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as temporary:
            work = Path(temporary, "work")
            work.mkdir()
            build(work)
            work.replace(folder)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars, notices and deprecations of the peers' tools."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def processor() -> str:
    """The name of the processor: what is fastest on one need not be on another."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return "\n".join([platform.machine(), *flags])
