"""How close each engine's int8 network stays to the float network, on real weights and photos.

Half of the photos calibrate: every engine gets the same 256 random crops of them. On 300 random crops of the other
half, against the float network: the logits' signal to quantization noise, and how often the first class is the same.
And top-1 on the photos themselves, which are labelled.

Each result is written to standard error as it comes. On standard output, with --markdown: the README's table, and
with --json: a list of {"model", "engine", "settings", "sqnr_db", "agreement", "top1"}.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import worker
from engines import FLOAT32, OnnxRuntime, export_onnx, quantize_onnxruntime, quantize_openvino

import intq
from intq.backends import torch as integers
from intq.console import err, print_json, step
from intq.errors import IntqError
from intq.vision import domain
from intq.vision.assets import asset
from intq.vision.data import open_dataset, random_crops
from intq.vision.metrics import agreement, sqnr_db, top_k

MODELS = ("mobilenet_v2", "efficientnet_lite0")
ENGINES = ("intq", "onnxruntime", "openvino")
# What was tried and is no better: Entropy (the same as minima and maxima), Percentile 99.999 and 99.9, Distribution.
ONNX_RUNTIME = {
    "minima and maxima": OnnxRuntime(),
    "mean minima and maxima": OnnxRuntime(options=(("CalibMovingAverage", True),)),
    "percentile 99.99": OnnxRuntime(method="Percentile", options=(("CalibPercentile", 99.99),)),
}

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 (n, h, w, c) -> real logits (n, classes)


def competitors(checkpoint, calibration: np.ndarray, folder: Path) -> dict[tuple[str, str], Callable[[], Predict]]:
    """(engine, settings) -> what quantizes the checkpoint so, on crops uint8 (n, h, w, c); it returns the predictor."""
    import nncf

    batches = [_normal(checkpoint, image[None]) for image in calibration]
    onnx = export_onnx(checkpoint.model, batches[0], folder / "float32.onnx")
    static = partial(quantize_onnxruntime, onnx, batches, folder / "int8.onnx")
    post_training = partial(quantize_openvino, onnx, batches, folder / "int8.xml")
    found = {("intq", "default"): partial(intq_predictor, checkpoint, calibration)}
    for title, settings in ONNX_RUNTIME.items():
        found["onnxruntime", title] = partial(peer_predictor, checkpoint, "onnxruntime", partial(static, settings))
    no = {"advanced_parameters": nncf.AdvancedQuantizationParameters(disable_bias_correction=True)}
    for bias, options in (("no", no), ("fast", {}), ("accurate", {"fast_bias_correction": False})):
        for preset in nncf.QuantizationPreset:
            quantize = partial(post_training, preset=preset, **options)
            title = f"{preset.value} preset, {bias} bias correction"
            found["openvino", title] = partial(peer_predictor, checkpoint, "openvino", quantize)
    return found


def intq_predictor(checkpoint, calibration: np.ndarray) -> Predict:
    preprocess = checkpoint.preprocess
    graph = intq.quantize(checkpoint.model, [calibration], mean=preprocess.mean, std=preprocess.std)
    scale = graph.values[graph.outputs[0]].scale
    network = integers.prepare(graph)
    return lambda pixels: np.concatenate([scale * network(part)[0].numpy() for part in batched(pixels)])


def peer_predictor(checkpoint, engine: str, quantize: Callable[[], Path]) -> Predict:
    height, width = checkpoint.input_size
    x = np.empty((1, checkpoint.preprocess.channels, height, width), np.float32)
    run = worker.ENGINES[engine](quantize(), x, os.cpu_count(), **(FLOAT32 if engine == "openvino" else {}))

    def predict(pixels: np.ndarray) -> np.ndarray:
        scores = []
        for image in pixels:
            x[...] = _normal(checkpoint, image[None])
            scores.append(np.array(run()[0]))
        return np.stack(scores)

    return predict


def batched(pixels: np.ndarray, size: int = 25) -> list[np.ndarray]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]


def _normal(checkpoint, pixels: np.ndarray) -> np.ndarray:
    """The float network's input (n, c, h, w)."""
    return np.ascontiguousarray(checkpoint.preprocess.normalize(pixels).transpose(0, 3, 1, 2))


def compare(models: Sequence[str], engines: Sequence[str], crops: int, calibration: int) -> list[dict]:
    """A row for each model, engine and settings, the float network's first."""
    rows = []
    files = sorted(asset("photos").iterdir())
    for model in models:
        checkpoint = domain.load(model)
        size = checkpoint.input_size
        unseen = random_crops(files[1::2], crops, seed=1, size=size)
        photos, labels = next(open_dataset(asset("photos"), checkpoint.preprocess).batches(len(files)))
        float32 = domain.network(checkpoint)
        reference = np.concatenate([float32(part) for part in batched(unseen)])
        row = {"model": model, "engine": "torch", "settings": "float32", "sqnr_db": None, "agreement": 1.0}
        rows.append(row | {"top1": top_k(float32(photos), labels, 1)})
        with tempfile.TemporaryDirectory() as folder:
            seen = random_crops(files[::2], calibration, seed=0, size=size)
            for (engine, settings), quantize in competitors(checkpoint, seen, Path(folder)).items():
                if engine not in engines:
                    continue
                with step(f"{model}: {engine}, {settings}"):
                    predict = quantize()
                    scores = predict(unseen)
                    rows.append(
                        {
                            "model": model,
                            "engine": engine,
                            "settings": settings,
                            "sqnr_db": round(sqnr_db(scores, reference), 2),
                            "agreement": round(agreement(scores, reference), 4),
                            "top1": top_k(predict(photos), labels, 1),
                        }
                    )
                err.print(human(rows[-1]), soft_wrap=True)
    return rows


def human(row: dict) -> str:
    """One row as a line."""
    return (
        f"{row['model']:18} {row['engine']:11} {row['settings']:40} {row['sqnr_db']:6.2f} dB  "
        f"same first class {row['agreement']:6.1%}  top-1 {row['top1']:6.1%}"
    )


def markdown(rows: Sequence[dict]) -> str:
    """The README's table."""
    lines = [
        "| network | engine | settings | logits SQNR | same top-1 as float | top-1 on 20 photos |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        noise = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        cells = [row["model"], row["engine"], row["settings"], noise, f"{row['agreement']:.1%}", f"{row['top1']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        prog="accuracy_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=words, default=MODELS, metavar="NAME,...")
    parser.add_argument("--engines", type=words, default=ENGINES, metavar="NAME,...", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--crops", type=int, default=300, metavar="N", help="crops to compare on (default 300)")
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="crops to calibrate on (default 256)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON list")
    output.add_argument("--markdown", action="store_true", help="print the README's table")
    options = parser.parse_args(arguments)
    try:
        rows = compare(options.models, options.engines, options.crops, options.calibration)
    except IntqError as error:
        err.print(f"accuracy_peers: {error}", markup=False, soft_wrap=True)
        return 2
    if options.json:
        print_json(rows)
    elif options.markdown:
        print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
