"""What is raced: an architecture with random weights, as intq gets it and as its peers do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import encoders
import engines
import features
import numpy as np
from engines import Entry, cached
from torch import nn

import intq
from intq import domains
from intq.speech.synthetic import random_audio

SAMPLES = 8  # made-up inputs to calibrate on: their statistics are all the same
CALIBRATION_TOKENS = 128
RECORDINGS = 4  # the same: frames by the hundred are in each


@dataclass(frozen=True)
class Subject:
    """An architecture with its inputs.

    domain, checkpoint: intq's. module: the network that the peers get. raw: intq's input; given: the peers' input, the
    same as they take it. calibration: more such inputs. axes: their dimensions that may stay open, by name.
    """

    name: str
    domain: ModuleType
    checkpoint: Any
    module: nn.Module
    raw: np.ndarray
    given: np.ndarray
    calibration: Sequence[np.ndarray]
    axes: Mapping[int, str]


def kind(name: str) -> str:
    """The domain of the architecture `name`: vision, nlp or speech."""
    domain = domains.of_architecture(name)
    return next(each for each in domains.DOMAINS if domain is domains.domain(each))


def subject(name: str, batch: int, length: float | None, seed: int = 0) -> Subject:
    """The architecture `name`, with an input and others like it.

    The input: `batch` images, texts of `length` tokens, or recordings of `length` seconds.
    """
    domain = domains.of_architecture(name)
    make = {"vision": _images, "nlp": _texts, "speech": _recordings}[kind(name)]
    return make(name, domain, domain.random(name, seed), batch, length, np.random.default_rng(seed))


def _texts(name, domain, checkpoint, batch: int, sequence: int, generator: np.random.Generator) -> Subject:
    """Ids of which none is the padding id or the separator: texts without padding, of one segment."""
    special = {checkpoint.padding, checkpoint.separator} - {None}
    allowed = np.delete(np.arange(checkpoint.vocabulary), sorted(special))
    ids = generator.choice(allowed, (batch, sequence))
    tokens = min(CALIBRATION_TOKENS, checkpoint.longest)
    calibration = [generator.choice(allowed, (1, tokens)) for _ in range(SAMPLES)]
    module = encoders.Published(checkpoint.model.model, checkpoint.padding, checkpoint.separator)
    return Subject(name, domain, checkpoint, module, ids.astype(np.int32), ids, calibration, {0: "n", 1: "s"})


def _images(name, domain, checkpoint, batch: int, _, generator: np.random.Generator) -> Subject:
    shape = (batch, *checkpoint.input_size, checkpoint.preprocess.channels)
    pixels = [generator.integers(0, 256, shape, np.uint8) for _ in range(SAMPLES)]
    normal = [checkpoint.preprocess.normalize(each).transpose(0, 3, 1, 2).copy() for each in pixels]
    return Subject(name, domain, checkpoint, checkpoint.model, pixels[0], normal[0], normal, {0: "n"})


def _recordings(name, domain, checkpoint, batch: int, seconds: float, generator: np.random.Generator) -> Subject:
    """Samples for intq; for the peers the features of them, whose front end they are spared."""
    samples = round(seconds * checkpoint.sample_rate)
    noise = random_audio(RECORDINGS * batch, samples, checkpoint.sample_rate, int(generator.integers(2**31)))
    recordings = np.split((noise * 32768).astype(np.int16), RECORDINGS)
    given = [features.features(checkpoint.model, each) for each in recordings]
    module = features.Network(checkpoint.model)
    return Subject(name, domain, checkpoint, module, recordings[0], given[0], given, {})


def entries(subject: Subject, names: Sequence[str], threads: int, folder: Path) -> list[Entry]:
    """The engines called `names`, each with its network: quantized now, or found in the cache.

    folder: for the inputs, which must stay there as long as the entries race.
    """
    np.save(folder / "raw.npy", subject.raw)
    np.save(folder / "given.npy", subject.given)
    found = []
    if "intq" in names:
        made = cached(f"intq-{subject.name}", _sources(), lambda place: _compile(subject, place))
        found.append(Entry("intq", "int8", made / "artifact", folder / "raw.npy"))
    if set(names) - {"intq"}:
        name, module, calibration = subject.name, subject.module, subject.calibration
        if encoders.transformer(module):
            found += encoders.prepare(name, module, calibration, subject.axes, folder / "given.npy")
        elif isinstance(module, features.Network):
            found += features.prepare(name, module, calibration, threads)
        else:
            found += engines.prepare(name, module, calibration, threads)
    return [entry for entry in found if entry.engine in names]


def _compile(subject: Subject, folder: Path) -> None:
    """Quantize, save and compile a network: what `intq quantize --random` and `intq compile` do."""
    samples = len(subject.calibration)
    graph = subject.domain.prepare(subject.checkpoint, None, samples=samples, seed=0, rounding="nearest").quantize()
    graph.save(folder / "artifact")
    intq.compile(folder / "artifact")  # keeps the library beside the graph


def _sources() -> list[bytes]:
    """Every line of intq that has a part in its network: a changed one is quantized and compiled anew."""
    root = Path(__file__).resolve().parents[2]
    parts = ("intq", "vision", "nlp", "speech", "kernels")
    return [path.read_bytes() for part in parts for path in sorted((root / part).rglob("*.py"))]
