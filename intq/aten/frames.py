"""Networks over frames: convolutions of (n, c, frames), the front end of a recogniser, the mean over all frames.

Frames come before channels in the graph, as tokens do: each function permutes what it takes and what it gives, and
:func:`intq.frames.channels_last` lets neighbouring permutes vanish.
"""

from __future__ import annotations

from intq.aten.build import Unsupported, parameter, swapped, takes, to_channels, to_frames
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
    x = to_frames(build, input)
    parameters = {"weight": weight, "bias": bias_of(bias, weight)}
    attrs = {"stride": _one(stride), "padding": sides, "dilation": dilation, "groups": int(groups)}
    y = build.emit("conv1d", x, shape=swapped(build.shape), parameters=parameters, **attrs)
    return to_channels(build, y)


@takes("adaptive_avg_pool1d")
def _adaptive_avg_pool1d(build, self, output_size):
    if _one(output_size) != 1:
        raise Unsupported(f"only the mean over all frames is taken, got an output of {_one(output_size)}")
    n, channels, _ = build.shapes[self]
    mean = build.emit("mean_tokens", to_frames(build, self), shape=(n, channels))
    return build.emit("reshape", mean)


@takes("log_mel")
def _log_mel(build, samples, settings, lengths=None):
    return build.emit("log_mel", samples, settings=settings)


@takes("normalize_frames")
def _normalize_frames(build, x, epsilon, correction, mask=None):
    return build.emit("normalize_frames", x, epsilon=float(epsilon), correction=int(correction))
