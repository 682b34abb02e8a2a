"""Conformer (Gulati et al., 2020) under NeMo's names: attention and convolution between two half feed-forwards.

    x = x + FFN1(x) / 2;  x = x + Attention(x);  x = x + Convolution(x);  x = x + FFN2(x) / 2;  x = LayerNorm(x)

each on LayerNorm(x). Attention knows how far apart two frames are (Dai et al., Transformer-XL, 2019, section 3.3), or
nothing about positions: then the convolutions alone tell order. With `frames`, padding is masked as in
`intq.speech.models.convolutional`; without, nothing is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from intq import operators  # noqa: F401 (relative_scores)
from intq.errors import IntqError
from intq.speech.models.convolutional import valid

LONGEST = 1639  # frames that the table of distances reaches: a minute at 40 ms, and what is cut off a little later
WAVELENGTHS = 10000.0  # of the slowest position sinusoid, over 2 pi (Vaswani et al., 2017, section 3.5)


@dataclass(frozen=True)
class ConformerSettings:
    """What makes a Conformer.

    bands: of the features. channels, layers, heads: of the encoder; expansion: of its feed-forwards; kernel: of its
    depthwise convolutions, in frames. bias: whether its linear layers and convolutions have one.
    subsampling: "striding" (3x3 convolutions over time and bands, each halving both, `factor` together, of `inner`
    channels, by default the encoder's; then a linear layer), "dw_striding" (the same, all but the first depthwise and
    pointwise), or "conv1d" (one convolution over time that halves it). scaled: times sqrt(channels) behind that.
    positions: whether attention knows distances.
    """

    bands: int
    channels: int
    layers: int
    heads: int
    kernel: int = 31
    expansion: int = 4
    subsampling: Literal["striding", "dw_striding", "conv1d"] = "striding"
    factor: int = 4
    inner: int | None = None
    positions: bool = True
    scaled: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("heads", self.heads > 0 and self.channels % self.heads == 0, f"a divisor of {self.channels} channels"),
            ("channels", self.channels % 2 == 0 or not self.positions, "even"),
            ("kernel", self.kernel % 2 == 1, "odd"),
            ("factor", self.factor > 1 and self.factor & (self.factor - 1) == 0, "a power of two above 1"),
            ("factor", self.subsampling != "conv1d" or self.factor == 2, "2 for conv1d"),
        ):
            if not holds:
                raise IntqError(f"a Conformer's {name} must be {expected}, found {getattr(self, name)}")


class Subsampling2d(nn.Module):
    """Features (n, bands, t) to (n, t / factor, channels), in convolutions of time by bands."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        inner, bands = settings.inner or settings.channels, settings.bands
        layers: list[nn.Module] = []
        for index in range(settings.factor.bit_length() - 1):
            if index and settings.subsampling == "dw_striding":
                layers += [nn.Conv2d(inner, inner, 3, 2, 1, groups=inner), nn.Conv2d(inner, inner, 1)]
            else:
                layers.append(nn.Conv2d(inner if index else 1, inner, 3, 2, 1))
            layers.append(nn.ReLU())
            bands = halved(bands)
        self.conv = nn.Sequential(*layers)
        self.out = nn.Linear(inner * bands, settings.channels)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = x.transpose(1, 2)[:, None]  # (n, 1, t, bands)
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) and frames is not None:
                x, frames = x * valid(frames, x[..., 0])[..., None], halved(frames)
            x = layer(x)
        return self.out(x.transpose(1, 2).flatten(2))  # (n, t, channels * bands)


