"""Which class of a network a label of the data means. Names decide; numbers only where there are no names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from intq.errors import IntqError

# What published heads and data sets call the same class.
SAME = (
    ("positive", "pos"),
    ("negative", "neg"),
    ("entailment", "entail", "entailed"),
    ("not_entailment", "not_entail", "not_entailed"),
    ("contradiction", "contradict", "contradictory"),
    ("equivalent", "paraphrase"),
    ("not_equivalent", "not_paraphrase"),
    ("acceptable", "grammatical"),
    ("unacceptable", "ungrammatical", "not_acceptable"),
)


def plain(name: object) -> str:
    """A label without what does not tell classes apart: "NOT-Entailed" is "notentailment"."""
    text = str(name).strip().casefold()
    return _SYNONYMS.get(_letters(text), _letters(text))


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text) or text


_SYNONYMS = {_letters(name): _letters(names[0]) for names in SAME for name in names}


def nameless(labels: Sequence[str]) -> bool:
    """Whether a head's labels say nothing: LABEL_0, LABEL_1, ... or numbers."""
    return all(re.fullmatch(r"(label_?)?\d+", label.strip().casefold()) for label in labels)


def class_order(names: Sequence[str], labels: Sequence[str], source: str, numbered: bool) -> list[int]:
    """For each of the data's classes, the network's class of the same meaning.

    names: the data's classes; numbered: in the order in which everybody numbers them (GLUE's), so that they also fit
    the classes of a network without names, if it has as many. Names that are all numbers stand for the classes with
    these numbers. labels: the network's classes in order. source: the data, for the message.
    Raises IntqError, which lists both, when they do not match.
    """
    known = {plain(label): index for index, label in enumerate(labels)}
    found = [known.get(plain(name)) for name in names]
    if None not in found and len(set(found)) == len(names) and len(known) == len(labels):
        return found
    if numbered and nameless(labels) and len(names) == len(labels):
        return list(range(len(names)))
    if not numbered and all(re.fullmatch(r"\d+", name) and int(name) < len(labels) for name in names):
        return [int(name) for name in names]
    raise IntqError(
        f"{source}: its labels ({said(names)}) do not match those of the network ({said(labels)}): is this its data? "
        "If it is, say what the network's classes are called, in order, with --labels"
    )


def said(names: Sequence[str], most: int = 8) -> str:
    """Names for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
