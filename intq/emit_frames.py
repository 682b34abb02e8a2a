"""What :mod:`intq.emit` writes for networks over frames: convolutions, masks of what lies beyond a recording's end.

Each function is ``take(e, node) -> (value, order of the float axes)`` like those in :mod:`intq.emit`.
"""

from __future__ import annotations

import torch

from intq import dims
from intq.floatgraph import FloatNode
from intq.frontend import FrontEnd, log_mel_node_parts
from intq.ops.frames import normalize_parts
from intq.plan import Quant
from intq.value import Value

FRAMES = (0, 1, 2)  # (n, frames, c)
MASK = Quant("uint8", 1.0, 0)


def mask_of(e, frames: str, node: FloatNode) -> Value:
    """1 for the frames of (n, frames) that a recording has, 0 for those that its padding in a batch has."""
    key = (frames, "mask")
    if key not in e.made:
        samples, lengths = e.inputs
        _, add, divide = dims.parts(frames)
        name = "mask" if add == 0 and divide == 1 else f"mask.{frames}"
        e.made[key] = e.add("frame_mask", name, [samples, lengths], MASK, node, {"add": add, "divide": divide})
    return e.made[key]


def log_mel(e, node: FloatNode):
    attrs, constants, _ = log_mel_node_parts(FrontEnd.from_json(node.attrs["settings"]), e.quants[node.name].scale)
    return e.add("log_mel", node.name, list(e.inputs), e.quants[node.name], node, attrs, constants), FRAMES


def normalize_frames(e, node: FloatNode):
    x, quant = e.in_order(node.inputs[0], FRAMES), e.quants[node.name]
    gamma, beta = (
        node.parameters.get(key, torch.full((x.channels,), default)).double().numpy()
        for key, default in (("weight", 1.0), ("bias", 0.0))
    )
    attrs, constants = normalize_parts(
        e.quants[node.inputs[0]].scale,
        gamma,
        beta,
        quant.scale,
        quant.zero_point,
        quant.storage,
        longest=e.most(x.shape[1]),
        correction=node.attrs["correction"],
        epsilon=node.attrs["inside"],
        deviation_epsilon=node.attrs["epsilon"],
    )
    inputs = [x, *e.kept(node.inputs[0], node)]
    return e.add("normalize_frames", node.name, inputs, quant, node, attrs, constants), FRAMES


EMIT = {"log_mel": log_mel, "normalize_frames": normalize_frames}
