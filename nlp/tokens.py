"""Texts as token ids: the checkpoint's own tokenizer, which the artifact carries, and batches of similar length.

The tokenizer runs outside of the network: `intq.compile(folder)(ids)` needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from intq.errors import IntqError
from intq.nlp.data import Text

FOLDER = "tokenizer"  # of an artifact


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files into an artifact."""
    tokenizer.save_pretrained(folder / FOLDER)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of an artifact. IntqError when it has none, or one that does not load."""
    path = folder / FOLDER
    if not path.is_dir():
        raise IntqError(
            f"{folder} has no tokenizer (no folder {FOLDER}/ in it): copy the whole artifact, or quantize the "
            "checkpoint again; token ids need none: intq.compile(folder)(ids)"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # a damaged file may raise anything on its way through transformers
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise IntqError(f"{path}: the tokenizer does not load ({reason}); quantize the checkpoint again") from error


class Word(NamedTuple):
    """A word of a text: which one it is, what it says, and the place of its first token."""

    index: int
    text: str
    token: int


@dataclass(frozen=True)
class Reader:
    """Texts to token ids for one network.

    padding: the id that fills a batch. longest: the most tokens a text may have, special ones included. vocabulary:
    how many ids the network knows. truncate: cut what is longer (of a pair its longer text) instead of refusing it.
    """

    tokenizer: Any
    padding: int
    longest: int
    vocabulary: int
    truncate: bool = False

    @classmethod
    def of(cls, tokenizer: Any, metadata: Mapping[str, Any], truncate: bool = False) -> Reader:
        """The reader of a network with this metadata."""
        return cls(tokenizer, metadata["padding"], metadata["longest"], metadata["vocabulary"], truncate)

    def ids(self, texts: Sequence[Text], where: Callable[[int], str]) -> list[np.ndarray]:
        """The ids of each text, int32 (tokens,). where: what to call a text in an error.

        Raises IntqError for a text that is too long, and for ids that the network does not know.
        """
        return [np.array(row, np.int32) for row in self._encode(texts, where)["input_ids"]]

    def words(
        self, texts: Sequence[str | list[str]], where: Callable[[int], str]
    ) -> tuple[list[np.ndarray], list[list[Word]]]:
        """The ids of each text, and its words: those that the tokenizer splits it into, or its own where it is a list.

        A word that was cut off, or has no token of its own, is left out. Raises IntqError as `ids`, and for a
        tokenizer that cannot tell words (a "slow" one).
        """
        if not self.tokenizer.is_fast:
            raise IntqError("this tokenizer cannot tell which words its tokens are of: a fast one (tokenizer.json) can")
        encoded = self._encode(texts, where)
        found = []
        for row, text in enumerate(texts):
            first: dict[int, int] = {}
            for token, word in enumerate(encoded.word_ids(row)):
                if word is not None:
                    first.setdefault(word, token)
            found.append([Word(word, _said(encoded, row, word, text), token) for word, token in first.items()])
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]], found

    def _encode(self, texts: Sequence[Text], where: Callable[[int], str]) -> Any:
        split = bool(texts) and isinstance(texts[0], list)
        pairs = bool(texts) and isinstance(texts[0], tuple)
        first, second = zip(*texts, strict=True) if pairs else (texts, None)
        encoded = self.tokenizer(
            list(first),
            list(second) if pairs else None,
            is_split_into_words=split,
            truncation="longest_first" if self.truncate else False,
            max_length=self.longest if self.truncate else None,
            padding=False,
            # "[SEP]" in a text is five characters: as a token it would end a segment.
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for row, ids in enumerate(encoded["input_ids"]):
            self._check(ids, lambda row=row: where(row))
        return encoded

    def _check(self, ids: list[int], where: Callable[[], str]) -> None:
        if len(ids) > self.longest:
            raise IntqError(
                f"{where()}: is {len(ids)} tokens long, {len(ids) - self.longest} more than the {self.longest} that "
                "the network takes: shorten it, or have it cut with --truncate"
            )
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            wrong = max(ids) if max(ids) >= self.vocabulary else min(ids)
            raise IntqError(
                f"{where()}: the tokenizer gives the id {wrong} ({self.tokenizer.convert_ids_to_tokens(wrong)!r}), but "
                f"the network knows {self.vocabulary} ids: this is not the tokenizer of its checkpoint"
            )
        if self.padding in ids:
            raise IntqError(f"{where()}: holds the padding token (id {self.padding}), which means no text: remove it")


def _said(encoded: Any, row: int, word: int, text: str | list[str]) -> str:
    if isinstance(text, list):
        return text[word]
    begin, end = encoded.word_to_chars(row, word)
    return text[begin:end].strip()


def batches(rows: Sequence[np.ndarray], size: int, padding: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(which rows, their ids int32 (n, s)) of up to `size` rows each, short ones first, filled up with `padding`."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, padded([rows[i] for i in chosen], padding)


def padded(rows: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """Ids of several lengths as one array int32 (n, s), filled up with `padding` at the end."""
    ids = np.full((len(rows), max(map(len, rows))), padding, np.int32)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids
