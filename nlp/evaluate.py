"""What a text network answers to examples, integer or float by the same path, and how right it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.nlp import metrics
from intq.nlp.data import Examples
from intq.nlp.labels import class_order, said
from intq.nlp.tasks import Task
from intq.nlp.tokens import Reader, batches

Predict = Callable[[np.ndarray], np.ndarray]  # ids int32 (n, s) -> scores
Progress = Callable[[int, int], None]

# What is measured where no task says otherwise.
METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman"),
    "embedding": ("pearson", "spearman"),
}
KINDS = {
    "classification": "text-classification",
    "regression": "text-regression",
    "tokens": "token-classification",
    "embedding": "sentence-similarity",
}


def scores(
    predict: Predict, rows: Sequence[np.ndarray], padding: int, batch: int, progress: Progress | None = None
) -> list[np.ndarray]:
    """What the network answers to each row of ids, in order, run in padded batches of similar length.

    Of token classification an answer has a row for each token and may have more, for padding.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    done = 0
    for chosen, ids in batches(rows, batch, padding):
        for index, answer in zip(chosen, np.asarray(predict(ids)), strict=True):
            found[index] = answer
        done += len(chosen)
        if progress:
            progress(done, len(rows))
    return found


def check_head(task: Task, metadata: Mapping[str, Any]) -> None:
    """Raise IntqError unless the network's head answers what the task asks, with its classes.

    Similarity is asked of embeddings too.
    """
    head = metadata["head"]
    if head != task.head and not (task.head == "regression" and head == "embedding"):
        wanted = f"classifies into {said(task.classes)}" if task.classes else "scores pairs of texts"
        has = f"{head} into {said(metadata['labels'])}" if metadata["labels"] else head
        raise IntqError(f"the task {task.name} {wanted}, but {metadata['model']} has a head for {has}")
    if task.classes:
        class_order(task.classes, metadata["labels"], f"the task {task.name}", numbered=True)


def evaluate(
    predict: Predict,
    reader: Reader,
    metadata: Mapping[str, Any],
    examples: Examples,
    wanted: Sequence[str] = (),
    batch: int = 16,
    progress: Progress | None = None,
) -> tuple[dict[str, float], list]:
    """(metrics, the answer to each example) of a network on labelled examples.

    predict: ids int32 (n, s) to the scores of the network's head, integer or real. wanted: the metrics' names; those
    of the head where it names none; of token classification always accuracy, and f1 where its labels spell entities.
    An answer is the index of a class, a score, a cosine, or the names of the words' classes.

    Raises IntqError when the labels are unknown or do not match the network's, and as `Reader.ids`.
    """

    def answer(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return scores(predict, rows, reader.padding, batch, progress)

    if examples.labels is None:
        raise IntqError(f"{examples.name} has no labels to compare with")
    judge = HEADS[metadata["head"]]
    return judge(answer, reader, examples, metadata["labels"], wanted or METRICS.get(metadata["head"], ()))


def _classification(answer, reader: Reader, examples: Examples, labels: Sequence[str], wanted: Sequence[str]):
    """The best class; of equal scores the lower one. F1's class 1 is the data's, whatever its number in the network."""
    if examples.classes and not 0 <= min(examples.labels) <= max(examples.labels) < len(examples.classes):
        raise IntqError(f"{examples.name}: some labels are none of {said(examples.classes)}: is this a test set?")
    values = [examples.classes[v] if examples.classes else str(v).strip() for v in examples.labels]
    names = list(examples.classes) or sorted(set(values))
    order = class_order(names, labels, examples.name, examples.numbered)
    truth = np.array([order[names.index(v)] for v in values])
    number = np.arange(len(labels))  # of each class of the network, its number among the data's
    if len(order) == len(labels):
        number[order] = np.arange(len(order))
    best = np.array([np.argmax(row) for row in answer(reader.ids(examples.texts, examples.where))])
    return {name: metrics.METRICS[name](number[best], number[truth]) for name in wanted}, best.tolist()


def _regression(answer, reader: Reader, examples: Examples, labels: Sequence[str], wanted: Sequence[str]):
    """The one score."""
    found = np.array([row.item() for row in answer(reader.ids(examples.texts, examples.where))], np.float64)
    return {name: metrics.METRICS[name](found, np.array(examples.labels)) for name in wanted}, found.tolist()


def _embedding(answer, reader: Reader, examples: Examples, labels: Sequence[str], wanted: Sequence[str]):
    """The cosine of the embeddings of a pair's two texts."""
    if not all(isinstance(text, tuple) for text in examples.texts):
        raise IntqError(f"{examples.name}: an embedding is judged by pairs of texts with a score, and these are single")
    count = len(examples)
    both = [text[side] for side in (0, 1) for text in examples.texts]
    rows = answer(reader.ids(both, lambda row: examples.where(row % count)))
    found = metrics.cosines(np.stack(rows[:count]), np.stack(rows[count:]))
    return {name: metrics.METRICS[name](found, np.array(examples.labels)) for name in wanted}, found.tolist()


def _tokens(answer, reader: Reader, examples: Examples, labels: Sequence[str], wanted: Sequence[str]):
    """The best class of each word's first token. Words that were cut off count as outside of all entities."""
    ids, words = reader.words(examples.texts, examples.where)
    names = sorted({tag for tags in examples.labels for tag in tags})
    order = dict(zip(names, class_order(names, labels, examples.name, numbered=False), strict=True))
    truth = [[labels[order[tag]] for tag in tags] for tags in examples.labels]
    found = [["O"] * len(tags) for tags in truth]
    for tags, own, row in zip(found, words, answer(ids), strict=True):
        for word in own:
            tags[word.index] = labels[int(np.argmax(row[word.token]))]
    flat = [np.concatenate(sentences) for sentences in (found, truth)]
    value = {"accuracy": metrics.accuracy(*flat)}
    if any(label.startswith(("B-", "I-")) for label in labels):
        value["f1"] = metrics.entity_f1(found, truth)
    return value, found


HEADS = {"classification": _classification, "regression": _regression, "embedding": _embedding, "tokens": _tokens}
