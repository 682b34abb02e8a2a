"""Small speech networks of every kind, and recordings."""

import numpy as np
import soundfile
import torch
from torch import nn

from intq.frontend import FrontEnd
from intq.speech.checkpoint import Checkpoint
from intq.speech.models.conformer import ConformerEncoder, ConformerSettings
from intq.speech.models.convolutional import BlockSettings, ConvEncoder
from intq.speech.models.heads import HEADS
from intq.speech.models.network import SpeechModel
from intq.speech.synthetic import random_audio, randomize, settle

RATE = 8000
FRONT = {"sample_rate": RATE, "window": 160, "hop": 80, "fft": 256, "bands": 16}
LETTERS = (" ", "a", "b", "c", "'")

QUARTZNET = (
    BlockSettings(24, 5, stride=2, separable=True),
    BlockSettings(24, 7, 2, residual=True, separable=True),
    BlockSettings(32, 9, dilation=2, separable=True),
    BlockSettings(40, 1),
)
TINY = (BlockSettings(24, 5, stride=2, separable=True), BlockSettings(32, 1))
JASPER = (
    BlockSettings(16, 5, stride=2),
    BlockSettings(16, 5, 2, residual=True, residual_dense=True),
    BlockSettings(24, 7, 2, residual=True, residual_dense=True),
)


def small(kind: str = "quartznet", head: str = "ctc", seed: int = 0, **front) -> Checkpoint:
    """A network of random weights, settled on noise shaped like speech."""
    torch.manual_seed(seed)
    settings = FrontEnd(**FRONT | front)
    if kind.startswith("conformer"):
        how = {"conformer": "striding", "conformer-1d": "conv1d"}[kind]
        factor, positions = (2, False) if how == "conv1d" else (4, True)
        encoder = ConformerEncoder(
            ConformerSettings(16, 32, 2, 4, kernel=7, subsampling=how, factor=factor, positions=positions)
        )
    else:
        encoder = ConvEncoder(16, {"quartznet": QUARTZNET, "jasper": JASPER, "tiny": TINY}[kind])
    decoder = HEADS[head](encoder.channels, len(LETTERS))
    randomize(nn.ModuleList([encoder, decoder]))
    model = SpeechModel(settings, encoder, decoder).eval().requires_grad_(False)
    with torch.no_grad():
        settle(encoder, model.front(torch.from_numpy(random_audio(3, RATE, RATE, seed))))
    return Checkpoint(model, kind, "", settings, LETTERS, head)


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """int16 (t,)"""
    return (random_audio(1, round(seconds * RATE), RATE, seed)[0] * 32768).astype(np.int16)


def write_recordings(folder, texts: list[str], seconds: float = 0.9) -> None:
    """A folder of recordings and a manifest with their transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["audio_filepath,text"]
    for number, text in enumerate(texts):
        soundfile.write(folder / f"{number}.wav", recording(seconds + 0.1 * number, number), RATE, subtype="PCM_16")
        lines.append(f"{number}.wav,{text}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
