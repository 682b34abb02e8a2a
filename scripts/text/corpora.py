"""The three sets of labelled sentences, made from what packages ship, in the layout of GLUE's own TSV files.

    movie    sentence, label: 0 negative, 1 positive; SST-2's columns
    pair     index, question, sentence, label: entailment (the sentence answers it), not_entailment; QNLI's columns
    rating   sentence, score: -4 .. 4; a regression, as STS-B with one sentence

Each becomes `train.tsv` and `dev.tsv`, 15 % being held back by a seeded shuffle: of sentences, or, for pairs, of
policies' sentences with all their questions, so that no held-back sentence was seen in training.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from intq.nlp.assets import asset

HELD_BACK = 0.15
CLEAR = 0.5  # a film review is positive or negative when its mean rating, in -4..4, is at least so far from 0
ENTAILS = {"True": "entailment", "False": "not_entailment"}

Row = tuple[str, ...]


def ratings() -> list[tuple[str, float]]:
    """(sentence, mean rating in -4..4) of every film review (Hutto and Gilbert, VADER, ICWSM 2014)."""
    lines = asset("movie-sentences").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines)
    return [(_plain(sentence), float(rating)) for _, rating, sentence in rows]


def movie(seed: int) -> tuple[Row, list[Row], list[Row]]:
    rows = [(sentence, str(int(rating > 0))) for sentence, rating in ratings() if abs(rating) >= CLEAR]
    return ("sentence", "label"), *_split(rows, range(len(rows)), seed)


def rating(seed: int) -> tuple[Row, list[Row], list[Row]]:
    rows = [(sentence, f"{rating:.4f}") for sentence, rating in ratings()]
    return ("sentence", "score"), *_split(rows, range(len(rows)), seed)


def pair(seed: int) -> tuple[Row, list[Row], list[Row]]:
    """Questions about privacy policies (PolicyQA's shape: Ahmad et al., 2020), each with one sentence of a policy."""
    examples = [json.loads(line) for line in asset("privacy-policies").read_text(encoding="utf-8").splitlines()]
    rows = [
        (str(i), _plain(each["question"]), _plain(each["context"]), ENTAILS[each["answer"]])
        for i, each in enumerate(examples)
    ]
    return ("index", "question", "sentence", "label"), *_split(rows, [row[2] for row in rows], seed)


CORPORA: dict[str, Callable] = {"movie": movie, "pair": pair, "rating": rating}


def corpus(name: str, folder: Path, seed: int = 0) -> Path:
    """The folder with the set's train.tsv and dev.tsv, written now if they are not there."""
    place = folder / name
    if not all((place / f"{split}.tsv").is_file() for split in ("train", "dev")):
        place.mkdir(parents=True, exist_ok=True)
        header, *splits = CORPORA[name](seed)
        for split, rows in zip(("train", "dev"), splits, strict=True):
            text = "".join("\t".join(row) + "\n" for row in (header, *rows))
            (place / f"{split}.tsv").write_text(text, encoding="utf-8")
    return place


def _split(rows: Sequence[Row], groups: Iterable, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, held back): whole groups, shuffled, until 15 % of the rows are held back."""
    members: dict[object, list[Row]] = {}
    for row, group in zip(rows, groups, strict=True):
        members.setdefault(group, []).append(row)
    held: list[Row] = []
    train: list[Row] = []
    shuffled = list(members.values())
    for i in np.random.default_rng(seed).permutation(len(shuffled)):
        (held if len(held) < round(HELD_BACK * len(rows)) else train).extend(shuffled[i])
    return train, held


def _plain(text: str) -> str:
    """Without tabs and line breaks."""
    return " ".join(text.split())
