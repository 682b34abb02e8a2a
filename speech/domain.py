"""Speech as the commands see it (the functions that :mod:`intq.domains` lists): transcripts, classes, voice activity.

Importing this module needs NumPy alone; soundfile reads recordings, torch comes in with what loads and quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intq import dims
from intq.domains import Prepared
from intq.errors import IntqError
from intq.graph import Graph
from intq.probes import shortest
from intq.speech import answers, audio
from intq.speech import data as utterances_of
from intq.speech.evaluate import Predict, Progress
from intq.speech.evaluate import evaluate as judged
from intq.speech.reader import SAMPLES, Reader, of_metadata

if TYPE_CHECKING:
    from intq.speech.checkpoint import Checkpoint

TASK_CLASSES = ("ForCTC",)
PACKAGED = ("marblenet", "hama")
READS = "recordings"
OPTIONS = ("language_model", "download")
RATE = 1e-4
SECONDS = 15.0  # of a recording that calibration hears at most
RANDOM_SECONDS = 4.0


def names() -> tuple[str, ...]:
    """The architectures that `random` builds."""
    from intq.speech import huggingface
    from intq.speech.models import ARCHITECTURES

    return (*ARCHITECTURES, *huggingface.ARCHITECTURES)


def load(source: str) -> Checkpoint:
    """The trained network in a `.nemo` archive, a folder of its files, weights beside their YAML, or Hugging Face's."""
    from intq.speech.checkpoint import load

    return load(source)


def random(name: str, seed: int) -> Checkpoint:
    """The architecture `name` at full size with random weights."""
    from intq.speech.synthetic import random_checkpoint

    return random_checkpoint(name, seed)


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `reader`, `run` and `evaluate` need, as JSON: it travels in the graph."""
    value = {
        "domain": "speech",
        "model": checkpoint.name,
        "source": checkpoint.source,
        "head": checkpoint.head,
        "labels": list(checkpoint.labels),
        "sample_rate": checkpoint.sample_rate,
        "longest": checkpoint.longest,
        "shortest": checkpoint.sample_rate // 10,
        "frames": "" if checkpoint.head == "classification" else dims.fitted(SAMPLES, checkpoint.model.frames),
    }
    if checkpoint.head == "ctc":
        value["spelling"] = checkpoint.spelling().to_dict()
    return value


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Nothing: the metadata holds what the labels spell."""


def reader(source: Path | Checkpoint, metadata: Mapping[str, Any]) -> Reader:
    """From recordings to samples; wherever the network is, its metadata knows."""
    return of_metadata(metadata)


def network(checkpoint: Checkpoint) -> Predict:
    """The float network on the same samples: int16 (n, t), int32 (n,) of each its own -> float32 scores."""
    import torch

    def predict(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        real = torch.from_numpy(samples.astype(np.float32) / 32768)
        with torch.inference_mode():
            return checkpoint.model(real, torch.from_numpy(lengths).long()).numpy()

    return predict


# ---- quantize ----------------------------------------------------------------------------------------------------


def calibration(checkpoint: Checkpoint, data: str | None, samples: int, seed: int) -> list[np.ndarray]:
    """Recordings int16 (1, t): chosen at random from the data, or noise shaped like speech when there is none."""
    rate = checkpoint.sample_rate
    if data is None:
        from intq.speech.synthetic import random_audio

        noise = random_audio(samples, round(RANDOM_SECONDS * rate), rate, seed)
        return list((noise * 32768).astype(np.int16)[:, None])
    recordings = []
    for each in utterances_of.sample(utterances_of.recordings(data), samples, seed):
        duration = min(each.duration, SECONDS)
        recordings.append(audio.read(each.path, rate, each.offset, duration)[0][None])
    return recordings


def prepare(
    checkpoint: Checkpoint,
    data: str | None,
    *,
    samples: int,
    seed: int,
    zero_shot: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Prepared:
    """What `intq.quantize` takes of a checkpoint, and what its graph needs to hear samples and spell scores.

    zero_shot: calibrated without data, on recordings made from the network (:mod:`intq.zero_shot`).
    A Conformer's layers have 16 bits where `bits` and `weight_bits` do not say otherwise, those that read the spectrum
    as an image excepted. Other phonemes than in float, on held-back prompts (hama): 0.75 % with 8 bits, 0.29 % with
    16-bit activations, 0.13 % with 16-bit weights too; without data 3.33 %, 0.71 % and 0.35 %. A product then costs
    three of 8 bits.
    """
    import torch

    made = None
    if zero_shot:
        from intq.speech.zero_shot import recordings_for

        made = recordings_for(checkpoint.model, checkpoint.sample_rate, samples, seed, progress)
        recordings, options = made.samples, {**made.options, **options}
    else:
        recordings = calibration(checkpoint, data, samples, seed)
    if checkpoint.attends:
        images = [name for name, module in checkpoint.model.named_modules() if isinstance(module, torch.nn.Conv2d)]
        wide = {"*": 16} | dict.fromkeys(images, 8)
        options |= {name: wide | (options.get(name) or {}) for name in ("bits", "weight_bits")}

    def complete(graph: Graph) -> Graph:
        graph = made.noted(graph) if made else graph
        known = metadata(checkpoint)
        known["shortest"] = max(known["shortest"], shortest(graph))
        scale = graph.values[graph.outputs[0]].scale
        return replace(graph, metadata={**graph.metadata, **known, "scale": scale})

    return Prepared(checkpoint.model, recordings, {"seed": seed, "longest": checkpoint.longest, **options}, complete)


def training(checkpoint: Checkpoint, data: str | None):
    """Transcribed recordings to train on (:class:`intq.finetune.Data`)."""
    from intq.speech.training import training

    if data is None:
        raise IntqError("no data: give --data recordings with transcripts, in LibriSpeech's layout or a manifest")
    return training(utterances_of.utterances(data), reader(checkpoint, metadata(checkpoint)))


# ---- run, eval ---------------------------------------------------------------------------------------------------


run = answers.run


def evaluate(
    predict: Predict,
    reader: Reader,
    metadata: Mapping[str, Any],
    data: str | None,
    *,
    limit: int | None,
    batch: int,
    download: str | None = None,
    language_model: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """{"task", "examples", "hours", "metrics": {"wer", "cer"}, "notices"} of a CTC network on transcribed speech.

    download: a subset of LibriSpeech, kept in the folder `data`.
    """
    if metadata["head"] != "ctc":
        raise IntqError(f"{metadata['model']} writes no transcripts: `intq run` shows its answers")
    if data is None and download is None:
        raise IntqError(
            "no data: give --data a folder in LibriSpeech's layout or a manifest with transcripts, or --download one "
            f"of LibriSpeech's subsets ({', '.join(utterances_of.SUBSETS)})"
        )
    if download is not None:
        data = utterances_of.download(download, Path(data or ".").expanduser())
    decode = answers.decoder(reader, metadata, language_model)
    return judged(
        predict,
        reader.frames,
        reader.labels,
        utterances_of.utterances(data),
        reader.rate,
        decode=decode,
        limit=limit,
        batch=batch,
        longest=reader.longest,
        shortest=reader.shortest,
        progress=progress,
    )
