"""How right a classifier is, and how close two of them are."""

import numpy as np

from intq.errors import IntqError


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes score better than each image's label (n,): 0 is right, below 5 is right among five.

    scores (n, classes): any numbers; labels (n,): classes. Of equal scores the lower class is the better, as in
    argmax, so that integer scores, where ties happen, have one answer everywhere.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    _check_labels(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    classes = np.arange(scores.shape[1])
    return (scores > own).sum(1) + ((scores == own) & (classes < labels[:, None])).sum(1)


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of images whose label is among the k best classes."""
    return float((ranks(scores, labels) < k).mean())


def agreement(scores: np.ndarray, reference: np.ndarray) -> float:
    """The share of images to which two networks give the same first class. Both are (n, classes)."""
    _check_same(scores, reference)
    return float((np.argmax(scores, 1) == np.argmax(reference, 1)).mean())


def sqnr_db(values: np.ndarray, reference: np.ndarray) -> float:
    """Signal to quantization noise: 10 log10(sum reference**2 / sum (values - reference)**2), in decibels.

    Both are real numbers of one shape (integer scores times their scale). Infinite when they are equal.
    """
    _check_same(values, reference)
    reference = np.asarray(reference, np.float64)
    noise = np.square(np.asarray(values, np.float64) - reference).sum()
    if noise == 0:
        return float("inf")
    signal = np.square(reference).sum()
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _check_same(values: np.ndarray, reference: np.ndarray) -> None:
    if np.shape(values) != np.shape(reference) or not np.size(values):
        raise IntqError(f"cannot compare outputs of the shapes {np.shape(values)} and {np.shape(reference)}")


def _check_labels(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not labels.size:
        raise IntqError(f"expected scores (n, classes) and n labels, found {scores.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise IntqError(
            f"a label is {labels.max() if labels.max() >= scores.shape[1] else labels.min()}, but the network has "
            f"{scores.shape[1]} classes: these are not its data"
        )
