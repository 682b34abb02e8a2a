"""Speakers that a package brings: the synthesizers espeak-ng (Debian espeak-ng) and flite, and one recorded voice.

espeak-ng's speakers are an accent (of its eight of English two of the United States and two of England), one of its
variants (the shape of the throat, so to say), a pitch and a speed. Its robots and whisperers are left out, and of
variants in several editions all but one.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intq.errors import IntqError
from intq.speech import audio

ACCENTS = ("en-us", "en-us-nyc", "en-gb", "en-gb-x-rp")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Alex", "Alicia", "Andrea"),
    *("Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael"),
    *("Mike", "Nguyen", "adam", "anika", "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb"),
    *("david", "ed", "edward", "gustave", "iven", "john", "linda", "marcelo", "max", "michel", "miguel", "norbert"),
    *("pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac"),
)
FLITE = ("awb", "kal16", "rms", "slt")
WORDS_PER_MINUTE, PITCH = (130, 180), (35, 65)  # espeak-ng's own middle is 175 and 50
LOUDNESS = "80"  # espeak-ng's own 100 is as loud as 16 bits are, and resampling adds a little


@dataclass(frozen=True)
class Voice:
    """A synthetic speaker. name: as its engine calls it; speed and pitch: espeak-ng's, words a minute and 0..99."""

    engine: str
    name: str
    speed: int = 0
    pitch: int = 0

    def __str__(self) -> str:
        return f"{self.engine} {self.name}"


def espeak(accent: str, variant: str, generator: np.random.Generator) -> Voice:
    """The speaker of an accent with a variant; its speed and pitch are drawn."""
    speed, pitch = (int(generator.integers(low, high + 1)) for low, high in (WORDS_PER_MINUTE, PITCH))
    return Voice("espeak-ng", f"{accent}+{variant}", speed, pitch)


def check_engines() -> None:
    """Raise IntqError when a synthesizer is not installed."""
    missing = [engine for engine in ("espeak-ng", "flite") if shutil.which(engine) is None]
    if missing:
        raise IntqError(f"{' and '.join(missing)} not found: apt-get install {' '.join(missing)} (scripts/setup does)")


def speak(voice: Voice, text: str, rate: int) -> np.ndarray:
    """A text as a synthetic speaker says it: int16 samples (t,) at `rate` Hz.

    Raises IntqError with the synthesizer's own words when it fails.
    """
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        if voice.engine == "espeak-ng":
            options = ["-a", LOUDNESS, "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch)]
            options += ["-w", file.name, text]
        else:
            options = ["-voice", voice.name, "-t", text, "-o", file.name]
        done = subprocess.run([voice.engine, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise IntqError(f"{voice} could not say {text!r}: {done.stderr.strip() or done.returncode}")
        return audio.read(Path(file.name), rate)[0]


def g722(path: Path) -> np.ndarray:
    """A recording in the telephone's wide-band coding (ITU-T G.722, 64 kbit/s): int16 samples (t,) at 16 kHz."""
    from G722 import G722

    return np.array(G722(16000, 64000).decode(path.read_bytes()), np.int16)
