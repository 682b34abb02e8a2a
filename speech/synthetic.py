"""Networks with random weights and audio from noise: for exactness and speed where no checkpoint is at hand.

Quantization only says something about a network whose activations look like a trained one's, so the weights keep the
variance (He et al., 2015), every BatchNorm gets its own random scale, shift and statistics that fit its input, and the
audio has what a voice has: pulses through resonances, hiss, pauses, loud and soft.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from intq.speech import huggingface
from intq.speech.checkpoint import Checkpoint, of_samples
from intq.speech.models import architecture
from intq.speech.models.conformer import Attention

QUERIES_AND_KEYS = ("q_proj", "k_proj")  # of Hugging Face's
ATTENTION_GAIN = 3.0**0.5  # scores with a standard deviation of 3 or so: a few frames get most of the attention
SECONDS, UTTERANCES = 2, 4  # of random audio, that statistics are settled on


def random_checkpoint(name: str, seed: int = 0) -> Checkpoint:
    """The architecture called `name` at full size, with random weights.

    The same name and seed give the same network. Raises IntqError when there is no such architecture.
    """
    if name in huggingface.ARCHITECTURES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = huggingface.build(name)
            randomize(model)
        return of_samples(model, huggingface.letters(), name, "")
    known = architecture(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = known.build().eval().requires_grad_(False)
        randomize(model.encoder)
        randomize(model.decoder)
        rate = known.front.sample_rate
        audio = torch.from_numpy(random_audio(UTTERANCES, SECONDS * rate, rate, seed))
        settle(model.encoder, model.cepstra(model.front(audio)))
    return Checkpoint(model, name, "", known.front, known.labels, known.head)


def randomize(network: nn.Module) -> None:
    """Fill every parameter, in place, as the module's docstring says, from torch's generator."""
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                weight = nn.init.kaiming_normal_(module.weight.clone(), nonlinearity="relu")
                if is_parametrized(module, "weight"):
                    module.weight = weight  # weight norm: its direction and its length
                else:
                    module.weight.copy_(weight)
            elif isinstance(module, nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
            elif isinstance(module, nn.Linear):
                gain = ATTENTION_GAIN if name.rpartition(".")[2] in QUERIES_AND_KEYS else 1.0
                nn.init.normal_(module.weight, 0.0, gain * module.in_features**-0.5)
            elif isinstance(module, Attention) and hasattr(module, "pos_bias_u"):
                nn.init.normal_(module.pos_bias_u, 0.0, 0.3)
                nn.init.normal_(module.pos_bias_v, 0.0, 0.3)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1)


def settle(encoder: nn.Module, features: torch.Tensor) -> None:
    """Give each BatchNorm the statistics of its input on these features, then move them by some ten per cent.

    A trained network's statistics never fit one batch exactly, and a network whose means are all zero after
    normalisation would hide mistakes in folding.
    """
    normalisations = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [module.momentum for module in normalisations]
    for module in normalisations:
        module.train().momentum = 1.0  # running statistics = this batch's
    with torch.no_grad():
        encoder(features)
        for module, momentum in zip(normalisations, momenta, strict=True):
            module.eval().momentum = momentum
            module.running_mean += 0.1 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.9, 1.2)


def random_audio(n: int, samples: int, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """float32 (n, samples) in [-1, 1), each an int16 over 32768: a voice without words.

    Every fifth of a second or so it changes between a buzz of 80 to 300 Hz, a hiss and a pause; two to four resonances
    shape each, and the voices are of different loudness over a faint background.
    """
    generator = np.random.default_rng(seed)
    frequencies = np.fft.rfftfreq(rate // 4, 1 / rate)
    audio = np.empty((n, samples), np.float32)
    for row in audio:
        position, pitch = 0, generator.uniform(80, 300)
        row[:] = 0.003 * generator.standard_normal(samples)
        loudness = 10 ** generator.uniform(-1.5, -0.5)
        while position < samples:
            length = min(int(rate * generator.uniform(0.08, 0.24)), samples - position)
            kind = generator.choice(("buzz", "hiss", "pause"), p=(0.6, 0.2, 0.2))
            if kind != "pause":
                pulses = np.arange(rate // 4) % int(rate / (pitch * generator.uniform(0.9, 1.1))) == 0
                source = pulses * 10.0 if kind == "buzz" else generator.standard_normal(rate // 4)
                centres, widths = generator.uniform(200, 0.45 * rate, 4), generator.uniform(60, 400, 4)
                shape = (1 / (1 + ((frequencies[:, None] - centres) / widths) ** 2)).sum(-1) + 0.01
                sound = np.fft.irfft(np.fft.rfft(source) * shape, rate // 4)[:length] * np.hanning(length)
                row[position : position + length] += loudness * sound / max(sound.std(), 1e-6)
            position += length
    return (audio * 32768).round().clip(-32768, 32767).astype(np.float32) / 32768
