"""Time intq, ONNX Runtime and OpenVINO against each other in one run: same network, same weights, same threads.

Each engine runs the int8 network that its own tools made; the peers' float32 networks are there for context. The
peers are given normalised float32 pixels, intq the raw uint8 ones.

Each result is written to standard error as it comes. On standard output, with --markdown: the README's table, and
with --json: a list of {"model", "threads", "engine", "precision", "min_ms", "median_ms", "peak_memory_mb"}.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import numpy as np
from engines import Entry, cached, prepare, race

import intq
from intq.console import err, print_json, stdout_to_stderr, step
from intq.errors import IntqError
from intq.vision import domain
from intq.vision.synthetic import random_images

ENGINES = ("intq", "onnxruntime", "openvino")
TITLES = {
    "intq": f"intq {intq.__version__}",
    "onnxruntime": f"ONNX Runtime {version('onnxruntime')}",
    "openvino": f"OpenVINO {version('openvino')} + NNCF {version('nncf')}",
}


def entries(model: str, engines: Sequence[str], batch: int, threads: int, seed: int = 0) -> list[Entry]:
    """What competes on the architecture `model` with random weights: quantized now, or found in the cache."""
    checkpoint = domain.random(model, seed)
    pixels = [random_images(batch, checkpoint.input_size, seed + i, checkpoint.preprocess.channels) for i in range(8)]
    found = []
    if "intq" in engines:
        folder = cached(
            f"intq-{model}", [*_sources(), str(batch)], lambda folder: compile_intq(checkpoint, pixels, folder)
        )
        found.append(Entry("intq", "int8", folder / "artifact", folder / "x.npy"))
    if set(engines) - {"intq"}:
        inputs = [checkpoint.preprocess.normalize(each).transpose(0, 3, 1, 2).copy() for each in pixels]
        found += prepare(model, checkpoint.model, inputs, threads)
    return [entry for entry in found if entry.engine in engines]


def compile_intq(checkpoint, pixels: Sequence[np.ndarray], folder: Path) -> None:
    """Quantize, save and compile a network: what `intq quantize` and `intq compile` do."""
    np.save(folder / "x.npy", pixels[0])
    graph = intq.quantize(checkpoint.model, pixels, mean=checkpoint.preprocess.mean, std=checkpoint.preprocess.std)
    graph.save(folder / "artifact")
    intq.compile(folder / "artifact")  # keeps the library beside the graph


def _sources() -> list[bytes]:
    """Every line of intq that has a part in its network: a changed one is quantized and compiled anew."""
    root = Path(__file__).resolve().parents[2]
    return [path.read_bytes() for part in ("intq", "vision", "kernels") for path in sorted((root / part).rglob("*.py"))]


def compare(
    models: Sequence[str], threads: Sequence[int], engines: Sequence[str], batch: int, rounds: int
) -> list[dict]:
    """A row for each model, number of threads, engine and precision."""
    rows = []
    for model in models:
        with step(f"Quantizing {model} with every engine"), stdout_to_stderr():
            competitors = entries(model, engines, batch, max(threads))
        for count in threads:
            with step(f"Timing {model}, {count} threads") as advance:
                timings = race(competitors, count, rounds, advance=advance)
            for entry, timing in zip(competitors, timings, strict=True):
                row = {"model": model, "threads": count, "engine": entry.engine, "precision": entry.precision}
                rows.append(row | {key: round(value, 3) for key, value in asdict(timing).items()})
                err.print(human(rows[-1]), soft_wrap=True)
    return rows


def human(row: dict) -> str:
    """One row as a line."""
    return (
        f"{row['model']:18} {row['threads']} threads  {row['engine']:11} {row['precision']:7} "
        f"min {row['min_ms']:8.3f} ms  median {row['median_ms']:8.3f} ms  peak {row['peak_memory_mb']:6.1f} MB"
    )


def markdown(rows: Sequence[dict]) -> str:
    """The README's table: int8 alone, minimum (median) in ms and peak memory, and intq against the fastest peer."""
    engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in rows)]
    lines = [
        "| network | threads | "
        + " | ".join(f"{TITLES[engine]}, ms" for engine in engines)
        + " | time / fastest peer's | peak memory, MB |",
        "|---|---|" + "---|" * len(engines) + "---|---|",
    ]
    for (model, threads), group in groupby(rows, key=lambda row: (row["model"], row["threads"])):
        int8 = {row["engine"]: row for row in group if row["precision"] == "int8"}
        times = [f"{int8[engine]['min_ms']:.2f} ({int8[engine]['median_ms']:.2f})" for engine in engines]
        peers = [row["min_ms"] for engine, row in int8.items() if engine != "intq"]
        ratio = f"{int8['intq']['min_ms'] / min(peers):.2f}" if "intq" in int8 and peers else ""
        memory = " / ".join(f"{int8[engine]['peak_memory_mb']:.0f}" for engine in engines)
        lines.append("| " + " | ".join([model, str(threads), *times, ratio, memory]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    def words(text: str) -> list[str]:
        return text.split(",")

    def counts(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser(
        prog="bench_peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--models", type=words, default=["resnet50", "mobilenet_v2", "inception_v3"], metavar="NAME,..."
    )
    parser.add_argument("--threads", type=counts, default=[1, os.cpu_count()], metavar="N,...")
    parser.add_argument("--engines", type=words, default=ENGINES, metavar="NAME,...", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images a run (default 1)")
    parser.add_argument(
        "--rounds", type=int, default=12, metavar="N", help="turns of a quarter second each (default 12)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON list")
    output.add_argument("--markdown", action="store_true", help="print the README's table")
    options = parser.parse_args(arguments)
    try:
        rows = compare(options.models, options.threads, options.engines, options.batch, options.rounds)
    except IntqError as error:
        err.print(f"bench_peers: {error}", markup=False, soft_wrap=True)
        return 2
    if options.json:
        print_json(rows)
    elif options.markdown:
        print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
