"""The convolutional speech encoder behind QuartzNet, Jasper, MarbleNet and MatchboxNet, under NeMo's parameter names.

One encoder, many tables: a chain of blocks of 1-D convolutions over time, each with BatchNorm and an activation, most
of them with a residual branch. Jasper (Li et al., 2019) uses ordinary convolutions and dense residuals; QuartzNet
(Kriman et al., 2020), MatchboxNet (Majumdar and Ginsburg, 2020) and MarbleNet (Jia et al., 2021) use time-channel
separable ones: a depthwise convolution over time, then a pointwise one over channels. Citrinet (Majumdar et al., 2021)
adds squeeze and excitation.

With `frames`, the number of valid frames of each utterance, what lies behind them is set to zero wherever a neighbour
could see it, so that an utterance in a batch gives what it gives alone. Without, no mask is computed at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from intq.errors import IntqError

NORM_EPSILON = 1e-3
ACTIVATIONS = {"relu": nn.ReLU, "swish": nn.SiLU, "hardtanh": nn.Hardtanh}


@dataclass(frozen=True)
class BlockSettings:
    """One block; the fields are called as in NeMo's configuration.

    filters: channels of each of its `repeat` convolutions; kernel, stride, dilation: of all of them, in frames (only
        the last one strides when `stride_last`). separable: depthwise, then pointwise; groups: of the pointwise ones.
    residual: add a 1x1 projection of the block's input before the last activation; residual_dense: of the inputs of
        all the dense blocks so far. residual_mode: "add", or "stride_add" whose projection strides with the block.
    se: squeeze and excitation behind the last convolution, its hidden layer `se_reduction_ratio` times smaller.
    """

    filters: int
    kernel: int
    repeat: int = 1
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.0
    residual: bool = False
    residual_dense: bool = False
    residual_mode: Literal["add", "stride_add"] = "add"
    separable: bool = False
    groups: int = 1
    stride_last: bool = False
    se: bool = False
    se_reduction_ratio: int = 8

    def __post_init__(self):
        if self.stride > 1 and self.dilation > 1:
            raise IntqError(f"a block with stride {self.stride} and dilation {self.dilation}: only one may be above 1")
        if self.residual_mode not in ("add", "stride_add"):
            raise IntqError(f"a block with residual_mode {self.residual_mode!r}: taken are add and stride_add")


def valid(frames: Tensor, x: Tensor) -> Tensor:
    """1 where a frame of x (n, C, t) is within its utterance's number of frames (n,), else 0: (n, 1, t)."""
    return (torch.arange(x.shape[-1], device=x.device) < frames[:, None])[:, None].to(x.dtype)


