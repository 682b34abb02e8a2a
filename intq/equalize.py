"""Cross-layer equalization: channels of one tensor get scales of their own, which the neighbouring weights absorb.

One scale per tensor serves its widest channel; a channel a tenth as wide keeps a tenth of the levels. Dividing channel
c by ``s[c]`` where it is made (weights, bias, residual and upper limit of its contraction) and multiplying the weights
that read it by ``s[c]`` leaves the network's function as it is and fills the 8 bits of every channel. A depthwise
convolution absorbs ``s`` without loss, for its weights have a scale per channel anyway; a dense one pays, because the
weights of one output spread wider. So ``s = range ** a / weight ** b`` is chosen per tensor, by the noise it predicts.

(Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", eq. 7-11: there for pairs
of layers and by weight ranges alone. Here a residual is scaled too, for its multipliers are per channel, and a channel
may be limited by what it was seen to reach instead of its ReLU6, for both are the end of its 8 bits.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intq.calibrate import Limits
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode

# A channel's reach is known from the calibration data alone, and full equalization (exponent 1) clips a photo that goes
# beyond. Signed channels are dense, so their reach is known well. Behind a ReLU a channel may be silent but for a few
# objects; the fewer values were seen, the less its reach is trusted. (EfficientNet-Lite0, photos held out, activations
# alone: 15.7 dB at 0.8 throughout, because its 7 x 7 layers clip; 23.2 dB without equalization.)
SIGNED_EXPONENT = 0.8
FEW, MANY = 2.0**13, 2.0**19  # values seen of a channel behind a ReLU: exponent 0 up to FEW, 1 from MANY
WIDEST = 2.0**10  # between the reach of two channels, at most
COMPENSATED = 0.4  # the share of the weights' rounding noise that error-compensating rounding leaves


def equalize(graph: FloatGraph, limits: Mapping[str, Limits]) -> tuple[FloatGraph, dict[str, Limits]]:
    """The graph with scaled channels, and its limits. The function is the same, up to float rounding."""
    nodes, users, limits = {n.name: n for n in graph.nodes}, graph.users(), dict(limits)
    for node in graph.nodes:
        reached = _readers(graph, node.name, users) if node.op in CONTRACTIONS and node.low in (0, -math.inf) else None
        if reached is None:
            continue
        values, readers = reached
        scale = _choose(nodes[node.name], [(nodes[name], residual) for name, residual in readers], limits[node.name])
        if scale is None:
            continue
        nodes[node.name] = _divide_output(nodes[node.name], scale)
        for name, residual in readers:
            nodes[name] = _multiply_input(nodes[name], scale, residual)
        for name in values:
            limits[name] = limits[name].divided(scale)
    return replace(graph, nodes=tuple(nodes[n.name] for n in graph.nodes)), limits


def _readers(graph: FloatGraph, name: str, users) -> tuple[list[str], list[tuple[str, bool]]] | None:
    """The values that are scaled with ``name`` (pools of it) and the contractions that read them, True as a residual.

    None when anything else reads them.
    """
    shapes, values, readers = graph.shapes(), [name], []
    for value in values:  # grows
        if value == graph.output:
            return None
        for user in users[value]:
            if user.op == "conv1d" or (user.op in CONTRACTIONS and len(shapes[value]) in (2, 4)):
                readers += [(user.name, i == 1) for i, read in enumerate(user.inputs) if read == value]
            elif _keeps_channels(user, shapes[value]):
                values.append(user.name)
            else:
                return None
    return values, readers


def _keeps_channels(node: FloatNode, shape: tuple) -> bool:
    """Whether scaling the input's channels scales the output's."""
    if node.op == "reshape":
        return node.shape[:2] == shape[:2] and math.prod(node.shape[2:]) == math.prod(shape[2:]) == 1
    unlimited = math.isinf(node.low) and math.isinf(node.high)
    return node.op in ("mean", "avg_pool2d", "max_pool2d") and unlimited


@dataclass(frozen=True)
class _Reader:
    """What of a contraction's weights its noise depends on, per input channel.

    ``widest``: (groups, co / groups, ci / groups) the largest weight between two channels; ``energy``: (ci,) the sum of
    the squares of those that read it; ``taps``: weights between two channels.
    """

    widest: Tensor
    energy: Tensor
    taps: int

    @property
    def column_size(self) -> Tensor:
        """(ci,): the largest weight that reads each input channel."""
        return self.widest.amax(1).reshape(-1)


def _reader(node: FloatNode) -> _Reader:
    weight, groups = node.parameters["weight"], node.attrs.get("groups", 1)
    weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    energy = torch.linalg.vector_norm(weight, dim=(1, 3), dtype=torch.float64).square()
    return _Reader(weight.abs().amax(3).double(), energy.reshape(-1), weight.shape[3])


def _choose(node: FloatNode, readers: list[tuple[FloatNode, bool]], seen: Limits) -> Tensor | None:
    """The scales of least predicted noise, None when there is nothing to scale."""
    reach = torch.maximum(seen.high.abs(), seen.low.abs())
    widest = float(reach.max())
    if not (widest > 0 and readers):
        return None
    reach = torch.where(reach > 0, reach, torch.full_like(reach, widest)).clamp_min(widest / WIDEST)
    products = [_reader(reader) for reader, residual in readers if not residual]
    residuals = len(readers) - len(products)
    size = torch.stack([reader.column_size for reader in products] or [reach * 0]).amax(0)
    size = torch.where(size > 0, size, size.max().clamp_min(1e-30)).clamp_min(float(size.max()) / WIDEST)
    exponents = [
        (a, b) for a in torch.linspace(0, _largest_exponent(node, seen.count), 9).tolist() for b in (0.0, 1 - a)
    ]
    candidates = [_normalized(reach**a / size**b, reach, node.high) for a, b in exponents]
    noise = [_noise(products, residuals, scale, reach, seen.square) for scale in candidates]
    return candidates[noise.index(min(noise))]


def _largest_exponent(node: FloatNode, count: int) -> float:
    if math.isinf(node.low):
        return SIGNED_EXPONENT
    return min(max(math.log(count / FEW) / math.log(MANY / FEW), 0.0), 1.0)


def _normalized(scale: Tensor, reach: Tensor, high: float) -> Tensor:
    """Such that the widest channel is as wide as before, and no channel's upper limit falls below that."""
    widest = float(reach.max())
    scale = scale * (float((reach / scale).max()) / widest)
    return scale if math.isinf(high) else scale.clamp_max(high / widest)


