"""What :mod:`intq.emit` writes for networks over frames: convolutions, masks of what lies beyond a recording's end.

Each function is ``take(e, node) -> (value, order of the float axes)`` like those in :mod:`intq.emit`.
"""

from __future__ import annotations

import numpy as np

from intq import dims
from intq.floatgraph import FloatNode
from intq.plan import Quant
from intq.value import Value

MASK = Quant("uint8", 1.0, 0)


def mask_of(e, frames: str, node: FloatNode) -> Value:
    """1 for the frames of (n, frames) that a recording has, 0 for those that its padding in a batch has."""
    key = (frames, "mask")
    if key not in e.made:
        samples, lengths = e.inputs
        _, add, divide = dims.parts(frames)
        name = "mask" if add == 0 and divide == 1 else f"mask.{frames}"
        e.made[key] = e.add("frame_mask", name, [lengths, samples], MASK, node, {"add": add, "divide": divide})
    return e.made[key]


def conv1d(e, node: FloatNode, inputs: list[Value], q: np.ndarray, attrs: dict, constants: dict) -> Value:
    """A convolution over frames; one of a single frame is a linear layer. q: integer weights (co, ci / groups, k)."""
    a, x, quant = node.attrs, inputs[0], e.quants[node.name]
    if q.shape[2] == a["stride"] == a["groups"] == 1 and not any(a["padding"]):
        return e.add("linear", node.name, inputs, quant, node, attrs, constants | {"weight": q[:, :, 0].copy()})
    has = e.plan.eight_bits(node.inputs[0])
    pad = node.parameters["pad"].double().numpy() if "pad" in node.parameters else np.zeros(x.channels)
    constants = constants | {
        "weight": np.ascontiguousarray(q.transpose(0, 2, 1)),
        "pad_value": np.clip(np.rint(pad / has.scale) + has.zero_point, 0, 255).astype(np.uint8),
    }
    attrs = attrs | {key: a[key] for key in ("stride", "padding", "dilation", "groups")}
    if a["padding"][1] and isinstance(x.shape[1], str):  # without it no window reaches beyond a recording's end
        inputs = [*inputs, mask_of(e, x.shape[1], node)]
    return e.add("conv1d", node.name, inputs, quant, node, attrs, constants)


EMIT = {}
