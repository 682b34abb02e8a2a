"""A float network and calibration data -> an integer :class:`intq.graph.Graph`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intq.calibrate import METHODS, Histogram, observe_histograms, observe_limits
from intq.capture import capture
from intq.emit import emit
from intq.equalize import equalize as equalize_channels
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph, evaluate
from intq.frames import LONGEST, recordings, samples_value, spread_recordings
from intq.graph import Graph
from intq.migrate import migrate
from intq.plan import MOVES, Plan, Weights
from intq.quants import choose_quants
from intq.rounding import LIMITS, ROUNDINGS, round_weights
from intq.simplify import prepend_affine, simplify
from intq.tokens import sentences, spread_tokens, tokens_value
from intq.transformer import with_ibert_functions
from intq.value import Value
from intq.widths import (
    bits_read,
    weight_bits,
)

CHUNK = 16  # samples that go through the network together
WALK_SAMPLES = 128  # samples by which weights are rounded and biases corrected, at most;
NOISE_BATCHES = 2  # of the walk's, by which the layers' noise is measured
WALK_TOKENS = 4096  # tokens of the same
WALK_RECORDED = 2**21  # samples of recordings of the same: two minutes at 16 kHz
WALK_FLOATS = 2**27  # and at most so many that the largest value of the network takes half a gigabyte
INT32_SCORES = 2.0**23  # the scores' largest value seen, as an integer: 8 bits are left above it
FINE_BITS = 6  # that a curve's polynomials have below a step of 8 bits, about

Progress = Callable[[str, int, int], None]
Prune = Callable[[FloatGraph, Sequence[Tensor]], FloatGraph]  # (network, samples as it takes them) -> a smaller one


@dataclass(frozen=True)
class Options:
    """The choices of :func:`quantize`."""

    method: str = "mse"
    equalize: bool = True
    bias_correction: bool = True
    rounding: str = "gptq"
    residual_bits: int = 8
    seed: int = 0
    functions: str = "exact"
    bits: Mapping[str, int] = field(default_factory=dict)
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {"method": METHODS, "rounding": ROUNDINGS, "residual_bits": (8, 16), "functions": ("exact", "ibert")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(map(str, allowed))
                raise IntqError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for what, given, widths in (("inputs", self.bits, (4, 8, 16)), ("weights", self.weight_bits, LIMITS)):
            for pattern, bits in given.items():
                if bits not in widths:
                    known = ", ".join(map(str, widths))
                    raise IntqError(f"{what} of layers have one of {known} bits, got {bits} for {pattern!r}")


def quantize(
    model: torch.nn.Module,
    calibration: Iterable,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    method: str = "mse",
    equalize: bool = True,
    bias_correction: bool = True,
    rounding: str = "gptq",
    residual_bits: int = 8,
    functions: str = "exact",
    bits: Mapping[str, int] | None = None,
    weight_bits: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    longest: int = LONGEST,
    prune: Prune | None = None,
    progress: Progress | None = None,
) -> Graph:
    """The integer network of ``model``: weights int8 per output channel, activations uint8, scores int32.

    ``calibration``: batches of the model's input, labels not needed. Either uint8 pixels (n, h, w, c): the model's
    input is then ``(pixel / 255 - mean) / std`` (per channel; default 0 and 1), which becomes part of the first
    convolution, and the integer network takes the pixels. Or float tensors (n, ...) as the model takes them: the
    integer network's input is then uint8 with the scale and zero point of its declared value, channel last. Or int16
    (n, samples): recordings of one length in a batch, which the model takes in [-1, 1); the integer network takes
    recordings of any length, padded, and their lengths. Or other integers (n, tokens): token ids, padded as the model
    wants it; the integer network takes ids of any number of tokens.
    ``method``: how ranges are chosen (:mod:`intq.calibrate`). ``equalize``: scale channels (:mod:`intq.equalize`).
    ``bias_correction`` and ``rounding``: :mod:`intq.rounding`. ``residual_bits``: width of residual sums; with
    LayerNorm it is 16 always. ``functions``: "ibert" takes the polynomials of I-BERT, for checkpoints trained
    with them. ``bits``: {pattern of module paths: in how many bits layers read their input, 4, 8 or 16};
    ``weight_bits``: {pattern: bits of their weights, 2, 4, 8 or 16 (which are two products of 8 bits)}. ``ranges``:
    {module path: (low, high)}: of what these modules make, known from training instead of calibration.
    ``seed``: of the sampling for ``gptq``; the same data and seed give the same graph. ``longest``: samples of a
    recording that the integer network takes at a time. ``prune``: what makes the network smaller before its ranges are
    measured, such as :func:`intq.prune.by_hessian`.
    ``progress(stage, done, total)`` is called along the way.

    The graph's metadata holds ``layers``: per value its name and ``sqnr_db`` against the float network on the
    calibration data, and ``notices``: what was left out.
    Raises IntqError for a model or an operation that cannot be taken, NaN or infinite weights, or unusable data.
    """
    seen = observe(
        model,
        calibration,
        mean=mean,
        std=std,
        longest=longest,
        prune=prune,
        progress=progress,
        method=method,
        equalize=equalize,
        bias_correction=bias_correction,
        rounding=rounding,
        residual_bits=residual_bits,
        functions=functions,
        bits=bits or {},
        weight_bits=weight_bits or {},
        ranges=ranges or {},
        seed=seed,
    )
    return quantized(seen, progress)


@dataclass(frozen=True)
class Observed:
    """A float network that was seen computing: on tokens, recordings, or samples in float, channels second.

    ``graph``: the network as the integers will compute it, BatchNorms folded and channels scaled; ``value``: the
    declared input, where it does not follow from a Quant. ``pixels``: the input is uint8 pixels.
    """

    graph: FloatGraph
    value: Value | None
    batches: list[Tensor]
    pixels: bool
    histograms: Mapping[str, Histogram]
    options: Options


def observe(
    model: torch.nn.Module,
    calibration: Iterable,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    longest: int = LONGEST,
    prune: Prune | None = None,
    progress: Progress | None = None,
    check: Callable[[FloatGraph], None] | None = None,
    **choices: Any,
) -> Observed:
    """The first half of :func:`quantize`, with its arguments: what the network computes on the calibration data.

    ``check`` is given the captured graph, and may refuse it.
    """
    options, report = Options(**choices), progress or _silent
    batches, pixels = _batches(calibration)
    if not pixels and not (mean is None and std is None):
        raise IntqError("mean and std go with uint8 pixels (n, h, w, c); the calibration data is float: leave them out")
    report("capture", 0, 1)
    graph, value = capture(model, batches[0]), None
    if pixels:
        graph, value = _normalize(graph, mean, std)
    with torch.no_grad():
        graph = simplify(graph)
        if graph.reads_tokens:
            value, batches = tokens_value(graph), sentences(graph, batches)
        if graph.reads_samples:
            value, batches = samples_value(graph, longest), recordings(batches, longest)
        if options.functions == "ibert":
            graph = with_ibert_functions(graph)
        report("capture", 1, 1)
        if check:
            check(graph)
        if prune is not None:
            graph = prune(graph, batches)
        graph, histograms = _seen(graph, batches, options, report)
        return Observed(graph, value, batches, pixels, histograms, options)


@torch.no_grad()
def quantized(seen: Observed, progress: Progress | None = None) -> Graph:
    """The second half of :func:`quantize`: what integers mean, which integers the weights are, and the graph."""
    options = seen.options
    plan = choose_quants(
        seen.graph,
        seen.histograms,
        pixels=seen.pixels,
        method=options.method,
        residual_bits=options.residual_bits,
        bits=options.bits,
        ranges=options.ranges,
    )
    walked = for_walk(plan.graph, seen.batches)
    plan = replace(plan, weights=_choose_weights(plan.graph, walked, options, progress or _silent))
    layers = layer_noise(plan, walked[:NOISE_BATCHES])
    return emit(plan, seen.value, {"layers": layers, "notices": list(plan.graph.notices)})


def _silent(stage: str, done: int, total: int) -> None:
    pass


# ---- data --------------------------------------------------------------------------------------------------------


def _batches(calibration: Iterable) -> tuple[list[Tensor], bool]:
    """The samples in float, channels second, in chunks; and whether they are uint8 pixels."""
    if isinstance(calibration, (Tensor, np.ndarray)):
        calibration = [calibration]
    batches = [torch.as_tensor(b[0] if isinstance(b, (tuple, list)) else b) for b in calibration or ()]
    batches = [b for b in batches if b.ndim > 0 and len(b) > 0]
    if not batches:
        raise IntqError("no calibration data: quantization needs samples of the input (no labels); a few dozen will do")
    if all(b.dtype == torch.int16 and b.ndim == 2 for b in batches):
        return batches, False
    if all(not b.is_floating_point() and b.ndim == 2 for b in batches):
        return [b.long() for b in batches], False
    if len({(b.shape[1:], b.dtype) for b in batches}) > 1:
        found = ", ".join(sorted({f"{tuple(b.shape[1:])} {b.dtype}" for b in batches}))
        raise IntqError(f"calibration batches must agree in shape and type, got {found}; resize or crop the samples")
    whole, pixels = torch.cat(batches), batches[0].dtype == torch.uint8
    if pixels and whole.ndim != 4:
        raise IntqError(f"uint8 calibration data must be pixels (n, h, w, c), got shape {tuple(whole.shape)}")
    if not pixels and not (whole.is_floating_point() and whole.ndim >= 2):
        raise IntqError(
            f"calibration data must be uint8 pixels (n, h, w, c), float samples (n, ...) or token ids (n, tokens), "
            f"got {whole.dtype} of shape {tuple(whole.shape)}"
        )
    if not pixels and not torch.isfinite(whole).all():
        raise IntqError("the calibration data holds NaN or infinite numbers; remove those samples")
    whole = whole.permute(0, 3, 1, 2) if pixels else whole
    return [chunk.float().contiguous() for chunk in whole.split(CHUNK)], pixels


def _normalize(
    graph: FloatGraph, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[FloatGraph, Value]:
    """The graph on pixels, and the declaration of its input."""
    n, c, h, w = graph.input_shape
    mean = np.asarray([0.0] * c if mean is None else mean, np.float64)
    std = np.asarray([1.0] * c if std is None else std, np.float64)
    for name, values in (("mean", mean), ("std", std)):
        if values.shape != (c,) or not np.isfinite(values).all():
            raise IntqError(f"{name} must be {c} finite numbers, one per channel, got {values.tolist()}")
    if (std <= 0).any():
        raise IntqError(f"std must be positive, got {std.tolist()}")
    scale, shift = 1 / (255 * std), -mean / std
    graph = prepend_affine(graph, *(torch.tensor(v, dtype=torch.float32) for v in (scale, shift)))
    return graph, Value(graph.input, (n, h, w, c), "uint8", 0, 255, tuple(scale.tolist()), tuple((255 * mean).tolist()))


def for_walk(graph: FloatGraph, batches: list[Tensor]) -> list[Tensor]:
    """Samples from all over the data, as many as the walk keeps in memory."""
    if graph.reads_tokens:
        return spread_tokens(batches, WALK_TOKENS)
    if graph.reads_samples:
        return spread_recordings(batches, WALK_RECORDED)
    largest = max(math.prod(shape[1:]) for shape in graph.shapes().values())
    wanted = max(1, min(WALK_SAMPLES, WALK_FLOATS // largest))
    whole = torch.cat(batches)
    if len(whole) <= wanted:
        return batches
    return list(whole[torch.arange(wanted) * len(whole) // wanted].split(CHUNK))


# ---- ranges ------------------------------------------------------------------------------------------------------


def _seen(
    graph: FloatGraph, batches: list[Tensor], options: Options, report: Progress
) -> tuple[FloatGraph, dict[str, Histogram]]:
    """The graph with scaled channels, and how often its values were seen."""
    steps = 2 * len(batches)
    if unknown := sorted(set(options.ranges) - {node.module for node in graph.nodes}):
        raise IntqError(
            f"ranges are given for {unknown[0]!r}, which no value of the network comes from; name its modules"
        )
    limits = observe_limits(graph, batches, lambda done, total: report("calibrate", done, steps))
    if options.equalize and not options.ranges:  # learned ranges are those of the channels as they are
        graph, limits = equalize_channels(graph, limits)
        wide = [name for name, bits in bits_read(graph, options.bits).items() if bits == 16]
        graph, limits = migrate(graph, limits, wide)
    histograms = observe_histograms(
        graph, batches, limits, lambda done, total: report("calibrate", len(batches) + done, steps)
    )
    return graph, histograms


# ---- weights -----------------------------------------------------------------------------------------------------


def _choose_weights(graph: FloatGraph, batches: list[Tensor], options: Options, report: Progress) -> dict[str, Weights]:
    """Walks the float network and the same with integer weights side by side, a layer at a time.

    What is to be made up for is the error of the weights upstream. That of the activations' rounding and clipping is
    left out: a bias that corrects the mean of clipped peaks shifts every pixel, through a ReLU too (MobileNetV2, photos
    held out: 21.2 dB so, 18.6 dB with it, 19.3 dB without any correction).
    """
    weights, widths = {}, weight_bits(graph, options.weight_bits)
    exact, rough = {graph.input: batches}, {graph.input: batches}
    forgotten = graph.done_after()
    for done, node in enumerate(graph.nodes):
        float_inputs = [list(x) for x in zip(*(exact[name] for name in node.inputs), strict=True)]
        inputs = [list(x) for x in zip(*(rough[name] for name in node.inputs), strict=True)]
        rounded = node
        if node.op in CONTRACTIONS:
            rounding, correct = options.rounding, options.bias_correction
            bits = widths.get(node.name, 8)
            chosen = round_weights(node, float_inputs, inputs, rounding, correct, options.seed, bits)
            weights[node.name] = chosen
            rounded = node.with_parameters(weight=chosen.real(), bias=chosen.bias.float())
        exact[node.name] = [evaluate(node, *x) for x in float_inputs]
        rough[node.name] = [evaluate(rounded, *x) for x in inputs]
        for name in forgotten[node.name]:
            del exact[name], rough[name]
        report("weights", done + 1, len(graph.nodes))
    return weights


def layer_noise(plan: Plan, batches: Sequence[Tensor]) -> list[dict]:
    """Per value of the integer network that is computed (not only moved): its name and its SQNR in dB.

    What a curve at a layer's end takes is none: the layer's name is that of the curve's result.
    """
    powers: dict[str, list[float]] = {}
    for batch in batches:
        for (name, exact), (_, rough) in zip(plan.graph.values(batch), plan.values(batch), strict=True):
            power = powers.setdefault(name, [0.0, 0.0])
            power[0] += float(exact.double().square().sum())
            power[1] += float((exact.double() - rough).square().sum())
    inside = plan.curved | plan.lifted
    computed = [n.name for n in plan.graph.nodes if n.op not in (*MOVES, "mask") and n.name not in inside]
    return [{"name": name, "sqnr_db": round(decibel(*powers[name]), 2)} for name in computed]


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within -200 and 200."""
    if noise <= signal * 1e-20:
        return 200.0
    return 10 * math.log10(max(signal / noise, 1e-20))