class Subsampling1d(nn.Module):
    """Features (n, bands, t) to (n, t / 2, channels), in one convolution over time."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(settings.bands, settings.channels, 3, 2, 1), nn.GELU())

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        return self.conv(x if frames is None else x * valid(frames, x)).transpose(1, 2)


def halved(frames):
    """How many places a window of 3, padded by 1 and moved by 2, has."""
    return (frames - 1) // 2 + 1


class Attention(nn.Module):
    """softmax(((q + u) k' + shift((q + v) r')) / sqrt(d)) v, with r the projected sinusoids of all distances.

    Without positions the common softmax(q k' / sqrt(d)) v.
    """

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        channels, self.heads = settings.channels, settings.heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (
            nn.Linear(channels, channels, bias=settings.bias) for _ in range(4)
        )
        if settings.positions:
            self.linear_pos = nn.Linear(channels, channels, bias=False)
            self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, channels // self.heads))
            self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, channels // self.heads))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (n, heads, t, d)

    def forward(self, x: Tensor, distances: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """x (n, t, C), distances (2 L - 1, C) from L - 1 to 1 - L, mask (n, 1, 1, t) of 0 and -inf, to (n, t, C)."""
        q, k, v = self.linear_q(x), self.linear_k(x), self.linear_v(x)
        scores = mask
        if distances is not None:
            table = self._split(self.linear_pos(distances))  # (heads, 2 L - 1, d)
            scale = 1 / math.sqrt(table.shape[-1])
            scores = torch.ops.intq.relative_scores(q + self.pos_bias_v.flatten(), table, scale)
            scores = scores if mask is None else scores + mask
            q = q + self.pos_bias_u.flatten()
        x = functional.scaled_dot_product_attention(*map(self._split, (q, k, v)), attn_mask=scores)
        return self.linear_out(x.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """W2 swish(BatchNorm(depthwise(GLU(W1 x))))."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        channels, kernel, bias = settings.channels, settings.kernel, settings.bias
        self.pointwise_conv1 = nn.Conv1d(channels, 2 * channels, 1, bias=bias)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel, 1, kernel // 2, groups=channels, bias=bias)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.pointwise_conv2 = nn.Conv1d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = functional.glu(self.pointwise_conv1(x.transpose(1, 2)), 1)
        x = self.depthwise_conv(x if frames is None else x * valid(frames, x))
        return self.pointwise_conv2(functional.silu(self.batch_norm(x))).transpose(1, 2)


class FeedForward(nn.Module):
    """W2 swish(W1 x)."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        channels, hidden = settings.channels, settings.channels * settings.expansion
        self.linear1 = nn.Linear(channels, hidden, bias=settings.bias)
        self.linear2 = nn.Linear(hidden, channels, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(functional.silu(self.linear1(x)))


class Layer(nn.Module):
    """One Conformer block: the module's formula."""

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        channels = settings.channels
        self.norm_feed_forward1, self.feed_forward1 = nn.LayerNorm(channels), FeedForward(settings)
        self.norm_self_att, self.self_attn = nn.LayerNorm(channels), Attention(settings)
        self.norm_conv, self.conv = nn.LayerNorm(channels), Convolution(settings)
        self.norm_feed_forward2, self.feed_forward2 = nn.LayerNorm(channels), FeedForward(settings)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, x: Tensor, distances: Tensor | None, frames: Tensor | None, mask: Tensor | None) -> Tensor:
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), distances, mask)
        x = x + self.conv(self.norm_conv(x), frames)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)


class ConformerEncoder(nn.Module):
    """Features (n, bands, t) to (n, channels, t'), t' = frames(t); `frames` (n,) are each utterance's valid ones.

    With positions t' may be up to LONGEST.
    """

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__()
        self.settings, self.bands, self.channels = settings, settings.bands, settings.channels
        self.pre_encode = (Subsampling1d if settings.subsampling == "conv1d" else Subsampling2d)(settings)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.layers))
        if settings.positions:
            self.register_buffer("distances", sinusoids(settings.channels), persistent=False)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = self.pre_encode(x, frames)  # (n, t, C)
        if self.settings.scaled:
            x = x * math.sqrt(self.settings.channels)
        t, distances, mask = x.shape[1], None, None
        if self.settings.positions:
            if t > LONGEST:
                raise IntqError(f"a Conformer with positions takes up to {LONGEST} frames, found {t}: cut the audio")
            distances = self.distances
        if frames is not None:
            frames = self.frames(frames)
            mask = torch.log(valid(frames, x.transpose(1, 2)))[:, None]  # (n, 1, 1, t)
        for layer in self.layers:
            x = layer(x, distances, frames, mask)
        return x.transpose(1, 2)

    def frames(self, frames):
        """How many frames come out of this many (an int or a tensor of them)."""
        for _ in range(self.settings.factor.bit_length() - 1):
            frames = halved(frames)
        return frames


def sinusoids(channels: int) -> Tensor:
    """(2 * LONGEST - 1, channels): sin and cos, by turns, of the distances from LONGEST - 1 down to 1 - LONGEST."""
    distance = torch.arange(LONGEST - 1, -LONGEST, -1, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float32) * -(math.log(WAVELENGTHS) / channels))
    return torch.stack([torch.sin(distance * rate), torch.cos(distance * rate)], -1).flatten(1)
