"""Recordings as what a network hears: int16 samples of one channel at its rate, from any file that libsndfile reads.

    sample = floor(32768 * (mean of the channels, resampled) + 1/2), cut off at -32768 and 32767

A 16-bit recording of one channel at the network's rate comes through as it is, bit for bit. Everything else is rounded
once, at the end. This is the last floating-point number on the way in: the network starts with these samples.

Files are read in blocks, so an hour takes no more memory than a minute; `pieces` cuts it where it is quiet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from intq.errors import IntqError

if TYPE_CHECKING:
    import soundfile

log = logging.getLogger(__name__)

BLOCK = 1 << 16  # frames that are read at a time
QUIET = 20  # the quiet place that a recording is cut at is 1/20 s long


def read(
    path: Path, rate: int, offset: float = 0.0, duration: float | None = None, shortest: int = 1
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(samples int16 (t,) at `rate` Hz, what was done to the recording besides reading it).

    offset, duration: in seconds, of the part to read; None reads to the end. shortest: the fewest samples that the
    network can take.

    Raises IntqError, naming the file, when it is missing, holds no audio or none at `offset`, or is too short.
    """
    with _opened(path) as file:
        said = _changes(file, rate)
        blocks = list(_blocks(path, file, rate, offset, duration))
    samples = np.concatenate(blocks) if blocks else np.empty(0, np.int16)
    _check_length(path, len(samples), rate, shortest)
    return samples, said


def pieces(
    path: Path, rate: int, longest: int, offset: float = 0.0, duration: float | None = None, shortest: int = 1
) -> Iterator[np.ndarray]:
    """The same samples in consecutive pieces of at most `longest`, as `segments` cuts them, read as they are asked for.

    Raises IntqError as `read` does.
    """
    with _opened(path) as file:
        count = 0
        for piece in _cut(_blocks(path, file, rate, offset, duration), rate, longest):
            if not count:
                _check_length(path, len(piece), rate, shortest)
            count += 1
            yield piece
        if not count:
            _check_length(path, 0, rate, shortest)


def changes(path: Path, rate: int) -> tuple[str, ...]:
    """What reading a recording at `rate` Hz does to it: a sentence about its channels, one about its rate, or none."""
    with _opened(path) as file:
        return _changes(file, rate)


def seconds(path: Path) -> float:
    """How long a recording is, as its header says."""
    with _opened(path) as file:
        return file.frames / file.samplerate


def segments(samples: np.ndarray, rate: int, longest: int) -> list[np.ndarray]:
    """int16 samples (t,) in consecutive pieces of at most `longest` samples, views that together are all of them.

    A cut lies in the middle of the quietest 1/20 s (the smallest sum of squares, the first of several) in the last
    quarter before the limit. What is left at the end is at least 3/8 of `longest` long: a recording a little longer
    than the limit is cut near its middle.
    """
    return list(_cut([samples], rate, longest))


