"""Calibration without data: samples to which a network responds as it did to what it was trained on.

Every BatchNorm keeps the mean ``m`` and the variance of its input over the training data. Samples that begin as noise
shaped like the data (images of overlapping shapes, a voice without words) are changed by gradient descent until a
batch of them has the same statistics in front of every BatchNorm. With ``s = sqrt(variance + epsilon)``:

    loss = mean over layers of  mean over channels of  ((mean - m) / s)**2 + log(std / s)**2

(Cai et al. 2020, "ZeroQ: A novel zero shot quantization framework", eq. 3; Kim et al. 2021, "Q-ASR: Integer-only
zero-shot quantization for efficient speech recognition", for 1-D networks. There without the division by ``s``, so that
layers with large values decide alone, and with the difference of the deviations, to which a silent channel matters
little. There from Gaussian noise, hundreds of steps; from shaped noise a few are enough.)

A network without such statistics, as every transformer with LayerNorm, is calibrated on the shaped noise itself, and on
texts of random words. :func:`made_for` chooses, and says what it chose.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from intq.errors import IntqError
from intq.graph import Graph

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)
BATCH = 32  # samples whose statistics are matched together; fewer cannot differ as data do
STEPS = 8
# The root of the loss at which the descent ends. A batch of 32 real photos misses EfficientNet-Lite0's statistics by
# 0.2; samples that fit better than data are more alike than data, and their ranges too narrow (a ResNet of random
# weights: 25 dB at 0.14, 33 dB at 0.29).
CLOSE = 0.3
RATE = 0.2  # Adam's, in standard deviations of the samples; falls to 0 along half a cosine

# Of `intq.quantize`, for calibration on noise alone: to make up for errors pays on the noise and not on data. Held-back
# sentences, with random words (nearest without correction / gptq with it): a MiniLM fine-tuned on films 26.1 / 23.8 dB,
# on pairs 21.4 / 21.0 dB, sentence embeddings 19.5 / 20.1 dB. On samples of `distill` it does pay (a ResNet and a
# MobileNetV2 on Fashion-MNIST, 32 steps from 1/f noise: 36.3 / 40.4 dB and 35.3 / 36.4 dB).
ON_NOISE = {"rounding": "nearest", "bias_correction": False}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    """What to calibrate on where there are no data, a sentence that says what it is, and the options that suit it."""

    samples: Any
    notice: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def noted(self, graph: Graph) -> Graph:
        """The graph whose metadata say that it was calibrated so."""
        notices = [*graph.metadata.get("notices", []), self.notice]
        return replace(graph, metadata={**graph.metadata, "calibration": "zero-shot", "notices": notices})


def made_for(
    model: nn.Module,
    start: Tensor,
    what: str,
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
    progress: Progress | None = None,
) -> Made:
    """Samples (n, ...) to calibrate a trained network on: of :func:`distill`, or ``start`` as it is where it has no
    statistics.

    ``what``: what ``start`` is, in the plural, for people: "images of random shapes". The rest: of :func:`distill`.
    """
    layers = len(normalisations(model))
    if not layers:
        return noise(start, len(start), what)
    samples = distill(model, start, limits=limits, progress=progress)
    before, after = mismatch(model, start), mismatch(model, samples)
    notice = (
        f"calibrated without data, on {len(start)} {what}, changed to fit the statistics of the training data in "
        f"{layers} BatchNorms: {after:.2f} standard deviations off, {before:.2f} before"
    )
    return Made(samples, notice)


def noise(samples: Any, count: int, what: str) -> Made:
    """For a network without statistics."""
    notice = (
        f"calibrated without data, on {count} {what}, because no BatchNorm of the network keeps statistics of the "
        "training data; it loses less with --data"
    )
    return Made(samples, notice, ON_NOISE)


def normalisations(model: nn.Module) -> list[nn.Module]:
    """The BatchNorms of a network that hold statistics of its training data."""
    found = [module for module in model.modules() if isinstance(module, NORMALISATIONS)]
    return [module for module in found if module.running_mean is not None]


def distill(
    model: nn.Module,
    start: Tensor,
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
    steps: int = STEPS,
    close: float = CLOSE,
    progress: Progress | None = None,
) -> Tensor:
    """Samples like ``start`` (n, ...) whose statistics in front of every BatchNorm are those of the training data.

    ``model``: takes batches of ``start``, in evaluation mode; it is not changed. ``limits``: of every number of a
    sample, kept at each step (pixels 0 to 255, samples of audio -1 to 1). ``steps`` are made with every batch, fewer
    where its :func:`mismatch` is at most ``close`` before. ``progress("inputs", done, total)`` counts them. The same
    arguments give the same samples: nothing here is random.

    Raises IntqError when the network has no BatchNorm with statistics, or when the gradient is not finite.
    """
    if not normalisations(model):
        raise IntqError(
            f"{type(model).__name__} has no BatchNorm that keeps statistics of its training data, so no samples can be "
            "made from them: calibrate with data, or with noise"
        )
    model = _prepared(model)
    report = progress or (lambda stage, done, total: None)
    chunks = start.float().split(_batch(len(start)))
    made, rate = [], RATE * float(start.float().std())
    for index, chunk in enumerate(chunks):
        samples = chunk.clone().requires_grad_()
        adam = torch.optim.Adam([samples], lr=rate)
        for step in range(steps):
            report("inputs", index * steps + step, len(chunks) * steps)
            adam.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            loss = _loss(model, samples)
            if loss.sqrt() <= close:
                break
            (samples.grad,) = torch.autograd.grad(loss, samples)
            if not torch.isfinite(samples.grad).all():
                raise IntqError("the gradient of the network's statistics is not finite: calibrate with data")
            adam.step()
            with torch.no_grad():
                samples.clamp_(*limits)
        made.append(samples.detach())
    report("inputs", 1, 1)
    return torch.cat(made)


def mismatch(model: nn.Module, samples: Tensor) -> float:
    """The root of the loss: by how many standard deviations the statistics of samples miss the training data's."""
    model = _prepared(model)
    with torch.no_grad():
        losses = [float(_loss(model, chunk)) for chunk in samples.float().split(_batch(len(samples)))]
    return math.sqrt(sum(losses) / len(losses))


def _batch(samples: int) -> int:
    """BATCH, or what divides the samples more evenly."""
    return -(-samples // max(1, round(samples / BATCH)))


def _prepared(model: nn.Module) -> nn.Module:
    """A copy to hook, its images channel last, which is three times as fast on a CPU."""
    return copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _loss(model: nn.Module, samples: Tensor) -> Tensor:
    found = []

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        s = (norm.running_var + norm.eps).sqrt()
        spread = (variance + norm.eps) / (norm.running_var + norm.eps)
        found.append((((mean - norm.running_mean) / s).square() + (spread.log() / 2).square()).mean())

    hooks = [norm.register_forward_pre_hook(compare) for norm in normalisations(model)]
    try:
        model(samples)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise IntqError(f"{type(model).__name__} has BatchNorms but does not call them as modules: calibrate with data")
    return torch.stack(found).mean()
