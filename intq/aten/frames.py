"""Networks over frames: convolutions of (n, c, frames), the front end of a recogniser, the mean over all frames.

Frames come before channels in the graph, as tokens do: each function permutes what it takes and what it gives, and
:func:`intq.frames.channels_last` lets neighbouring permutes vanish.
"""

from __future__ import annotations

import torch

from intq.aten.build import Unsupported, cut, mean_of_frames, parameter, swap, swapped, takes
from intq.aten.contractions import bias_of


def _one(value) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)


@takes("conv1d")
def _conv1d(build, input, weight, bias, stride, padding, dilation, groups):
    weight, dilation = parameter(weight, "weight"), _one(dilation)
    if padding == "same":
        total = dilation * (weight.shape[2] - 1)
        sides = (total // 2, total - total // 2)
    else:
        sides = (0, 0) if padding == "valid" else (_one(padding),) * 2
    x = swap(build, input)
    parameters = {"weight": weight, "bias": bias_of(bias, weight)}
    attrs = {"stride": _one(stride), "padding": sides, "dilation": dilation, "groups": int(groups)}
    y = build.emit("conv1d", x, shape=swapped(build.shape), parameters=parameters, **attrs)
    return swap(build, y)


@takes("adaptive_avg_pool1d")
def _adaptive_avg_pool1d(build, self, output_size):
    if _one(output_size) != 1:
        raise Unsupported(f"only the mean over all frames is taken, got an output of {_one(output_size)}")
    return mean_of_frames(build, self)


@takes("glu")
def _glu(build, self, dim=-1):
    """a * sigmoid(b) of the two halves of the channels (Dauphin et al. 2017, eq. 1)."""
    rank, axis = len(build.shapes[self]), dim % len(build.shapes[self])
    over_frames = rank == 3 and axis == 1
    x = swap(build, self) if over_frames else self
    shape, axis = build.shapes[x], 2 if over_frames else axis
    half = shape[axis] // 2
    values, gates = (cut(build, x, axis, start, start + half) for start in (0, half))
    gates = build.emit("function", gates, shape=build.shapes[gates], function="sigmoid", arguments={})
    y = build.emit("mul", values, gates, shape=build.shapes[values])
    return swap(build, y) if over_frames else y


@takes("log_mel")
def _log_mel(build, samples, settings, lengths=None):
    return build.emit("log_mel", samples, settings=settings)


@takes("normalize_frames")
def _normalize_frames(build, x, epsilon, correction, mask=None, inside=0.0):
    return build.emit("normalize_frames", x, epsilon=float(epsilon), correction=int(correction), inside=float(inside))


@takes("group_norm")
def _group_norm(build, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=False):
    """A group for each channel over all frames: instance normalisation (Wu and He 2018, section 3.1)."""
    shape = build.shapes[input]
    if len(shape) != 3 or num_groups != shape[1] or not isinstance(shape[2], str):
        raise Unsupported(
            f"taken is a group for each channel of recordings (n, c, frames), got {num_groups} groups of {shape}"
        )
    parameters = {
        "weight": torch.ones(num_groups) if weight is None else parameter(weight, "weight"),
        "bias": torch.zeros(num_groups) if bias is None else parameter(bias, "bias"),
    }
    x, attrs = swap(build, input), {"epsilon": 0.0, "correction": 0, "inside": float(eps)}
    y = build.emit("normalize_frames", x, shape=build.shapes[x], parameters=parameters, **attrs)
    return swap(build, y)
