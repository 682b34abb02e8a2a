"""Utterances: recordings with their transcripts, from LibriSpeech's folders, NeMo's manifests and users' own tables.

LibriSpeech's layout is read here, not by torchaudio's dataset class. Its wheel links CUDA, so that it does not import
beside a torch for CPUs, and on other machines it would be a large dependency for walking through folders. It is asked
for one thing, the download of a subset (`download`), and only then imported.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from intq.errors import IntqError
from intq.lines import json_objects, numbered
from intq.speech import audio
from intq.speech.labels import Labels, normalized

# The columns of a manifest, by what they are usually called: NeMo, Hugging Face's AudioFolder, Common Voice.
PATHS = ("audio_filepath", "file_name", "path", "audio", "file", "wav", "filename")
TEXTS = ("text", "transcript", "transcription", "sentence")
MANIFESTS = ("metadata.jsonl", "metadata.csv", "manifest.jsonl", "manifest.json", "manifest.csv")
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
SUBSETS = (
    *("dev-clean", "dev-other", "test-clean", "test-other"),
    *("train-clean-100", "train-clean-360", "train-other-500"),
)


@dataclass(frozen=True)
class Utterance:
    """A part of a recording with what is said in it.

    offset, duration: in seconds. where: for a message, the place of the transcript, file and line.
    """

    path: Path
    offset: float
    duration: float
    text: str
    where: str


def utterances(data: str | Path) -> list[Utterance]:
    """The utterances of a folder in LibriSpeech's layout, of a manifest, or of a folder with one.

    Raises IntqError, naming the manifest's line, for what is missing or unreadable: a column, a file, a transcript.
    """
    place = Path(data).expanduser()
    if place.is_file():
        return manifest(place)
    if not place.is_dir():
        raise IntqError(f"there is no {place}: expected a folder in LibriSpeech's layout, or a manifest (jsonl, csv)")
    for name in MANIFESTS:
        if (place / name).is_file():
            return manifest(place / name)
    return librispeech(place)


def recordings(data: str | Path) -> list[Utterance]:
    """The same for what needs no transcripts: also a folder of recordings, in whatever folders below it."""
    place = Path(data).expanduser()
    if not place.is_dir() or any((place / name).is_file() for name in MANIFESTS):
        return utterances(place)
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in AUDIO and path.is_file())
    if not found:
        raise IntqError(f"{place} holds no recordings ({', '.join(AUDIO)})")
    return _measured([Utterance(path, 0.0, 0.0, "", str(path)) for path in found])


def sample(given: Sequence[Utterance], count: int, seed: int = 0) -> list[Utterance]:
    """`count` of the utterances at random (all when there are fewer), in their order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(given))[:count])
    return [given[i] for i in chosen]


def unspellable(given: Sequence[Utterance], labels: Labels) -> tuple[str, ...]:
    """A sentence on the transcripts that the network has no labels for, with an example; none when there are none.

    Their words are compared all the same, and count as errors.
    """
    alphabet = set("".join(map(normalized, labels.alphabet))) | {" "}
    found = [(each, sorted(set(normalized(each.text)) - alphabet)) for each in given]
    found = [(each, extra) for each, extra in found if extra]
    if not found:
        return ()
    first, extra = found[0]
    return (
        f"{len(found)} of {len(given)} transcripts hold characters that the network has no label for, such as "
        f"{extra[0]!r} ({first.where}): they count as errors",
    )


# ---- LibriSpeech -------------------------------------------------------------------------------------------------


def librispeech(folder: Path) -> list[Utterance]:
    """All utterances in or below a folder of LibriSpeech (Panayotov et al., 2015), in the order of their names.

    SPLIT/speaker/chapter/speaker-chapter.trans.txt     lines "speaker-chapter-number THE TRANSCRIPT"
    SPLIT/speaker/chapter/speaker-chapter-number.flac
    """
    found = [
        Utterance(path, 0.0, 0.0, text, where)
        for transcripts in sorted(folder.rglob("*.trans.txt"))
        for path, text, where in _chapter(transcripts)
    ]
    if not found:
        raise IntqError(
            f"{folder} holds no utterances: expected LibriSpeech's layout (SPLIT/speaker/chapter/*.flac with a "
            f".trans.txt), or a manifest called {', '.join(MANIFESTS)}"
        )
    return _measured(found)


