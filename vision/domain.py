"""Vision as the commands see it (the functions that :mod:`intq.domains` lists): image classification.

Importing this module needs NumPy and Pillow alone, because running a deployed network does; torch comes in with the
functions that load and quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intq.domains import Prepared
from intq.errors import IntqError
from intq.graph import Graph
from intq.ranking import best
from intq.vision.preprocess import Preprocess

if TYPE_CHECKING:
    from intq.vision.checkpoint import Checkpoint

TASK_CLASSES = ("ForImageClassification",)
PACKAGED: tuple[str, ...] = ()
READS = "images"
OPTIONS = ()
RATE = 1e-3


def names() -> tuple[str, ...]:
    """The architectures that `random` builds."""
    from intq.vision.models import ARCHITECTURES

    return tuple(ARCHITECTURES)


def load(source: str) -> Checkpoint:
    """The trained classifier in a folder, a state dict file or a hub id."""
    from intq.vision.checkpoint import load

    return load(source)


def random(name: str, seed: int) -> Checkpoint:
    """The architecture `name` at full size, with random weights and settled BatchNorm statistics."""
    from intq.vision.checkpoint import Checkpoint
    from intq.vision.labels import default_labels
    from intq.vision.models import architecture
    from intq.vision.synthetic import random_model

    known = architecture(name)
    model = random_model(name, seed)
    return Checkpoint(model, known.preprocess, default_labels(known.classes), name, known.size)


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `read` and `answer` need, as JSON: it travels in the graph."""
    return {
        "domain": "vision",
        "model": checkpoint.name,
        "preprocess": checkpoint.preprocess.to_dict(),
        "labels": list(checkpoint.labels),
        "input_size": list(checkpoint.input_size),
    }


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Nothing: an image network's metadata holds all that its input needs."""


def calibration(checkpoint: Checkpoint, data: str | Path | None, samples: int, seed: int) -> list[np.ndarray]:
    """Batches of uint8 pixels: photos chosen at random from `data`, or random images when it is None.

    Where there are fewer photos than `samples`, random crops of them make up the rest: a handful of middles says too
    little about what else a photo can show.
    """
    if data is None:
        from intq.vision.synthetic import random_images

        return [random_images(samples, checkpoint.input_size, seed, checkpoint.preprocess.channels)]
    from intq.vision.data import open_dataset, random_crops

    photos = open_dataset(data, checkpoint.preprocess, split="train", labelled=False).sample(samples, seed)
    batches = [pixels for pixels, _ in photos.batches(32)]
    missing = samples - len(photos)
    if missing > 0 and checkpoint.preprocess.channels == 3:
        images = [photos.source.read(int(index)) for index in photos.indices]
        batches.append(random_crops(images, missing, seed, batches[0].shape[1:3]))
    return batches


def prepare(
    checkpoint: Checkpoint,
    data: str | Path | None,
    *,
    samples: int,
    seed: int,
    zero_shot: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Prepared:
    """What `intq.quantize` takes of a checkpoint, and what its graph needs to read images and name classes.

    zero_shot: calibrated without data, on images made from the network (:mod:`intq.zero_shot`).
    """
    preprocess, made = checkpoint.preprocess, None
    if zero_shot:
        from intq.vision.zero_shot import images_for

        made = images_for(checkpoint.model, preprocess, checkpoint.input_size, samples, seed, progress)
        batches, options = [made.samples], {**made.options, **options}
    else:
        batches = calibration(checkpoint, data, samples, seed)
    options |= {"mean": preprocess.mean, "std": preprocess.std, "seed": seed}

    def complete(graph: Graph) -> Graph:
        graph = made.noted(graph) if made else graph
        return replace(graph, metadata={**graph.metadata, **metadata(checkpoint)})

    return Prepared(checkpoint.model, batches, options, complete)


def training(checkpoint: Checkpoint, data: str | None, *, seed: int = 0, **options: Any):
    """Labelled images to train on (:class:`intq.finetune.Data`): the train split of the data where there is one."""
    from intq.vision.data import open_dataset
    from intq.vision.training import Training

    if data is None:
        raise IntqError("no data: give --data labelled images to train on, such as one folder of them for each class")
    return Training(open_dataset(data, checkpoint.preprocess, checkpoint.labels, split="train"), **options)


def network(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
    """The float network on the same pixels: uint8 (n, height, width, channels) -> float32 logits (n, classes)."""
    import torch

    def predict(pixels: np.ndarray) -> np.ndarray:
        normal = torch.from_numpy(checkpoint.preprocess.normalize(pixels)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return checkpoint.model(normal).numpy()

    return predict


def reader(source: Path | Checkpoint, metadata: Mapping[str, Any]) -> Preprocess:
    """From an image to pixels; wherever the network is, its metadata knows."""
    return Preprocess.from_dict(metadata["preprocess"])


def run(
    predict: Callable[[np.ndarray], np.ndarray],
    reader: Preprocess,
    metadata: Mapping[str, Any],
    inputs: Sequence[str],
    *,
    top: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """{"input", "top": the best labels} of each image file."""
    images, rows = [reader.pixels(Path(file))[None] for file in inputs], []
    for file, pixels in zip(inputs, images, strict=True):
        rows.append({"input": str(file), "top": best(predict(pixels)[0], metadata["labels"], top)})
        if progress:
            progress(len(rows), len(images))
    return rows


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    reader: Preprocess,
    metadata: Mapping[str, Any],
    data: str | None,
    *,
    limit: int | None,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """{"task", "examples", "metrics": {"top1", "top5"}} of a network on labelled data."""
    from intq.vision.data import open_dataset
    from intq.vision.evaluate import evaluate

    if data is None:
        raise IntqError("no data: give --data labelled images, such as one folder of them for each class")
    dataset = open_dataset(data, reader, metadata["labels"])
    return evaluate(predict, dataset.sample(limit) if limit else dataset, batch, progress)
