"""Top-1 and top-5 of a classifier on a labelled data set."""

from collections.abc import Callable

import numpy as np

from intq.errors import IntqError
from intq.vision.data import Dataset
from intq.vision.metrics import ranks


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    dataset: Dataset,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """{"task": "image-classification", "examples": n, "metrics": {"top1": share, "top5": share}}, shares of 1.

    predict: uint8 (n, height, width, channels) to scores (n, classes), integer or real. progress: called with (images
    done, images in all) after each batch. top5 is left out when there are not more than five classes.

    Raises IntqError when the data set has no labels, or one that the network has no class for.
    """
    if not dataset.labelled:
        raise IntqError(
            f"{dataset.name} has no labels to compare with: expected one folder for each class (ImageFolder), CIFAR, "
            "MNIST idx files, or file names that end in the label (name_index_label.jpg)"
        )
    found: list[np.ndarray] = []
    classes = done = 0
    for images, truth in dataset.batches(batch_size):
        scores = np.asarray(predict(images))
        found.append(ranks(scores, truth))
        classes = scores.shape[1]
        done += len(images)
        if progress:
            progress(done, len(dataset))
    rank = np.concatenate(found)
    metrics = {f"top{k}": float((rank < k).mean()) for k in (1, 5) if k < classes}
    return {"task": "image-classification", "examples": len(rank), "metrics": metrics}