def _per_weight(node: FloatNode, values: Tensor) -> Tensor:
    """(ci,) -> (co, ci / groups, 1): the value of the input channel that each weight reads."""
    groups, (co, per) = node.attrs.get("groups", 1), node.parameters["weight"].shape[:2]
    return values.reshape(groups, 1, per).expand(groups, co // groups, per).reshape(co, per, 1)


def _noise(readers: list[_Reader], residuals: int, scale: Tensor, reach: Tensor, square: Tensor) -> float:
    """The noise, over the signal, that 8 bits of the scaled input and of the weights bring to its readers' outputs."""
    step = float((reach / scale).max()) / 255
    variance = (scale * step).square() / 12  # of rounding, per channel, in the units before scaling
    total = residuals * float(variance.sum() / square.sum().clamp_min(1e-30))
    for reader in readers:
        groups = len(reader.widest)
        steps = (reader.widest * scale.reshape(groups, 1, -1)).amax(2) / 127  # (groups, co / groups)
        power = (square / scale.square()).reshape(groups, -1).sum(1, keepdim=True) * reader.taps
        weights = COMPENSATED * (steps.square() / 12 * power).sum()
        signal = (reader.energy @ square).clamp_min(1e-30)
        total += float((reader.energy @ variance + weights) / signal)
    return total


def _divide_output(node: FloatNode, scale: Tensor) -> FloatNode:
    weight, bias, inverse = node.parameters["weight"], node.parameters["bias"], (1 / scale).float()
    new = {"weight": weight * inverse.reshape(-1, *[1] * (weight.ndim - 1)), "bias": bias * inverse}
    if len(node.inputs) > 1:
        new["residual_scale"] = node.parameters.get("residual_scale", torch.ones_like(inverse)) * inverse
    if math.isfinite(node.high):
        new["channel_high"] = node.high * inverse
        node = replace(node, attrs={k: v for k, v in node.attrs.items() if k != "high"})
    return node.with_parameters(**new)


def _multiply_input(node: FloatNode, scale: Tensor, residual: bool) -> FloatNode:
    if residual:
        own = node.parameters.get("residual_scale", torch.ones_like(scale))
        return node.with_parameters(residual_scale=(own * scale).float())
    weight = node.parameters["weight"]
    factor = _per_weight(node, scale).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    new = {"weight": weight * factor.float()}
    if "pad" in node.parameters:
        new["pad"] = (node.parameters["pad"] / scale).float()
    return node.with_parameters(**new)
