"""What each choice of the quantizer brings: the float network against the integer one, a choice added per row.

Calibrated on random crops of half of the photos; measured on crops of the other half, against the float network, by the
torch backend (which equals the compiled network to the last bit). Top-1 is on the photos themselves.

With --calibrations: what the calibration data bring, the other choices being the default. `--zero-shot` makes its own.
"""

import argparse

import numpy as np

import intq
from intq.backends import torch as integers
from intq.vision import domain
from intq.vision.assets import asset
from intq.vision.data import open_dataset, random_crops
from intq.vision.metrics import agreement, sqnr_db, top_k
from intq.vision.zero_shot import MOST, dead_leaves

PLAIN = {"method": "minmax", "equalize": False, "bias_correction": False, "rounding": "nearest"}
LEVERS = (
    ("least and greatest value, nearest rounding", PLAIN),
    ("+ ranges of least squared error", {"method": "mse"}),
    ("+ bias correction", {"bias_correction": True}),
    ("+ error-compensating rounding", {"rounding": "gptq"}),
    ("+ equalized channels (the default)", {"equalize": True}),
    ("+ 16-bit residual sums", {"residual_bits": 16}),
)


def batched(predict, pixels: np.ndarray, size: int = 25) -> np.ndarray:
    """``predict`` on all pixels, a few at a time."""
    return np.concatenate([predict(pixels[start : start + size]) for start in range(0, len(pixels), size)])


def rows(model: str, crops: int, calibration: int, calibrations: bool):
    """Per choice: its name, SQNR in dB, share of equal first classes, top-1; the float network first."""
    files, checkpoint = sorted(asset("photos").iterdir()), domain.load(model)
    preprocess, float_network, size = checkpoint.preprocess, domain.network(checkpoint), checkpoint.input_size
    seen = random_crops(files[::2], calibration, seed=0, size=size)
    unseen = random_crops(files[1::2], crops, seed=1, size=size)
    photos, labels = next(open_dataset(asset("photos"), preprocess).batches(len(files)))
    reference = batched(float_network, unseen)
    yield "float32", float("inf"), 1.0, top_k(batched(float_network, photos), labels, 1)

    def judged(graph: intq.Graph) -> tuple[float, float, float]:
        network, scale = integers.prepare(graph), graph.values[graph.outputs[0]].scale
        scores = batched(lambda pixels: scale * network(pixels)[0].numpy(), unseen)
        top1 = top_k(batched(lambda pixels: network(pixels)[0].numpy(), photos), labels, 1)
        return sqnr_db(scores, reference), agreement(scores, reference), top1

    def quantized(pixels: np.ndarray, **options) -> intq.Graph:
        return intq.quantize(checkpoint.model, [pixels], mean=preprocess.mean, std=preprocess.std, **options)

    if not calibrations:
        options = {}
        for name, choice in LEVERS:
            options |= choice
            yield name, *judged(quantized(seen, **options))
        return
    yield f"{calibration} crops of the other photos", *judged(quantized(seen))
    yield f"{MOST} crops of the other photos", *judged(quantized(seen[:MOST]))
    yield f"{calibration} crops of all photos", *judged(quantized(random_crops(files, calibration, seed=0, size=size)))
    yield (
        "no data: --zero-shot",
        *judged(domain.prepare(checkpoint, None, samples=MOST, seed=0, zero_shot=True).quantize()),
    )
    yield f"no data: {MOST} images of random shapes as they are", *judged(quantized(dead_leaves(MOST, size)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="accuracy", description=__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=("mobilenet_v2", "efficientnet_lite0"))
    parser.add_argument("--crops", type=int, default=300, metavar="N", help="crops to compare on (default 300)")
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="crops to calibrate on (default 256)")
    parser.add_argument("--calibrations", action="store_true", help="compare what to calibrate on")
    options = parser.parse_args()
    print("| network | choices | logits SQNR | same top-1 as float | top-1 on 20 photos |\n|---|---|---|---|---|")
    for model in options.models:
        found = rows(model, options.crops, options.calibration, options.calibrations)
        for name, noise, same, top1 in found:
            print(f"| {model} | {name} | {noise:.1f} dB | {same:.1%} | {top1:.0%} |", flush=True)


if __name__ == "__main__":
    main()
