"""Text as the commands see it (the functions that :mod:`intq.domains` lists): classes, scores, tags, embeddings.

Importing this module needs NumPy alone; transformers (the tokenizer) and torch come in with what uses them.
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
from intq.nlp import answers, suite, tasks
from intq.nlp import data as examples_of
from intq.nlp.data import Examples
from intq.nlp.evaluate import KINDS, Predict, Progress, check_head
from intq.nlp.evaluate import evaluate as judged
from intq.nlp.tokens import Reader, batches, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from intq.nlp.checkpoint import Checkpoint

TASK_CLASSES = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "Model")
PACKAGED: tuple[str, ...] = ()
READS = "text"
OPTIONS = ("task", "pair", "truncate", "float")
RATE = 1e-4
BATCH, RANDOM_TOKENS, RANDOM_WORDS = 16, 128, 64


def names() -> tuple[str, ...]:
    """The architectures that `random` builds."""
    from intq.nlp.models import ARCHITECTURES

    return tuple(ARCHITECTURES)


def load(source: str) -> Checkpoint:
    """The trained network in a folder written by save_pretrained, or of a hub id."""
    from intq.nlp.checkpoint import load

    return load(source)


def random(name: str, seed: int) -> Checkpoint:
    """The architecture `name` at full size with random weights; it has no tokenizer."""
    from intq.nlp.synthetic import random_checkpoint

    return random_checkpoint(name, seed)


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `reader`, `run` and `evaluate` need, as JSON: it travels in the graph."""
    return {
        "domain": "nlp",
        "model": checkpoint.name,
        "source": checkpoint.source,
        "head": checkpoint.head,
        "labels": list(checkpoint.labels),
        "padding": checkpoint.padding,
        "longest": checkpoint.longest,
        "vocabulary": checkpoint.vocabulary,
    }


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the tokenizer into an artifact. Random weights have none."""
    if checkpoint.tokenizer is not None:
        save_tokenizer(checkpoint.tokenizer, folder)


def reader(source: Path | Checkpoint, metadata: Mapping[str, Any], truncate: bool = False) -> Reader:
    """From texts to token ids, by the tokenizer of an artifact or of a checkpoint."""
    tokenizer = load_tokenizer(source) if isinstance(source, Path) else source.tokenizer
    return Reader(tokenizer, metadata["padding"], metadata["longest"], metadata["vocabulary"], truncate)


def network(checkpoint: Checkpoint) -> Predict:
    """The float network on the same ids: int32 (n, s) -> float32 scores."""
    import torch

    def predict(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return checkpoint.model(torch.from_numpy(ids)).numpy()

    return predict


# ---- quantize ----------------------------------------------------------------------------------------------------


def calibration(
    checkpoint: Checkpoint, data: str | None, task: str | None, samples: int, seed: int
) -> list[np.ndarray]:
    """Batches of ids int32 (n, s): texts chosen at random from the data, or when there is none random words, of an
    architecture without a tokenizer random ids.

    data, task: as `evaluate` takes them; labels are not needed. A text that is too long is cut.
    """
    if data is None and task is None:
        return (_random_words if checkpoint.tokenizer else _random_ids)(checkpoint, samples, seed)
    if task is not None:
        known = tasks.task(task)
        check_head(known, metadata(checkpoint))
        examples = examples_of.training(known, data)
    else:
        examples = examples_of.own(data, checkpoint.head, "train", labelled=False)
    if checkpoint.head == "embedding":
        examples = examples.singly()
    examples = examples.sample(samples, seed)
    rows = reader(checkpoint, metadata(checkpoint), truncate=True).ids(examples.texts, examples.where)
    return [ids for _, ids in batches(rows, BATCH, checkpoint.padding)]


def _random_ids(checkpoint: Checkpoint, samples: int, seed: int) -> list[np.ndarray]:
    """Sentences of random ids and random lengths, as the architecture's tokenizer would mark them."""
    from intq.nlp.models import architecture
    from intq.nlp.synthetic import random_ids

    known = architecture(checkpoint.name)
    length = min(RANDOM_TOKENS, checkpoint.longest)
    return [random_ids(samples, length, checkpoint.vocabulary, known.padding, known.first, known.separator, seed)]