def _chapter(transcripts: Path) -> Iterator[tuple[Path, str, str]]:
    for number, line in numbered(transcripts):
        if not line.strip():
            continue
        where = f"{transcripts}, line {number}"
        name, _, text = line.strip().partition(" ")
        path = transcripts.parent / f"{name}.flac"
        if not path.is_file():
            raise IntqError(f"{where}: there is no recording {path}")
        if not text:
            raise IntqError(f"{where}: {name} has no transcript: expected 'NAME THE TRANSCRIPT'")
        yield path, text, where


def download(subset: str, folder: Path) -> Path:
    """Download a subset of LibriSpeech into `folder` by torchaudio, unless it is there; return the subset's folder.

    Raises IntqError for an unknown subset, without torchaudio, and when the download fails.
    """
    if subset not in SUBSETS:
        raise IntqError(f"LibriSpeech has no subset {subset!r}; it has {', '.join(SUBSETS)}")
    place = folder / "LibriSpeech" / subset
    if place.is_dir():
        return place
    try:
        from torchaudio.datasets import LIBRISPEECH
    except (ImportError, OSError) as error:
        raise IntqError(
            f"downloading LibriSpeech needs a torchaudio that fits the installed torch ({error}): install it, or "
            f"unpack {subset}.tar.gz of openslr.org/12 into {folder} yourself"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        LIBRISPEECH(str(folder), url=subset, download=True)
    except (OSError, RuntimeError) as error:
        raise IntqError(f"{subset} could not be downloaded ({error}): check the connection") from None
    return place


# ---- manifests ---------------------------------------------------------------------------------------------------


def manifest(path: Path) -> list[Utterance]:
    """The utterances of a table: JSON lines (NeMo's manifests), CSV or TSV with a header.

    A recording's column is called as in `PATHS` and its transcript's as in `TEXTS`; "offset" and "duration", in
    seconds, may say which part of the recording it is. Relative paths start at the manifest.
    """
    rows = _READERS.get(path.suffix.lower())
    if rows is None:
        raise IntqError(f"{path} ends in none of {', '.join(_READERS)}: rename or convert it")
    found = [_utterance(path, f"{path}, line {number}", row) for number, row in rows(path)]
    if not found:
        raise IntqError(f"{path} holds no utterances")
    return _measured(found)


def _utterance(manifest: Path, where: str, row: dict[str, Any]) -> Utterance:
    path = Path(str(_value(row, PATHS, "recordings", where))).expanduser()
    path = manifest.parent / path  # an absolute path stays as it is
    if not path.is_file():
        raise IntqError(f"{where}: there is no recording {path}")
    text = _value(row, TEXTS, "transcripts", where)
    if not isinstance(text, str):
        raise IntqError(f"{where}: the transcript is no text: {text!r}")
    offset, duration = (_seconds(row.get(name), name, where) for name in ("offset", "duration"))
    return Utterance(path, offset, duration, text, where)


def _value(row: dict[str, Any], names: Sequence[str], what: str, where: str) -> Any:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise IntqError(
            f"{where}: there is no column of {what}; the columns are {', '.join(map(repr, row)) or 'none'}; expected "
            f"one of {', '.join(map(repr, names))}"
        )
    return row[name]


def _seconds(value: Any, name: str, where: str) -> float:
    if value is None or value == "":
        return 0.0
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not (np.isfinite(number) and number >= 0):
        raise IntqError(f"{where}: expected {name} in seconds, found {value!r}")
    return number


def _measured(given: Sequence[Utterance]) -> list[Utterance]:
    """With durations: where none is given, the recording's to its end."""

    def measure(each: Utterance) -> Utterance:
        return each if each.duration else replace(each, duration=audio.seconds(each.path) - each.offset)

    with ThreadPoolExecutor() as pool:  # headers of small files: what takes long is waiting for the disk
        return list(pool.map(measure, given))


# ---- tables ------------------------------------------------------------------------------------------------------


def _separated(dialect: dict[str, Any]) -> Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]:
    def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader((line + "\n" for _, line in numbered(path)), strict=True, **dialect)
        try:
            for row in reader:
                yield reader.line_num, {name.strip(): value for name, value in row.items() if name}
        except csv.Error as error:
            raise IntqError(f"{path}, line {reader.line_num}: is not a table ({error})") from None

    return rows


_READERS = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), json_objects),
    ".csv": _separated({}),
    ".tsv": _separated({"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
}
