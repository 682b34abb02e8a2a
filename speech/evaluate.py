"""What a speech network hears in recordings, integer or float by the same path, and how right it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.speech import audio
from intq.speech.data import Utterance, sample, unspellable
from intq.speech.decode import Decode, greedy
from intq.speech.labels import Labels
from intq.speech.metrics import error_rates

# int16 samples (n, t), of each row how many are its own, int32 (n,) -> scores int32 (n, frames, labels)
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
Frames = Callable[[int], int]  # samples -> frames of the answer that are theirs, the rest being padding's
Progress = Callable[[int, int], None]


def answered(predict: Predict, frames: Frames, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The scores of each recording, int16 samples (t,), run as one batch padded with zeros.

    A row's padding is none of its answer: of scores (frames, labels) only those that are its own are given.
    """
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    samples = np.zeros((len(pieces), lengths.max()), np.int16)
    for row, piece in zip(samples, pieces, strict=True):
        row[: len(piece)] = piece
    scores = np.asarray(predict(samples, lengths))
    if scores.ndim == 2:  # one answer for all of a recording
        return list(scores)
    return [row[: frames(int(length))] for row, length in zip(scores, lengths, strict=True)]


def evaluate(
    predict: Predict,
    frames: Frames,
    labels: Labels,
    utterances: Sequence[Utterance],
    rate: int,
    *,
    decode: Decode | None = None,
    limit: int | None = None,
    batch: int = 16,
    longest: int = 0,
    shortest: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """{"task", "examples", "hours", "metrics": {"wer", "cer"}, "notices"} of a network on utterances, shares of 1.

    decode: of one row of scores; greedy if None. limit: as many utterances, chosen at random. batch: recordings of
    similar length that are run together. longest, shortest: in samples; a longer recording is cut where it is quiet
    (0: never), a shorter one is an error. progress: called with (utterances done, utterances in all).
    """
    if not utterances:
        raise IntqError("there are no utterances to transcribe")
    chosen = sample(utterances, limit) if limit else list(utterances)
    decode = decode or (lambda scores: greedy(scores, labels))
    order = sorted(range(len(chosen)), key=lambda i: chosen[i].duration)
    found: list[list[str]] = [[] for _ in chosen]
    heard = done = 0
    changed: dict[str, int] = {}

    def pieces() -> Iterator[tuple[int, np.ndarray]]:
        for index in order:
            for piece in _pieces(chosen[index], rate, longest, shortest, changed):
                yield index, piece

    for group in _groups(pieces(), batch):
        texts = map(decode, answered(predict, frames, [piece for _, piece in group]))
        for (index, piece), text in zip(group, texts, strict=True):
            done += not found[index]
            found[index].append(text)
            heard += len(piece)
        if progress:
            progress(done, len(chosen))
    metrics = error_rates([" ".join(texts) for texts in found], [each.text for each in chosen])
    notices = [f"{count} of {len(chosen)} recordings: {what}" for what, count in sorted(changed.items())]
    return {
        "task": "speech-recognition",
        "examples": len(chosen),
        "hours": heard / rate / 3600,
        "metrics": metrics,
        "notices": [*notices, *unspellable(chosen, labels)],
    }


def _pieces(each: Utterance, rate: int, longest: int, shortest: int, changed: dict[str, int]) -> Iterator[np.ndarray]:
    """An utterance's samples, cut when they are more than `longest`; counts in `changed` what was done to it."""
    for what in audio.changes(each.path, rate):
        changed[what] = changed.get(what, 0) + 1
    if longest:
        yield from audio.pieces(each.path, rate, longest, each.offset, each.duration, shortest)
    else:
        yield audio.read(each.path, rate, each.offset, each.duration, shortest)[0]


def _groups(items: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
