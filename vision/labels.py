"""What the classes are called, and which class a folder's name means."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

SYNSET = re.compile(r"n\d{8}")


@cache
def imagenet() -> dict[str, str]:
    """The 1000 classes of ImageNet in order: WordNet synset ("n01440764") to WordNet's words ("tench, Tinca tinca")."""
    return json.loads(Path(__file__).with_name("imagenet.json").read_text())


def default_labels(classes: int) -> tuple[str, ...]:
    """Names for the classes of a checkpoint that has none: ImageNet's for 1000, the numbers otherwise."""
    return tuple(imagenet().values()) if classes == 1000 else tuple(map(str, range(classes)))


def has_background(labels: Sequence[str]) -> bool:
    """Does class 0 mean "none of them"? TensorFlow's ImageNet networks have 1001 classes, shifted by it."""
    return len(labels) == 1001 and labels[0].lower() in ("background", "dummy", "label_0", "0")


def class_indices(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """The class that each name (of a folder, of a data set's class) stands for among a network's labels.

    In this order: a name that is a label or one of its words, an ImageNet synset, a number, and the position in
    `names` when there are as many names as classes. None when none of these fits all the names.
    """
    shift = int(has_background(labels))
    known: dict[str, int] = {}
    for index, label in enumerate(labels):
        for word in (label, *label.split(",")):
            known.setdefault(_plain(word), index)
    if labels and len(set(map(_plain, names))) == len(names) and all(_plain(name) in known for name in names):
        return [known[_plain(name)] for name in names]
    if len(labels) in (0, 1000, 1001) and all(SYNSET.fullmatch(name) for name in names):
        position = {synset: index for index, synset in enumerate(imagenet())}
        if all(name in position for name in names):
            return [position[name] + shift for name in names]
    if names and all(name.isdecimal() and name.isascii() for name in names):
        numbers = [int(name) + shift for name in names]
        if not labels or max(numbers) < len(labels):
            return numbers
    if not labels or len(names) == len(labels) - shift:
        return [index + shift for index in range(len(names))]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
