"""Real weights -> integer weights and a bias, so that a layer answers as the float layer does.

Per output channel the scale is the largest weight over 127 (of 8 bits), or over 32384 (of 16, which are two weights of
8 bits, ``254 coarse + fine``); of 4 and 2 bits, within 7 and 1, it is that of least squared error. ``nearest`` rounds
each weight alone. ``gptq`` rounds them one after another, each time letting the weights that are still real make up for
the error on the inputs seen, for which it needs ``H = sum (x - mean)' (x - mean)`` of the layer's inputs ``x``, and no
labels (Frantar et al. 2022, "GPTQ", eq. 2-3; about the mean, because the bias takes that). An output of very many
products is rounded in pieces, of some input channels each, that know nothing of each other: time grows with the cube of
the products, memory with their square. The bias is then corrected by the mean of what lacks. ``learned`` chooses up or
down for weights of 4 and 2 bits by gradient descent (:mod:`intq.learned_rounding`); wider ones are rounded as by
``gptq``.

Before ``gptq`` rounds to 4 or 2 bits, the weights move, real as they are, to where they make up for what the layers
before them lost (:func:`making_up`); ``learned`` has that in what it minimises.

Measured (MobileNetV2, weights alone in 8 bits, photos held out): nearest 21.7 dB, with the bias corrected 31.0 dB, gptq
with the bias corrected 32.9 dB. Scales of least squared error instead of the largest weight: -0.05 dB. Pieces (noise
that its layers of 192 products or more make on such photos, the bias corrected, below that of nearest): whole 2.2 dB,
two pieces 1.7 dB, four 1.1 dB, eight 0.7 dB. A layer of Jasper of 19200 products (two cores with AVX-512): whole 306 s
and 17.5 GB, in pieces 8 s and 1.3 GB.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from intq.floatgraph import FloatNode, evaluate, pad2d, pad_frames, scaled_residual
from intq.learned_rounding import learn_rounding
from intq.ops.contract import weight_limit, windows
from intq.ops.op import window_shape
from intq.plan import Weights

# of the integer weights of so many bits; of 16, 127.5 coarse steps would round to 128
LIMITS = {bits: weight_limit(bits) for bits in (2, 4, 8)} | {16: 127 * 254 + 126}
SHARES = torch.linspace(1.0, 0.3, 71).tolist()  # of the largest weight, that the largest integer may stand for
ROUNDINGS = ("nearest", "gptq", "learned")
MAKING_UP = 0.1  # of the mean of H's diagonal, added to it, where weights make up for other layers
DAMPINGS = (0.01, 0.1, 1.0)  # of the mean of H's diagonal, added to it; the next when the Cholesky factor fails
BLOCK = 128  # columns rounded before the rest is updated by one matrix product
TOGETHER = 1024  # positions or more whose products are summed at once: a sentence alone has few
LARGEST, PIECE = 4608, 2048  # products of an output: of more than the first, so many make up for each other's errors
LEARNED_ROWS, LEARNED_STEPS = 32768, 1000
ROWS = 8192  # positions sampled for H, or six per weight of an output if that is more

Inputs = list[list[Tensor]]  # per batch, the node's inputs


def round_weights(
    node: FloatNode, exact: Inputs, rough: Inputs, rounding: str, correct_bias: bool, seed: int, bits: int = 8
) -> Weights:
    """``exact``, ``rough``: the node's inputs in the float network, and behind layers that are rounded already.

    Weights of 16 bits are rounded to nearest: there is nothing to make up for.
    """
    weight = node.parameters["weight"]
    w = grouped(node)
    if bits < 8 and rounding == "gptq" and rough is not exact and w.shape[2] <= LARGEST:
        w = making_up(node, exact, rough, seed)
    scale = scales(w, bits)
    real = w / scale[..., None]
    if rounding == "nearest" or bits == 16:
        q = real.round().clamp(-LIMITS[bits], LIMITS[bits])
    elif rounding == "learned" and bits < 8:
        q, bias = _learned(node, real, scale, exact, rough, seed, bits)
        return Weights(q.reshape(weight.shape).to(torch.int8), scale.reshape(-1), bias, bits)
    else:
        q = _compensated(node, real, rough, seed, bits)
    dtype = torch.int16 if bits == 16 else torch.int8
    result = Weights(q.reshape(weight.shape).to(dtype), scale.reshape(-1), node.parameters["bias"].double(), bits)
    if not correct_bias:
        return result
    return replace(result, bias=result.bias + mean_error(node, result, exact, rough))


def grouped(node: FloatNode) -> Tensor:
    """The weights as (g, co/g, k), k products for each output."""
    weight, groups = node.parameters["weight"], node.attrs.get("groups", 1)
    return weight.double().reshape(groups, len(weight) // groups, -1)


def making_up(node: FloatNode, exact: Inputs, rough: Inputs, seed: int) -> Tensor:
    """(g, co/g, k): real weights that answer rough inputs as the float layer answers exact ones, in least squares.

        W + E[e (x' - m)'] (E[(x' - m) (x' - m)'] + damping)^-1,  e = W x + r - W x' - r'

    ``x`` exact and ``x'`` rough inputs, ``m`` the mean of ``x'``, ``r`` residuals (Li et al. 2025, "GPTAQ", asymmetric
    calibration; there in one step with the rounding).

    Measured (Fashion-MNIST, all weights in 4 or 2 bits by gptq, divergence from the float network on 2000 images):
    small_resnet 0.0257 without, 0.0019 with it, and 0.91, 0.047; small_mobilenet_v2 0.0093, 0.0031, and 1.5, 0.10. A
    QuartzNet with 60 % of the BOPS, its layers in 4 or 8 bits: word error rate 19.1 % without, 14.9 % with it
    (float: 14.4 %). MiniLM, all layers in 4 bits: 87.8 % and 87.4 % of film sentences told right (float: 87.4 %).
    """
    w = grouped(node)
    wanted = _wanted(node, rough)
    generator = torch.Generator().manual_seed(seed)
    squares, products, sums, lacks, count = 0.0, 0.0, 0.0, 0.0, 0
    for float_inputs, inputs in zip(exact, rough, strict=True):
        at = torch.randperm(_positions(node, inputs[0]), generator=generator)[:wanted]
        x = rows_at(node, inputs[0], at).transpose(0, 1)  # (g, p, k)
        lack = (rows_at(node, float_inputs[0], at).transpose(0, 1) - x) @ w.float().transpose(1, 2)  # (g, p, co/g)
        if len(inputs) > 1:
            residual = by_position(scaled_residual(node, float_inputs[1] - inputs[1]))[at]
            lack = lack + residual.unflatten(1, (len(w), -1)).transpose(0, 1)
        squares = squares + (x.transpose(1, 2) @ x).double()
        products = products + (lack.transpose(1, 2) @ x).double()
        sums, lacks = sums + x.sum(1, dtype=torch.float64), lacks + lack.sum(1, dtype=torch.float64)
        count += len(at)
    h = squares - sums[:, :, None] * sums[:, None] / count
    level = torch.diagonal(h, dim1=1, dim2=2).mean(1).clamp_min(1e-30)[:, None, None]
    damped = h + MAKING_UP * level * torch.eye(h.shape[1], dtype=h.dtype)
    moved, failed = torch.linalg.solve_ex(damped, (products - lacks[:, :, None] * sums[:, None] / count).mT)
    return w if failed.any() else w + moved.mT


def scales(w: Tensor, bits: int) -> Tensor:
    """(g, co/g): the step of each output's weights ``w`` (g, co/g, k).

    Of 8 bits or more the largest weight is the largest integer; of fewer the step is that of least squared error.
    """
    largest = w.abs().amax(2) / LIMITS[bits]
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    if bits >= 8:
        return largest
    best, least = largest, torch.full_like(largest, math.inf)
    for share in SHARES:
        step = (share * largest)[..., None]
        error = ((w / step).round().clamp(-LIMITS[bits], LIMITS[bits]) * step - w).square().sum(2)
        best, least = torch.where(error < least, share * largest, best), torch.minimum(error, least)
    return best


def _learned(node: FloatNode, real: Tensor, scale: Tensor, exact: Inputs, rough: Inputs, seed: int, bits: int):
    """Integers and a bias, by :mod:`intq.learned_rounding`, from positions drawn at random from every batch."""
    generator, wanted_rows = torch.Generator().manual_seed(seed), LEARNED_ROWS // len(exact) + 1
    rows, answers, residuals = [], [], []
    for float_inputs, inputs in zip(exact, rough, strict=True):
        at = torch.randperm(_positions(node, inputs[0]), generator=generator)[:wanted_rows]
        rows.append(rows_at(node, inputs[0], at))
        answer = by_position(evaluate(node, *float_inputs))[at]
        answers.append(answer)
        if len(inputs) > 1:
            residuals.append(by_position(scaled_residual(node, inputs[1]))[at])
    residual = torch.cat(residuals) if residuals else None
    bias = node.parameters["bias"].double()
    return learn_rounding(
        node, real, scale, bias, torch.cat(rows), torch.cat(answers), residual, LIMITS[bits], LEARNED_STEPS, seed
    )


def by_position(y: Tensor) -> Tensor:
    """A layer's answer as (position, channel), in the order of :func:`rows_at`."""
    return (y.movedim(1, -1) if y.ndim == 4 else y).flatten(0, -2)


def _compensated(node: FloatNode, real: Tensor, rough: Inputs, seed: int, bits: int) -> Tensor:
    """Integers for real weights; where an output has too many, those of some input channels after those of others."""
    channels, (groups, _, k) = node.parameters["weight"].shape[1], real.shape
    pieces = 1 if groups > 1 or k <= LARGEST else min(channels, math.ceil(k / PIECE))
    if pieces == 1:
        return compensate(real, second_moments(node, rough, seed), LIMITS[bits])
    ends = [channels * i // pieces for i in range(pieces + 1)]
    taps, rounded = k // channels, []
    for first, stop in itertools.pairwise(ends):
        own = _of_channels(node, rough, slice(first, stop))
        rounded.append(compensate(real[..., first * taps : stop * taps], second_moments(*own, seed), LIMITS[bits]))
    return torch.cat(rounded, dim=2)


def _of_channels(node: FloatNode, inputs: Inputs, channels: slice) -> tuple[FloatNode, Inputs]:
    """An ungrouped layer and what it reads, with some of its input's channels alone."""
    own = {"weight": node.parameters["weight"][:, channels]}
    if "pad" in node.parameters:
        own["pad"] = node.parameters["pad"][channels]
    cut = (slice(None), channels) if node.op == "conv2d" else (..., channels)
    return replace(node, parameters=own), [[x[cut]] for x, *_ in inputs]


def mean_error(node: FloatNode, weights: Weights, exact: Inputs, rough: Inputs) -> Tensor:
    """(co,): by how much the rounded layer's answer falls short on average, before its activation.

    A layer's mean answer is its answer to the mean of what it reads: nothing is convolved for it.
    """
    short = _answer(node, node.parameters["weight"], exact) - _answer(node, weights.real(), rough)
    if len(exact[0]) > 1:
        total, count = 0.0, 0
        for float_inputs, inputs in zip(exact, rough, strict=True):
            residual = scaled_residual(node, float_inputs[1] - inputs[1])
            by_channel = residual.transpose(0, 1).flatten(1) if node.op == "conv2d" else residual.flatten(0, -2).T
            total = total + by_channel.sum(1, dtype=torch.float64)
            count += by_channel.shape[1]
        short = short + total / count
    return short


def _answer(node: FloatNode, weight: Tensor, inputs: Inputs) -> Tensor:
    """(co,): the mean answer with these weights, without bias and residual."""
    groups = node.attrs.get("groups", 1)
    row = sum(_sum_of_rows(node, x) for x, *_ in inputs) / sum(_positions(node, x) for x, *_ in inputs)
    return (weight.double().reshape(groups, len(weight) // groups, -1) @ row[..., None]).reshape(-1)


def _sum_of_rows(node: FloatNode, x: Tensor) -> Tensor:
    """(g, k): the sum of what all output positions read of the input, each tap a strided view of its samples' sum."""
    if node.op == "linear":
        return x.flatten(0, -2).sum(0, dtype=torch.float64)[None]
    a = node.attrs
    if node.op == "conv1d":
        x = pad_frames(x, a["padding"], node.parameters.get("pad")).transpose(1, 2)
        kernel, stride, dilation = node.parameters["weight"].shape[2:], (a["stride"],), (a["dilation"],)
    else:
        x = pad2d(x, a["padding"], node.parameters.get("pad"))
        kernel, stride, dilation = node.parameters["weight"].shape[2:], a["stride"], a["dilation"]
    views = x.sum(0, dtype=torch.float64)  # (c, height, width) or (c, frames), then an axis more for each of those
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), 1):
        views = views.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return views.sum(tuple(range(1, 1 + len(kernel)))).reshape(a["groups"], -1)


def second_moments(node: FloatNode, inputs: Inputs, seed: int) -> Tensor:
    """(g, k, k): H over positions drawn at random from every batch."""
    wanted = _wanted(node, inputs)
    generator = torch.Generator().manual_seed(seed)
    products, sums, count, gathered = 0.0, 0.0, 0, []
    for i, (x, *_) in enumerate(inputs):
        positions = _positions(node, x)
        gathered.append(rows_at(node, x, torch.randperm(positions, generator=generator)[:wanted]))
        if i + 1 < len(inputs) and sum(map(len, gathered)) < TOGETHER:
            continue
        rows = torch.cat(gathered).transpose(0, 1)  # (g, p, k)
        products = products + (rows.transpose(1, 2) @ rows).double()
        sums = sums + rows.sum(1, dtype=torch.float64)
        count += rows.shape[1]
        gathered = []
    return products - sums[:, :, None] * sums[:, None] / count


def _wanted(node: FloatNode, inputs: Inputs) -> int:
    """Positions sampled of each batch."""
    return max(ROWS, 6 * node.parameters["weight"][0].numel()) // len(inputs) + 1


def _positions(node: FloatNode, x: Tensor) -> int:
    """Outputs of a layer for its input ``x``, each a row of its product."""
    if node.op == "linear":
        return x[..., 0].numel()
    if node.op == "conv1d":
        a = node.attrs
        places = windows(x.shape[1], node.parameters["weight"].shape[2], a["stride"], a["padding"], a["dilation"])
        return len(x) * places
    a = node.attrs
    window = node.parameters["weight"].shape[2:]
    return len(x) * math.prod(window_shape(x.shape[2:], window, a["stride"], a["padding"], a["dilation"]))


def rows_at(node: FloatNode, x: Tensor, at: Tensor) -> Tensor:
    """(p, g, k): what the output positions ``at`` (flat indices over batch, height, width) read of the input."""
    if node.op == "linear":
        return x.flatten(0, -2)[at][:, None]
    a = node.attrs
    if node.op == "conv1d":
        x = pad_frames(x, a["padding"], node.parameters.get("pad"))
        reach = a["dilation"] * (node.parameters["weight"].shape[2] - 1) + 1
        places = x.unfold(1, reach, a["stride"])[..., :: a["dilation"]]  # (n, places, c, k), a view
        return places[at // places.shape[1], at % places.shape[1]].reshape(len(at), a["groups"], -1)
    kh, kw = node.parameters["weight"].shape[2:]
    (sh, sw), (dh, dw) = a["stride"], a["dilation"]
    x = pad2d(x, a["padding"], node.parameters.get("pad"))
    views = x.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)[..., ::dh, ::dw]
    views = views.permute(0, 2, 3, 1, 4, 5)  # (n, oh, ow, c, kh, kw), a view
    oh, ow = views.shape[1:3]
    return views[at // (oh * ow), at // ow % oh, at % ow].reshape(len(at), a["groups"], -1)


def compensate(real: Tensor, h: Tensor, limit: int = LIMITS[8]) -> Tensor:
    """Integers (g, co/g, k) within ``limit`` for ``real`` weights in units of their scale: columns with the largest
    inputs first."""
    order = torch.argsort(torch.diagonal(h, dim1=1, dim2=2).mean(0), descending=True, stable=True)
    upper = _inverse_factor(h[:, order][:, :, order])
    rest = real[:, :, order].transpose(1, 2).contiguous()  # (g, k, co/g): a column lies together
    q = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        stop = min(start + BLOCK, rest.shape[1])
        block, errors = rest[:, start:stop], torch.empty_like(rest[:, start:stop])
        for i in range(stop - start):
            factors = upper[:, start + i, start + i : stop]
            rounded = q[:, start + i].copy_(block[:, i]).round_().clamp_(-limit, limit)
            error = torch.sub(block[:, i], rounded, out=errors[:, i]).div_(factors[:, :1])
            block[:, i:].addcmul_(factors[:, :, None], error[:, None], value=-1)
        rest[:, stop:].baddbmm_(upper[:, start:stop, stop:].transpose(1, 2), errors, alpha=-1)
    return q[:, torch.argsort(order)].transpose(1, 2)


def _inverse_factor(h: Tensor) -> Tensor:
    """The upper Cholesky factor of (H + damping)^-1; the identity where H cannot be factored however much is added."""
    level = torch.diagonal(h, dim1=1, dim2=2).mean(1)
    level = torch.where(level > 0, level, torch.ones_like(level))
    identity = torch.eye(h.shape[1], dtype=h.dtype)
    for damping in DAMPINGS:
        lower, failed = torch.linalg.cholesky_ex(h / level[:, None, None] + damping * identity)
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any():
                return upper
    return identity.expand_as(h)
