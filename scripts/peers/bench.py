"""Time intq, ONNX Runtime and OpenVINO against each other in one run: same network, same weights, same threads.

Each engine runs the int8 network that its own tools made; float32 networks are there for context. Images: the peers are
given normalised float32 pixels, intq the raw uint8 ones. Texts: all are given token ids. Recordings: intq is given
int16 samples, the peers the features that intq makes of them: its front end is timed, and they have none.

Each result is written to standard error as it comes. On standard output, with --markdown: the README's table, and
with --json: a list of {"model", "batch", "sequence", "audio", "threads", "engine", "precision", "min_ms", "median_ms",
"peak_memory_mb"}; sequence is null but for texts, audio (in seconds) but for recordings.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby, product
from pathlib import Path

from engines import race
from subjects import entries, kind, subject

import intq
from intq.console import err, print_json, stdout_to_stderr, step
from intq.errors import IntqError

ENGINES = ("intq", "onnxruntime", "openvino", "torch")
COLUMNS = {  # (engine, precision): title
    ("intq", "int8"): f"intq {intq.__version__}",
    ("onnxruntime", "int8"): f"ONNX Runtime {version('onnxruntime')}",
    ("onnxruntime", "int8 dynamic"): f"ONNX Runtime {version('onnxruntime')} dynamic",
    ("onnxruntime", "int8 static"): f"ONNX Runtime {version('onnxruntime')} static",
    ("openvino", "int8"): f"OpenVINO {version('openvino')} + NNCF {version('nncf')}",
    ("torch", "float32"): f"torch {version('torch').split('+')[0]} float32",
}
INTQ, TORCH = ("intq", "int8"), ("torch", "float32")


def compare(
    models: Sequence[str],
    batches: Sequence[int],
    sequences: Sequence[int],
    audio: Sequence[float],
    threads: Sequence[int],
    engines: Sequence[str],
    rounds: int,
) -> list[dict]:
    """A row for each model, batch, number of tokens or seconds, number of threads, engine and precision."""
    rows = []
    for model in models:
        axis, lengths = {"nlp": ("sequence", sequences), "speech": ("audio", audio)}.get(kind(model), (None, (None,)))
        for batch, length in product(batches, lengths):
            shape = {"model": model, "batch": batch, "sequence": None, "audio": None}
            shape |= {axis: length} if axis else {}
            with tempfile.TemporaryDirectory() as folder:
                with step(f"Quantizing {model} with every engine"), stdout_to_stderr():
                    competitors = entries(subject(model, batch, length), engines, max(threads), Path(folder))
                for entry in competitors:
                    if entry.note:
                        err.print(f"{model}: {entry.engine} {entry.precision}: {entry.note}", soft_wrap=True)
                for count in threads:
                    with step(f"Timing {model}, {size(shape)}, {count} threads") as advance:
                        timings = race(competitors, count, rounds, advance=advance)
                    for entry, timing in zip(competitors, timings, strict=True):
                        row = shape | {"threads": count, "engine": entry.engine, "precision": entry.precision}
                        rows.append(row | {key: round(value, 3) for key, value in asdict(timing).items()})
                        err.print(human(rows[-1]), soft_wrap=True)
    return rows


def size(row: dict) -> str:
    """The input's: how many images, texts of how many tokens, or recordings of how many seconds."""
    if row["audio"] is not None:
        return f"{row['batch']} x {row['audio']:g} s"
    return str(row["batch"]) if row["sequence"] is None else f"{row['batch']} x {row['sequence']}"


def human(row: dict) -> str:
    """One row as a line."""
    return (
        f"{row['model']:18} {size(row):7} {row['threads']} threads  {row['engine']:11} {row['precision']:12} "
        f"min {row['min_ms']:8.3f} ms  median {row['median_ms']:8.3f} ms  peak {row['peak_memory_mb']:6.1f} MB"
    )


def markdown(rows: Sequence[dict]) -> str:
    """The README's table: minimum (median) in ms, and peak memory; intq against the fastest int8 peer and torch."""
    there = {(row["engine"], row["precision"]) for row in rows}
    columns = [column for column in COLUMNS if column in there]
    peers = [column for column in columns if column not in (INTQ, TORCH)]
    ratios = {"fastest peer's": peers, "torch's": [TORCH]} if TORCH in there else {"fastest peer's": peers}
    titles = ["network", "input", "threads", *(f"{COLUMNS[column]}, ms" for column in columns)]
    titles += [*(f"time / {title}" for title in ratios), "peak memory, MB"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for (model, shape, threads), group in groupby(rows, key=lambda row: (row["model"], size(row), row["threads"])):
        found = {(row["engine"], row["precision"]): row for row in group}
        cells = [model, shape, str(threads)]
        cells += [f"{found[column]['min_ms']:.2f} ({found[column]['median_ms']:.2f})" for column in columns]
        for others in ratios.values():
            times = [found[column]["min_ms"] for column in others]
            cells.append(f"{found[INTQ]['min_ms'] / min(times):.2f}" if INTQ in found and times else "")
        cells.append(" / ".join(f"{found[column]['peak_memory_mb']:.0f}" for column in columns))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    def words(text: str) -> list[str]:
        return text.split(",")

    def counts(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    def seconds(text: str) -> list[float]:
        return [float(word) for word in words(text)]

    parser = argparse.ArgumentParser(
        prog="bench_peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["resnet50", "mobilenet_v2", "inception_v3"], metavar="NAME")
    parser.add_argument("--threads", type=counts, default=[1, os.cpu_count()], metavar="N,...")
    parser.add_argument("--engines", type=words, default=ENGINES, metavar="NAME,...", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--batch", type=counts, default=[1], metavar="N,...", help="inputs a run (default 1)")
    parser.add_argument("--sequence", type=counts, default=[128], metavar="N,...", help="tokens a text (default 128)")
    parser.add_argument(
        "--audio", type=seconds, default=[10.0], metavar="S,...", help="seconds a recording (default 10)"
    )
    parser.add_argument(
        "--rounds", type=int, default=12, metavar="N", help="turns of a quarter second each (default 12)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON list")
    output.add_argument("--markdown", action="store_true", help="print the README's table")
    options = parser.parse_args(arguments)
    try:
        lengths = options.sequence, options.audio
        rows = compare(options.models, options.batch, *lengths, options.threads, options.engines, options.rounds)
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
