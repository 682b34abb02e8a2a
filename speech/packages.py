"""Trained weights that packages ship in formats of their own, under NeMo's parameter names (see intq.speech.assets)."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intq.errors import IntqError
from intq.frontend import FrontEnd
from intq.speech.models import VOICE, architecture


class Offset(nn.Module):
    """x + bias, for x (n, channels, t): what is left of a BatchNorm once it is folded into the convolution before it.

    The statistics of the training data are lost then, so this is none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x.transpose(1, 2) + self.bias).transpose(1, 2)


@dataclass(frozen=True)
class Packaged:
    """Weights for the architecture of the same name; its front end and its labels, where the package has its own.

    Of a BatchNorm that was folded into the convolution before it ``state`` has the bias alone.
    """

    state: Mapping[str, Tensor]
    front: FrontEnd
    labels: tuple[str, ...]


def marblenet(path: Path) -> Packaged:
    """NVIDIA's MarbleNet for voice activity, from an ONNX file into which it was exported with its front end.

    The export's spectra have a periodic window and another guard than NeMo's, and so has the front end here. It also
    takes the mean off the samples, which changes nothing in recordings without an offset.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    values = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state: dict[str, Tensor] = {}
    for node in graph.node:
        if found := re.fullmatch(r"/encoder/(encoder/encoder\.\d+/(?:mconv|res\.0))\.(\d+)/conv/Conv", node.name):
            place, index = "encoder." + found[1].replace("/encoder.", ".").replace("/", "."), int(found[2])
            state[f"{place}.{index}.conv.weight"] = values[node.input[1]]
            if len(node.input) > 2:
                state[f"{place}.{index + 1}.bias"] = values[node.input[2]]  # of the BatchNorm
        elif node.name == "/decoder/layer0/MatMul":
            state["decoder.layer0.weight"] = values[node.input[1]].T
        elif node.name == "/decoder/layer0/Add":
            state["decoder.layer0.bias"] = values[node.input[0]]
    front = FrontEnd(16000, 400, 160, 512, 80, periodic=True, guard=1e-7, normalize="none", extra_frame=True)
    return Packaged(state, front, VOICE)


# hama's names of a block's parts (LayerNorms, feed-forwards, convolutions) and NeMo's.
_PARTS = {
    "ffn1.norm": "norm_feed_forward1",
    "ffn1.fc1": "feed_forward1.linear1",
    "ffn1.fc2": "feed_forward1.linear2",
    "attn_norm": "norm_self_att",
    "attn.out_proj": "self_attn.linear_out",
    "conv.norm": "norm_conv",
    "conv.pointwise1": "conv.pointwise_conv1",
    "conv.pointwise2": "conv.pointwise_conv2",
    "ffn2.norm": "norm_feed_forward2",
    "ffn2.fc1": "feed_forward2.linear1",
    "ffn2.fc2": "feed_forward2.linear2",
    "norm": "norm_out",
}
_MATRICES = ("ffn1.fc1", "ffn1.fc2", "attn.in_proj", "attn.out_proj", "ffn2.fc1", "ffn2.fc2")  # a block's, in order
_TYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


def hama(folder: Path) -> Packaged:
    """hama's recogniser of phonemes: a Conformer without positions behind one convolution, exported from PyTorch.

    Its matrices and folded convolutions have lost their names and stand in the order of the network.
    """
    tensors = tensors_of((folder / "asr_waveform.hama").read_bytes(), "asr_waveform.hama")
    place = "acoustic_model.model."
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if found := re.fullmatch(rf"{re.escape(place)}blocks\.(\d+)\.(\S+)\.(weight|bias)", name):
            state[f"encoder.layers.{found[1]}.{_PARTS[found[2]]}.{found[3]}"] = value
    stem, *depthwise = _pairs(value for name, value in tensors.items() if name.startswith("onnx::Conv_"))
    matrices = [value.T for name, value in tensors.items() if name.startswith("onnx::MatMul_")]
    for index, (weight, bias) in enumerate(depthwise):
        block = f"encoder.layers.{index}"
        state |= {f"{block}.conv.depthwise_conv.weight": weight, f"{block}.conv.depthwise_conv.bias": 0 * bias}
        state[f"{block}.conv.batch_norm.bias"] = bias
        own = dict(zip(_MATRICES, matrices[index * len(_MATRICES) :][: len(_MATRICES)], strict=True))
        biases = tensors[f"{place}blocks.{index}.attn.in_proj_bias"].chunk(3)
        for letter, part, bias in zip("qkv", own.pop("attn.in_proj").chunk(3), biases, strict=True):
            state |= {
                f"{block}.self_attn.linear_{letter}.weight": part,
                f"{block}.self_attn.linear_{letter}.bias": bias,
            }
        state |= {f"{block}.{_PARTS[name]}.weight": value for name, value in own.items()}
    for name, value in zip(("weight", "bias"), stem, strict=True):
        state[f"encoder.pre_encode.conv.0.{name}"] = value
        state[f"decoder.decoder_layers.0.{name}"] = tensors[f"{place}proj.{name}"]
    labels = json.loads((folder / "g2p_vocab.json").read_text(encoding="utf-8"))["decoder"]
    return Packaged(state, architecture("hama").front, (*labels, " "))  # the last one is the boundary of words


def _pairs(values) -> list[tuple[Tensor, Tensor]]:
    values = list(values)
    return list(zip(values[::2], values[1::2], strict=True))


def tensors_of(content: bytes, source: str) -> dict[str, Tensor]:
    """{name: float32} of a .hama file: "HAMAPK", version, kind, count, a table, and from a multiple of 16 on the data.

    A line of the table: name (its length first), type, rank, sizes, offset into the data, bytes; little-endian.
    Raises IntqError when it is damaged or of another kind.
    """
    tensors: dict[str, Tensor] = {}
    try:
        magic, version, _, count = struct.unpack_from("<6sBBI", content)
        if (magic, version) != (b"HAMAPK", 1):
            raise IntqError(f"{source} is no .hama file of version 1: it begins with {content[:7]!r}")
        place, lines = 12, []
        for _ in range(count):
            (length,) = struct.unpack_from("<H", content, place)
            name = content[place + 2 : place + 2 + length].decode()
            kind, rank = struct.unpack_from("<BB", content, place + 2 + length)
            place += 4 + length
            *shape, offset, _ = struct.unpack_from(f"<{rank}IQQ", content, place)
            place += 4 * rank + 16
            lines.append((name, _TYPES[kind], shape, offset))
        start = -(-place // 16) * 16
        for name, kind, shape, offset in lines:
            values = np.frombuffer(content, kind, math.prod(shape), start + offset)
            tensors[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise IntqError(f"{source} is no whole .hama file ({error})") from error
    return tensors


PACKAGED: dict[str, Callable[[Path], Packaged]] = {"marblenet": marblenet, "hama": hama}
