"""How right answers are: GLUE's metrics, by scikit-learn and SciPy, and the entity F1 of CoNLL. Shares of 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of right classes. (n,) both."""
    return float(np.mean(np.asarray(found) == np.asarray(truth)))


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """2 P R / (P + R) of class 1 among two classes; 0 where nothing is found or nothing is there."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, found, labels=[0, 1], zero_division=0.0))


def macro_f1(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the classes that occur of each one's F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, found, average="macro", zero_division=0.0))


def matthews(found: np.ndarray, truth: np.ndarray) -> float:
    """Matthews' correlation of two classifications, -1..1; 0 where either knows one class only."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, found))


def pearson(found: np.ndarray, truth: np.ndarray) -> float:
    """The linear correlation of two scores, -1..1; 0 where either is constant (nothing is explained)."""
    from scipy.stats import pearsonr

    return 0.0 if _constant(found, truth) else float(pearsonr(found, truth).statistic)


def spearman(found: np.ndarray, truth: np.ndarray) -> float:
    """The linear correlation of the ranks of two scores, -1..1; 0 where either is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _constant(found, truth) else float(spearmanr(found, truth).statistic)


def _constant(*scores: np.ndarray) -> bool:
    return any(len(values) < 2 or np.ptp(np.asarray(values, np.float64)) == 0 for values in scores)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a.b / (|a| |b|) of each pair of rows (n, C): float64 (n,); 0 where a row is all zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.where(lengths > 0, lengths, 1.0)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities (kind, first word, word after the last) that the tags of a sentence spell.

    B-X begins one of kind X and I-X goes on with it; as CoNLL's own script has it, an I-X after something else begins
    one too.
    """
    found, begun, kind = set(), 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, inside = tag.partition("-")
        if kind and not (prefix == "I" and inside == kind):
            found.add((kind, begun, position))
            kind = ""
        if prefix in ("B", "I") and not kind:
            kind, begun = inside, position
    return found


def entity_f1(found: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> float:
    """2 P R / (P + R) of whole entities: those with the right kind and the right words (Tjong Kim Sang 2003).

    found, truth: the tags of each sentence's words. 0 where there are no entities.
    """
    pairs = [(entities(a), entities(b)) for a, b in zip(found, truth, strict=True)]
    right = sum(len(a & b) for a, b in pairs)
    return 2 * right / max(sum(len(a) + len(b) for a, b in pairs), 1)
