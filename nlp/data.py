"""Examples: the texts and labels of GLUE's official files, of the hub's data sets, and of a user's own files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.nlp.tables import READERS, Table, read_table, read_tsv
from intq.nlp.tasks import PAIR, Task

log = logging.getLogger(__name__)

Text = str | tuple[str, str] | list[str]  # one text, a pair, or the words of a sentence

# The columns of a user's own file, by what they are usually called; pairs are looked for first.
PAIRS = (
    PAIR,
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXTS = ("text", "sentence", "content", "review")
WORDS = ("tokens", "words")
LABELS = {
    "classification": ("label", "labels", "gold_label", "class", "target", "answer"),
    "regression": ("score", "similarity", "rating", "label", "labels", "target"),
    "embedding": ("score", "similarity", "rating", "label"),
    "tokens": ("labels", "tags", "ner_tags", "label"),
}
HUB_GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class Examples:
    """Texts with their labels.

    labels: of each text its class as an index into `classes` where there are such, else the name of its class, a real
    score, or the names of its words' classes; None where they are unknown. where: for a message, an example's place.
    numbered: `classes` are in the order in which everybody numbers them.
    """

    name: str
    texts: list[Text]
    labels: list[Any] | None
    where: Callable[[int], str]
    classes: tuple[str, ...] = ()
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, count: int, seed: int = 0) -> Examples:
        """`count` of the examples at random (all when there are fewer), in their order."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count]).tolist()
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        texts, where = [self.texts[i] for i in chosen], self.where
        return replace(self, texts=texts, labels=labels, where=lambda i: where(chosen[i]))

    def singly(self) -> Examples:
        """Every text on its own, those of a pair one after the other, without labels: as an encoder sees them."""
        if not isinstance(self.texts[0], tuple):
            return replace(self, labels=None)
        texts: list[Text] = [text for pair in self.texts for text in pair]
        return replace(self, texts=texts, labels=None, where=lambda row: self.where(row // 2))


# ---- GLUE --------------------------------------------------------------------------------------------------------


def held_out(task: Task, data: str | None) -> dict[str, Examples]:
    """The sets on which a task is evaluated, by what their metrics' names end in ("_matched"; "" where there is one).

    data: the folder of the official files, or of all nine tasks' folders; or one of the files; None: the hub's.
    Raises IntqError, naming file and line, for what is not there.
    """
    if data is not None and Path(data).is_file():
        return {"": official(Path(data), task)}
    return {
        ending: online(task, split) if data is None else official(_file(Path(data), task, files), task)
        for ending, (files, split) in task.sets.items()
    }


def training(task: Task, data: str | None) -> Examples:
    """The train split of a task, from the same places."""
    if data is None:
        return online(task, "train")
    return official(Path(data) if Path(data).is_file() else _file(Path(data), task, task.train), task)


def _file(folder: Path, task: Task, names: tuple[str, ...]) -> Path:
    folders = [folder / task.folder, folder / task.name, folder]
    for path in (place / name for place in folders for name in names):
        if path.is_file():
            return path
    raise IntqError(
        f"{folder}: has no {' or '.join(names)} of {task.folder}: expected the official folder of the task, or the "
        f"folder that holds {task.folder}/"
    )


def official(path: Path, task: Task) -> Examples:
    """The examples of one of a task's official files."""
    table = read_tsv(path, task.header)
    wanted = (*task.columns, task.label)
    if task.ragged and set(wanted) <= set(table.columns):
        table = _without_ragged(table, max(map(table.columns.index, wanted)))
    *texts, labels = (table.column(name) for name in wanted)
    if not labels:
        raise IntqError(f"{path} holds no examples")
    read = [_official_label(value, task, table.where(row)) for row, value in enumerate(labels)]
    return Examples(str(path), _joined(texts), read, table.where, task.classes, numbered=True)


def _without_ragged(table: Table, last: int) -> Table:
    whole = [row for row, values in enumerate(table.rows) if len(values) > last]
    if len(whole) < len(table.rows):
        log.warning("%s: lines that lack fields and are left out: %d", table.name, len(table.rows) - len(whole))
    return replace(table, rows=[table.rows[row] for row in whole], lines=[table.lines[row] for row in whole])


def _official_label(value: str, task: Task, where: str) -> int | float:
    if not task.classes:
        return _number(value, where)
    if value in task.classes:
        return task.classes.index(value)
    if value.isdecimal() and int(value) < len(task.classes):
        return int(value)
    raise IntqError(f"{where}: {value!r} is no label of {task.folder}, which has {', '.join(task.classes)}")


def online(task: Task, split: str) -> Examples:
    """The examples of a task's split, from the hub's data set "glue" or from its cache."""
    rows = load_dataset(HUB_GLUE, split, task.name)
    table = Table(f"{HUB_GLUE} {task.name} {split}", (), [])
    texts = [list(rows[name]) for name in task.hub_columns]
    return Examples(table.name, _joined(texts), list(rows["label"]), table.where, task.classes, numbered=True)


# ---- a user's own data -------------------------------------------------------------------------------------------


def own(data: str, head: str, split: str = "test", labelled: bool = True) -> Examples:
    """The examples of a user's file, or of a data set of the hub by its name.

    head: of the network: it says which column to look for. split: "train" or "test", of a data set that has both.
    Raises IntqError, naming file, line and the columns found, when a column is missing; and for an empty text.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        raise IntqError(
            f"{path} is a folder: give one of its files, or with --task the task whose official files it has"
        )
    if path.is_file():
        table, classes = read_table(path), ()
    elif path.suffix in READERS or path.is_absolute() or data.startswith(".") or data.count("/") > 1 or not data:
        raise IntqError(f"there is no file {data or 'of an empty name'}")
    else:
        table, classes = _hub_table(data, split)
    texts = _texts(table, head)
    labels = _labels(table, texts, head) if labelled else None
    return Examples(table.name, texts, labels, table.where, tuple(classes) if head == "classification" else ())


def _texts(table: Table, head: str) -> list[Text]:
    names = {name.lower(): name for name in reversed(table.columns)}
    words = next((names[name] for name in WORDS if name in names), None)
    if head == "tokens" and words is not None:
        return [_words(value, table.where(row), words) for row, value in enumerate(table.column(words))]
    pair = next((pair for pair in PAIRS if set(pair) <= set(names)), None)
    found = pair or next(((name,) for name in TEXTS if name in names), None)
    if found is None:
        choice = ", ".join(map(repr, (*(WORDS if head == "tokens" else ()), *TEXTS)))
        pairs = "; ".join(" and ".join(map(repr, pair)) for pair in PAIRS[:4])
        raise IntqError(
            f"{table.top}: there is no column of texts; the columns are {table.said()}; "
            f"expected one of {choice}, or a pair such as {pairs}"
        )
    columns = [table.column(names[name]) for name in found]
    for name, values in zip(found, columns, strict=True):
        for row, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                what = "is empty" if value in ("", None) or isinstance(value, str) else f"is no text: {value!r}"
                raise IntqError(f"{table.where(row)}: the column {name!r} {what}")
    return _joined(columns)


def _labels(table: Table, texts: list[Text], head: str) -> list[Any]:
    names = {name.lower(): name for name in reversed(table.columns)}
    column = next((names[name] for name in LABELS[head] if name in names), None)
    if column is None:
        raise IntqError(
            f"{table.top}: there is no column of labels; the columns are {table.said()}; "
            f"expected one of {', '.join(map(repr, LABELS[head]))}"
        )
    values = table.column(column)
    if head in ("regression", "embedding"):
        return [_number(value, table.where(row)) for row, value in enumerate(values)]
    if head == "classification":
        return values
    found = [_words(value, table.where(row), column) for row, value in enumerate(values)]
    for row, (text, tags) in enumerate(zip(texts, found, strict=True)):
        if not isinstance(text, list) or len(text) != len(tags):
            words = f"{len(text)} words" if isinstance(text, list) else "no column of words"
            raise IntqError(f"{table.where(row)}: {len(tags)} labels for {words}: every word needs one")
    return found


def _words(value: Any, where: str, column: str) -> list[str]:
    words = value.split() if isinstance(value, str) else list(map(str, value)) if isinstance(value, list) else None
    if not words:
        raise IntqError(f"{where}: the column {column!r} holds no words: {value!r}")
    return words


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise IntqError(f"{where}: expected a score, which is a number, found {value!r}")
    return number


def _joined(columns: Sequence[list[str]]) -> list[Text]:
    """One text or a pair for each row."""
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


# ---- the library datasets ----------------------------------------------------------------------------------------


def _hub_table(name: str, split: str) -> tuple[Table, Sequence[str]]:
    """A data set as a table, with the names of its labels; names stand in for the numbers of words' classes."""
    import datasets

    splits = ("train",) if split == "train" else ("validation", "dev", "test")
    rows = load_dataset(name, splits)
    classes: Sequence[str] = ()
    columns = {column: list(rows[column]) for column in rows.column_names}
    for column, feature in rows.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.ClassLabel) and column in LABELS["classification"]:
            classes = feature.names
        elif isinstance(inner, datasets.ClassLabel):
            columns[column] = [[inner.names[i] for i in values] for values in columns[column]]
    return Table(name, tuple(columns), list(zip(*columns.values(), strict=True))), classes


def load_dataset(name: str, splits: str | Sequence[str], part: str | None = None):
    """A split of a data set of the hub, or of its cache: the first of `splits` that it has."""
    import datasets
    from huggingface_hub import HfApi

    try:
        # Ask the hub first: where it is out of reach the library would retry for half a minute.
        if not Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir():
            HfApi().repo_info(name, repo_type="dataset", timeout=20)
        if not isinstance(splits, str):
            available = datasets.get_dataset_split_names(name, part)
            splits = next((split for split in splits if split in available), available[0])
        return datasets.load_dataset(name, part, split=splits)
    except Exception as error:  # the library raises its own, its HTTP client's and the system's errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise IntqError(
            f"{name} is no file here and could not be loaded from the Hugging Face hub: check the name and the "
            f"connection, or give local files with --data ({reason})"
        ) from error