class MaskedConv1d(nn.Module):
    """A convolution over time that sees zeros behind each utterance's last frame, as it would see padding."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        if frames is not None and self.conv.kernel_size[0] > 1:
            x = x * valid(frames, x)
        return self.conv(x)

    def frames(self, frames):
        """How many frames come out of this many."""
        (kernel,), (stride,), (padding,), (dilation,) = (
            getattr(self.conv, name) for name in ("kernel_size", "stride", "padding", "dilation")
        )
        return (frames + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class SqueezeExcite(nn.Module):
    """y = x * sigmoid(W2 act(W1 mean_t(x))), the mean over the valid frames (Hu et al., 2018).

    Trained with a limited context window, it still takes the whole utterance at inference, as NeMo does.
    """

    def __init__(self, channels: int, reduction: int, activation: str) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), ACTIVATIONS[activation](), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return x * torch.sigmoid(self.fc(mean_over_time(x, frames)))[..., None]


def mean_over_time(x: Tensor, frames: Tensor | None = None) -> Tensor:
    """The mean of x (n, C, t) over the valid frames, or over all: (n, C)."""
    if frames is None:
        return x.mean(-1)
    return (x * valid(frames, x)).sum(-1) / frames[:, None]


class GroupShuffle(nn.Module):
    """Deal the channels of `groups` groups out in turn, so that the next grouped convolution mixes them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Block(nn.Module):
    """act(conv(...act(conv(x))) + sum_i project_i(x_i)), where `panes` gives the channels of each x_i.

    forward: the tensors that later dense residuals may ask for, the newest last, to the same with this block's output.
    """

    def __init__(self, inputs: int, settings: BlockSettings, activation: str, panes: Sequence[int]) -> None:
        super().__init__()
        self.settings = settings
        last = settings.repeat - 1
        self.mconv = nn.ModuleList()
        for index in range(settings.repeat):
            channels = inputs if index == 0 else settings.filters
            stride = 1 if settings.stride_last and index < last else settings.stride
            self.mconv.extend(_convolution(channels, settings, stride))
            if index < last:
                self.mconv.extend(_activation(activation, settings.dropout))
        if settings.se:
            self.mconv.append(SqueezeExcite(settings.filters, settings.se_reduction_ratio, activation))
        stride = settings.stride if settings.residual_mode == "stride_add" else 1
        self.res = nn.ModuleList(
            nn.ModuleList(_normalised(MaskedConv1d(channels, settings.filters, 1, stride), settings.filters))
            for channels in (panes or (inputs,) if settings.residual else ())
        )
        self.dense = bool(panes)
        self.mout = nn.Sequential(*_activation(activation, settings.dropout))

    def forward(self, xs: list[Tensor], frames: Tensor | None = None) -> list[Tensor]:
        x = xs[-1]
        for module in self.mconv:
            if isinstance(module, MaskedConv1d):
                x, frames = module(x, frames), None if frames is None else module.frames(frames)
            else:
                x = module(x, frames) if isinstance(module, SqueezeExcite) else module(x)
        for earlier, (project, normalise) in zip(xs[: len(self.res)], self.res, strict=True):
            x = x + normalise(project(earlier))
        x = self.mout(x)
        return [*xs, x] if self.dense else [x]

    def frames(self, frames):
        """How many frames come out of this many."""
        for module in self.mconv:
            if isinstance(module, MaskedConv1d):
                frames = module.frames(frames)
        return frames


def _convolution(inputs: int, settings: BlockSettings, stride: int) -> list[nn.Module]:
    filters, kernel, dilation = settings.filters, settings.kernel, settings.dilation
    if settings.separable:
        layers = [
            MaskedConv1d(inputs, inputs, kernel, stride, dilation, inputs),
            *_normalised(MaskedConv1d(inputs, filters, 1, groups=settings.groups), filters),
        ]
    else:
        layers = _normalised(MaskedConv1d(inputs, filters, kernel, stride, dilation, settings.groups), filters)
    return [*layers, GroupShuffle(settings.groups)] if settings.groups > 1 else layers


def _normalised(convolution: MaskedConv1d, channels: int) -> list[nn.Module]:
    return [convolution, nn.BatchNorm1d(channels, eps=NORM_EPSILON)]


def _activation(name: str, dropout: float) -> list[nn.Module]:
    return [ACTIVATIONS[name](), nn.Dropout(dropout)]


class ConvEncoder(nn.Module):
    """Features (n, bands, t) to (n, channels, t'), t' = frames(t); `frames` (n,) are each utterance's valid ones."""

    def __init__(self, bands: int, blocks: Sequence[BlockSettings], activation: str = "relu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise IntqError(f"an encoder with the activation {activation!r}: taken are {', '.join(ACTIVATIONS)}")
        self.bands, self.blocks, self.activation = bands, tuple(blocks), activation
        self.encoder = nn.ModuleList()
        channels, panes = bands, []
        for settings in blocks:
            if settings.residual_dense:
                panes.append(channels)
            dense = panes if settings.residual_dense and settings.residual else ()
            self.encoder.append(Block(channels, settings, activation, dense))
            channels = settings.filters
        self.channels = channels

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        xs = [x]
        for block in self.encoder:
            xs, frames = block(xs, frames), None if frames is None else block.frames(frames)
        return xs[-1]

    def frames(self, frames):
        """How many frames come out of this many (an int or a tensor of them)."""
        for block in self.encoder:
            frames = block.frames(frames)
        return frames