def _random_words(checkpoint: Checkpoint, samples: int, seed: int) -> list[np.ndarray]:
    """Batches of ids of texts without meaning; of a classifier that tells segments apart, half of them are pairs."""
    from intq.nlp.synthetic import random_texts

    classifies = checkpoint.head in ("classification", "regression")
    pairs = samples // 2 if classifies and checkpoint.separator is not None else 0
    longest = min(RANDOM_WORDS, checkpoint.longest // 2)
    texts = random_texts(checkpoint.tokenizer, checkpoint.vocabulary, samples + pairs, longest, seed)
    read = reader(checkpoint, metadata(checkpoint), truncate=True)
    rows = read.ids(texts[2 * pairs :], lambda row: f"text {row}")
    if pairs:
        both = list(zip(texts[:pairs], texts[pairs : 2 * pairs], strict=True))
        rows += read.ids(both, lambda row: f"pair {row}")
    return [ids for _, ids in batches(rows, BATCH, checkpoint.padding)]


def prepare(
    checkpoint: Checkpoint,
    data: str | None,
    *,
    task: str | None = None,
    samples: int,
    seed: int,
    zero_shot: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Prepared:
    """What `intq.quantize` takes of a checkpoint, and what its graph needs but the tokenizer (`save`).

    zero_shot: calibrated without data, on random words of the tokenizer's vocabulary.
    """
    made = None
    if zero_shot:
        from intq.zero_shot import noise

        made = noise(_random_words(checkpoint, samples, seed), samples, "texts of random words")
        ids, options = made.samples, {**made.options, **options}
    else:
        ids = calibration(checkpoint, data, task, samples, seed)
    learned = {"functions": checkpoint.functions} if checkpoint.functions != "exact" else {}
    learned |= {"ranges": checkpoint.ranges} if checkpoint.ranges else {}

    def complete(graph: Graph) -> Graph:
        graph = made.noted(graph) if made else graph
        scale = graph.values[graph.outputs[0]].scale
        known = {"task": tasks.task(task).name} if task else {}
        return replace(graph, metadata={**graph.metadata, **metadata(checkpoint), "scale": scale, **known})

    return Prepared(checkpoint.model, ids, {"seed": seed, **learned, **options}, complete)


def training(checkpoint: Checkpoint, data: str | None, *, task: str | None = None):
    """Labelled texts to train on (:class:`intq.finetune.Data`): the train split of the task or of the data."""
    from intq.nlp.training import training

    known = metadata(checkpoint)
    if task is not None:
        given = tasks.task(task)
        check_head(given, known)
        examples = examples_of.training(given, data)
    elif data is None:
        raise IntqError("no data: give --data a file with texts and labels, or name one of GLUE's tasks with --task")
    else:
        examples = examples_of.own(data, checkpoint.head, "train")
    return training(examples, reader(checkpoint, known, truncate=True), known)


# ---- run ---------------------------------------------------------------------------------------------------------


# ---- eval --------------------------------------------------------------------------------------------------------


def evaluate(
    predict: Predict,
    reader: Reader,
    metadata: Mapping[str, Any],
    data: str | None,
    *,
    task: str | None = None,
    beside: Predict | None = None,
    limit: int | None,
    batch: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """{"task", "examples", "metrics"} of a network on labelled texts.

    data: with `task`, one of GLUE's, the folder of its official files or None for the hub's; otherwise a user's file
    or the name of a data set of the hub. beside: another network with the same head, which adds its metrics as
    "float", and for classes "same": the share of examples (or words) to which both give the same class.
    """
    if task is None:
        if data is None:
            raise IntqError(
                f"no data: give --data a file with texts and labels, or name one of GLUE's tasks with --task "
                f"({', '.join(tasks.TASKS)}, {tasks.GLUE})"
            )
        kind, wanted, sets = KINDS[metadata["head"]], (), {"": examples_of.own(data, metadata["head"])}
    else:
        known = tasks.task(task)
        check_head(known, metadata)
        kind, wanted, sets = known.name, known.metrics, examples_of.held_out(known, data)
    sets = {ending: examples.sample(limit) if limit else examples for ending, examples in sets.items()}
    value: dict[str, Any] = {"task": kind, "examples": sum(map(len, sets.values()))}
    given = {}
    for key, network in (("metrics", predict), *((("float", beside),) if beside else ())):
        value[key], given[key] = _judged(network, reader, metadata, sets, wanted, batch, progress)
    if beside and metadata["head"] in ("classification", "tokens"):
        value["same"] = float(np.mean(given["metrics"] == given["float"]))
    return value


def _judged(
    predict: Predict,
    reader: Reader,
    metadata: Mapping[str, Any],
    sets: Mapping[str, Examples],
    wanted: Sequence[str],
    batch: int,
    progress: Progress | None,
) -> tuple[dict[str, float], np.ndarray]:
    """The metrics of all sets, each named with the set's ending, and the answers to all examples (or words)."""
    found: dict[str, float] = {}
    all_given: list[Any] = []
    for ending, examples in sets.items():
        metrics, given = judged(predict, reader, metadata, examples, wanted, batch, progress)
        found |= {name + ending: value for name, value in metrics.items()}
        all_given += [np.atleast_1d(item) for item in given]
    return found, np.concatenate(all_given)


run, members, summary = answers.run, suite.members, suite.summary
