"""A corpus in LibriSpeech's layout, made from what packages ship: hours of labelled speech without a download.

    train/ dev/ test/ test-other/    SPLIT/speaker/chapter/speaker-chapter-number.flac and speaker-chapter.trans.txt
    SPEAKERS.TXT                     id | split | voice

The phrases are of Jane Austen's novels (:mod:`intq.speech.phrases`), the speakers synthetic
(:mod:`intq.speech.voices`); the recorded prompts of one person join the training speech. No phrase and no speaker is in
two splits, and of espeak-ng no variant is: what is measured on test are voices and sentences that training never had.
On test-other it is a voice of another kind besides: flite's one woman, made of recordings, of which training hears
three men.

The plan follows from the hours and the seed alone; the sound also from the synthesizers' versions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intq.errors import IntqError
from intq.speech.assets import asset
from intq.speech.phrases import phrases, prompts
from intq.speech.voices import ACCENTS, FLITE, VARIANTS, Voice, check_engines, espeak, g722, speak

SOURCES = ("austen-novels", "asterisk-sounds", "asterisk-transcripts")  # of intq.speech.assets
RATE = 16000
SECONDS = 3.0  # of a phrase, about
SHARES = {"train": 1.0, "dev": 0.05, "test": 0.1}  # hours, of those asked for
HELD_VARIANTS = {"dev": 5, "test": 10}  # of espeak-ng's, one accent each
ACCENTS_EACH = 2  # of each other variant
OTHER, OTHER_VOICES = "test-other", ("slt",)
TALKATIVE = 4  # a voice of flite's, made of recordings, says in training so many times as much as one of espeak-ng's
RECORDED = "recorded Allison Smith"


@dataclass(frozen=True)
class Line:
    """One utterance: what is said, and by whom: a synthetic voice, or in the file of a recording."""

    text: str
    source: Voice | Path


@dataclass(frozen=True)
class Speaker:
    """All that one speaker of a split says. number: LibriSpeech's id of a speaker; each has one chapter."""

    number: int
    split: str
    name: str
    lines: tuple[Line, ...]

    @property
    def chapter(self) -> Path:
        """The folder of the speaker's utterances, in the corpus."""
        return Path(self.split, str(self.number), "1")

    def utterance(self, index: int) -> str:
        return f"{self.number}-1-{index:04d}"


def build(
    folder: Path,
    hours: float = 6.0,
    seed: int = 0,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make the corpus in `folder`, unless it is there: `hours` of training speech and a seventh more held back.

    jobs: synthesizers that run side by side. progress: called with (utterances done, utterances in all). The folder
    comes into being whole or not at all. Raises IntqError when a synthesizer or an asset is missing.
    """
    if folder.is_dir():
        return folder
    check_engines()
    speakers = plan(hours, seed, phrases(asset("austen-novels")), recorded())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".corpus-") as temporary:
        write(Path(temporary, "corpus"), speakers, jobs, progress)
        Path(temporary, "corpus").rename(folder)
    return folder


def recorded() -> list[Line]:
    """The recorded prompts that are words, in the order of their names."""
    folder, texts = asset("asterisk-sounds"), prompts(asset("asterisk-transcripts"))
    return [Line(texts[path.stem], path) for path in sorted(folder.glob("*.g722")) if path.stem in texts]


def plan(hours: float, seed: int, texts: Sequence[str], prompts: Sequence[Line]) -> list[Speaker]:
    """Who says what: the phrases in a random order, the first to test, the next to dev, and so many to each speaker.

    Where training asks for more phrases than are left, they begin anew, with other speakers. Raises IntqError when
    half of all phrases would be held back.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(texts))
    voices = _voices(generator)
    held = (SHARES["test"] + SHARES["dev"]) * hours * 3600 / SECONDS
    if held > len(texts) / 2:
        raise IntqError(
            f"{hours:g} hours need {held:.0f} phrases that training never sees, and there are {len(texts)} in all: "
            "ask for fewer hours"
        )
    speakers, first = [], 0
    for number, split in enumerate(("test", "dev", "train"), start=1):
        count = max(round(hours * SHARES[split] * 3600 / SECONDS), 2 * len(voices[split]))
        rest = order[first:]
        said = rest[np.arange(count) % len(rest)] if split == "train" else rest[:count]
        first += count
        weights = [TALKATIVE if split == "train" and voice.engine == "flite" else 1 for voice in voices[split]]
        groups = np.split(said, (np.cumsum(weights) * count // sum(weights))[:-1])
        for index, (voice, group) in enumerate(zip(voices[split], groups, strict=True)):
            lines = tuple(Line(texts[i], voice) for i in group)
            place = OTHER if voice.name in OTHER_VOICES else split
            speakers.append(Speaker(1000 * number + index, place, str(voice), lines))
    if prompts:
        speakers.append(Speaker(9000, "train", RECORDED, tuple(prompts)))
    return speakers


def _voices(generator: np.random.Generator) -> dict[str, list[Voice]]:
    """The synthetic voices of each split, those of test-other at the end of test's."""
    variants = [VARIANTS[i] for i in generator.permutation(len(VARIANTS))]
    found: dict[str, list[Voice]] = {}
    for split, count in HELD_VARIANTS.items():
        held, variants = variants[:count], variants[count:]
        found[split] = [espeak(ACCENTS[i % len(ACCENTS)], variant, generator) for i, variant in enumerate(held)]
    found["train"] = [
        espeak(ACCENTS[int(i)], variant, generator)
        for variant in variants
        for i in generator.permutation(len(ACCENTS))[:ACCENTS_EACH]
    ]
    found["test"] += [Voice("flite", name) for name in OTHER_VOICES]
    found["train"] += [Voice("flite", name) for name in FLITE if name not in OTHER_VOICES]
    return found


def write(
    folder: Path, speakers: Sequence[Speaker], jobs: int = 2, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the speakers' utterances and transcripts into a new folder."""
    total, done = sum(len(speaker.lines) for speaker in speakers), 0
    for speaker in speakers:
        chapter = folder / speaker.chapter
        chapter.mkdir(parents=True)
        lines = (f"{speaker.utterance(i)} {line.text.upper()}\n" for i, line in enumerate(speaker.lines))
        (chapter / f"{speaker.number}-1.trans.txt").write_text("".join(lines), encoding="utf-8")
    table = "".join(f"{each.number} | {each.split} | {each.name}\n" for each in speakers)
    (folder / "SPEAKERS.TXT").write_text(table, encoding="utf-8")
    tasks = [
        (line, folder / speaker.chapter / f"{speaker.utterance(i)}.flac")
        for speaker in speakers
        for i, line in enumerate(speaker.lines)
    ]
    with ThreadPoolExecutor(jobs) as pool:  # threads: what takes long are the synthesizers' own processes
        for _ in pool.map(_render, tasks):
            done += 1
            if progress:
                progress(done, total)


def _render(task: tuple[Line, Path]) -> None:
    import soundfile

    line, path = task
    samples = speak(line.source, line.text, RATE) if isinstance(line.source, Voice) else g722(line.source)
    soundfile.write(path, samples, RATE, subtype="PCM_16")
