"""Integer scores as answers to recordings: a transcript, the best labels, or which label holds from when to when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.ranking import best
from intq.speech import audio
from intq.speech.decode import Decode, beam_search, greedy
from intq.speech.evaluate import Predict, Progress, answered
from intq.speech.reader import Reader

PARTS = 1000  # of a recording, that its progress is counted in


def run(
    predict: Predict,
    reader: Reader,
    metadata: Mapping[str, Any],
    inputs: Sequence[str],
    *,
    top: int,
    language_model: str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """What the network says to each file: {"input", "seconds", "real_time_factor", "notices"} and

    of a CTC network     "text": its transcript
    of a classifier      "top": the best {"label", "index", "score"}; of equal scores the lower class comes first
    of one per frame     "parts": {"label", "start", "end"} in seconds, neighbouring frames of one best label together

    A recording longer than the network takes at a time is cut where it is quiet: its pieces' transcripts follow each
    other, a classifier's scores add up. real_time_factor: seconds of computing for a second of audio. language_model:
    of KenLM, by which transcripts are searched.
    """
    decode, rows = decoder(reader, metadata, language_model), []
    for number, name in enumerate(inputs):
        path = Path(name)
        said, length = audio.changes(path, reader.rate), max(audio.seconds(path), 1e-9)
        answers, samples, start = [], 0, time.perf_counter()
        for piece in audio.pieces(path, reader.rate, reader.longest, shortest=reader.shortest):
            (scores,) = answered(predict, reader.frames, [piece])
            answers.append((samples, scores))
            samples += len(piece)
            if progress:
                done = min(samples / reader.rate / length, 1.0)
                progress(int(PARTS * (number + done)), PARTS * len(inputs))
        row = {"input": str(name), **_HEADS[metadata["head"]](answers, reader, metadata, top, decode)}
        seconds = samples / reader.rate
        row |= {"seconds": seconds, "real_time_factor": (time.perf_counter() - start) / seconds, "notices": list(said)}
        rows.append(row)
    return rows


def decoder(reader: Reader, metadata: Mapping[str, Any], language_model: str | None) -> Decode | None:
    """The search with a language model's file; None without one. Raises IntqError for what writes no transcripts."""
    if language_model is None:
        return None
    if reader.labels is None:
        raise IntqError(f"{metadata['model']} writes no transcripts: leave out --language-model")
    return beam_search(reader.labels, metadata.get("scale", 1.0), Path(language_model))


Answers = list[tuple[int, np.ndarray]]  # of each piece, its first sample and its scores


def _text(answers: Answers, reader: Reader, metadata, top: int, decode: Decode | None) -> dict[str, Any]:
    decode = decode or (lambda scores: greedy(scores, reader.labels))
    texts = [decode(scores) for _, scores in answers]
    return {"text": " ".join(text for text in texts if text)}


def _top(answers: Answers, reader: Reader, metadata, top: int, decode) -> dict[str, Any]:
    scores = np.sum([scores.astype(np.int64) for _, scores in answers], axis=0)
    return {"top": best(scores, metadata["labels"], top)}


def _parts(answers: Answers, reader: Reader, metadata, top: int, decode) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for first, scores in answers:
        for frame, label in enumerate(scores.argmax(axis=-1)):
            name = metadata["labels"][label]
            start, end = (first / reader.rate + place * reader.step for place in (frame, frame + 1))
            if found and found[-1]["label"] == name:
                found[-1]["end"] = end
            else:
                found.append({"label": name, "start": start, "end": end})
    return {"parts": found}


_HEADS: dict[str, Callable[..., dict[str, Any]]] = {"ctc": _text, "classification": _top, "frames": _parts}