def _cut(blocks: Iterable[np.ndarray], rate: int, longest: int) -> Iterator[np.ndarray]:
    """The pieces of the recording that the blocks make up. Half a piece ahead is all that a cut depends on."""
    if longest < 1:
        raise IntqError(f"a piece of a recording has at least 1 sample, but at most {longest} were asked for")
    ahead, held = longest + longest // 2, np.empty(0, np.int16)
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        while len(held) > ahead:
            # The limit's last quarter: at least half a piece stays after it. How the blocks fall decides nothing.
            at = _quietest(held[: ahead + 1], longest - longest // 4, longest, rate)
            yield held[:at]
            held = held[at:]
    if len(held) > longest:
        middle = len(held) // 2
        at = _quietest(held, max(middle - longest // 8, 1), min(middle + longest // 8, longest), rate)
        # Half of at most 3/2 pieces and an eighth are no longer than a piece, on either side.
        yield held[:at]
        held = held[at:]
    if len(held):
        yield held


def _quietest(samples: np.ndarray, first: int, last: int, rate: int) -> int:
    """The position in first..last around which the samples' sum of squares is smallest; the first of several."""
    width = max(rate // QUIET, 1)
    before, after = width // 2, width - width // 2
    start, stop = max(first - before, 0), min(last + after, len(samples))
    energy = np.concatenate([[0], np.cumsum(np.square(samples[start:stop], dtype=np.int64))])
    places = np.arange(first, last + 1)
    low, high = np.maximum(places - before, start) - start, np.minimum(places + after, stop) - start
    return first + int(np.argmin(energy[high] - energy[low]))


# ---- files -------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The file, open; what is wrong with it, then or later, as an IntqError."""
    import soundfile

    if Path(path).is_dir():
        raise IntqError(f"{path} is a folder: expected a recording (wav, flac, ogg, mp3)")
    try:
        # Python opens it: its message for a file that is missing or closed to us is clear, libsndfile's is not.
        with Path(path).open("rb") as raw:
            _check_content(path, raw)
            with soundfile.SoundFile(raw) as file:
                yield file
    except OSError as error:
        raise IntqError(f"{path}: {error.strerror or error}") from None
    except soundfile.LibsndfileError as error:
        raise IntqError(
            f"{path} cannot be read as audio ({error.error_string.rstrip('.')}): expected wav, flac, ogg or mp3"
        ) from None


def _check_content(path: Path, raw: BinaryIO) -> None:
    if not raw.read(1):
        raise IntqError(f"{path} is an empty file: expected a recording (wav, flac, ogg, mp3)")
    raw.seek(0)


def _changes(file: soundfile.SoundFile, rate: int) -> tuple[str, ...]:
    said = []
    if file.channels > 1:
        said.append(f"its {file.channels} channels are mixed to one")
    if file.samplerate != rate:
        missing = f"; it has nothing above {file.samplerate // 2} Hz" if file.samplerate < rate else ""
        said.append(f"resampled from {file.samplerate} Hz to {rate} Hz{missing}")
    return tuple(said)


def _blocks(
    path: Path, file: soundfile.SoundFile, rate: int, offset: float, duration: float | None
) -> Iterator[np.ndarray]:
    """int16 blocks of one channel at `rate`."""
    # In double precision every sample of up to 32 bits is exact, so rounding is the only thing that happens to it.
    start = round(offset * file.samplerate)
    if not 0 <= start <= file.frames:
        raise IntqError(f"{path} is {file.frames / file.samplerate:.2f} s long: it has nothing at {offset:g} s")
    file.seek(start)
    count = -1 if duration is None else round(duration * file.samplerate)
    floats = (block.mean(axis=1) for block in file.blocks(BLOCK, frames=count, dtype="float64", always_2d=True))
    if file.samplerate != rate:
        floats = _resampled(path, floats, file.samplerate, rate)
    clipped = 0
    for block in floats:
        if not np.isfinite(block).all():
            raise IntqError(f"{path} holds samples that are not numbers (NaN or infinity): record or convert it anew")
        scaled = np.floor(block * 32768.0 + 0.5)
        clipped += int(np.count_nonzero((scaled < -32768) | (scaled > 32768)))  # a full scale of 1.0 is no fault
        yield np.clip(scaled, -32768, 32767).astype(np.int16)
    if clipped:
        log.warning("%s: samples too loud for 16 bits, cut off: %d", path, clipped)


def _resampled(path: Path, blocks: Iterable[np.ndarray], found: int, rate: int) -> Iterator[np.ndarray]:
    try:
        import soxr
    except ModuleNotFoundError:
        raise IntqError(
            f"{path} has {found} Hz and the network hears {rate} Hz: give it audio at {rate} Hz, or install the "
            "package that resamples (pip install soxr)"
        ) from None
    stream = soxr.ResampleStream(found, rate, 1, dtype="float64", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0), last=True)


def _check_length(path: Path, samples: int, rate: int, shortest: int) -> None:
    if samples < max(shortest, 1):
        found = f"{1000 * samples / rate:.0f} ms of audio" if samples else "no samples"
        raise IntqError(f"{path} holds {found}: the network needs at least {1000 * shortest / rate:.0f} ms")
