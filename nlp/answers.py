"""Integer scores as answers to texts: labels, a real number, words with their labels, an embedding."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.nlp.data import Text
from intq.nlp.evaluate import Predict, Progress, scores
from intq.nlp.metrics import cosines
from intq.nlp.tokens import Reader, Word
from intq.ranking import best

BATCH = 16
ALONE = {  # heads that take no pair, and what they do instead
    "tokens": "labels the words of single texts",
    "embedding": "embeds single texts, and says how similar each is to the first",
}


def run(
    predict: Predict,
    reader: Reader,
    metadata: Mapping[str, Any],
    inputs: Sequence[str],
    *,
    top: int,
    pair: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """What the network says to each text: {"input", "pair" if it is one} and

    of a classification   "top": the best {"label", "index", "score"}; of equal scores the lower class comes first
    of a regression       "score", integer, and "value", the real number that it means
    of words              "words": [{"word", "label", "score"}]
    of an embedding       "embedding": integers; from the second text on "similarity": its cosine with the first

    inputs: texts; "-" stands for the lines of standard input, in which a tab separates a pair. pair: second texts.
    Raises IntqError for an empty text, and as `Reader.ids`.
    """
    said = _paired(list(_texts(inputs)), pair)
    for row, parts in enumerate(said):
        if not all(part.strip() for part in parts.values()):
            raise IntqError(f"text {row + 1} of {len(said)} is empty: there is nothing to answer")
    if "pair" in said[0] and metadata["head"] in ALONE:
        raise IntqError(f"{metadata['model']} {ALONE[metadata['head']]}: leave out --pair")
    texts: list[Text] = [(t["input"], t["pair"]) if "pair" in t else t["input"] for t in said]

    def where(row: int) -> str:
        return f"the text {_short(said[row]['input'])!r}"

    words: list[list[Word]] = [[] for _ in texts]
    if metadata["head"] == "tokens":
        ids, words = reader.words(texts, where)
    else:
        ids = reader.ids(texts, where)
    found = scores(predict, ids, reader.padding, BATCH, progress)
    return [
        text | _answer(row, own, found[0] if i else None, metadata, top)
        for i, (text, row, own) in enumerate(zip(said, found, words, strict=True))
    ]


def _answer(
    row: np.ndarray, words: Sequence[Word], first: np.ndarray | None, metadata: Mapping[str, Any], top: int
) -> dict[str, Any]:
    if metadata["head"] == "classification":
        return {"top": best(row, metadata["labels"], top)}
    if metadata["head"] == "regression":
        return {"score": int(row.item()), "value": row.item() * metadata["scale"]}
    if metadata["head"] == "tokens":
        answers = [best(row[word.token], metadata["labels"], 1)[0] for word in words]
        return {
            "words": [
                {"word": word.text, "label": own["label"], "score": own["score"]}
                for word, own in zip(words, answers, strict=True)
            ]
        }
    return {"embedding": row.tolist()} | ({"similarity": float(cosines(first, row))} if first is not None else {})


def _texts(inputs: Iterable[str]) -> Iterable[list[str]]:
    for text in inputs:
        if text != "-":
            yield [text]
            continue
        try:
            yield from (line.rstrip("\r\n").split("\t", 1) for line in sys.stdin)
        except UnicodeDecodeError as error:
            raise IntqError(f"standard input is not {error.encoding} text ({error.reason}): convert it") from None


def _paired(texts: list[list[str]], pair: Sequence[str]) -> list[dict[str, str]]:
    """Each text under "input" and its second one, if it has one, under "pair"."""
    if pair:
        if len(pair) != len(texts) or any(len(parts) == 2 for parts in texts):
            raise IntqError(f"--pair gives each text its second one: found {len(texts)} texts and {len(pair)} --pair")
        texts = [[*parts, second] for parts, second in zip(texts, pair, strict=True)]
    if len({len(parts) for parts in texts}) != 1:
        raise IntqError("some of the lines are pairs, with a tab between, and some are not" if texts else "no texts")
    return [dict(zip(("input", "pair"), parts, strict=False)) for parts in texts]


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
