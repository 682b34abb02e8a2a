"""Speech networks for the peers: encoder and head, given the features that intq computes from samples itself.

What was tried on QuartzNet 5x5 (10 s of audio, 1 thread, AMX), and is slower or no faster:

    all                     convolutions over time, not over a plane of height 1: OpenVINO +9 %, torch +130 %, ONNX
                            Runtime the same
    OpenVINO                mixed preset: +32 %; shapes left open: +3 % (the worker closes them)
    ONNX Runtime, static    QDQ of signed activations: twice the time
    ONNX Runtime, dynamic   convolutions' weights signed: five times the time; weights per channel: the same
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from engines import (
    FLOAT32,
    Entry,
    cached,
    export_onnx,
    fastest,
    fastest_onnxruntime,
    note,
    processor,
    quantize_openvino,
    quiet,
)
from torch import Tensor, nn
from torch.nn import functional

from intq.speech.models.conformer import Attention, ConformerEncoder
from intq.speech.models.convolutional import SqueezeExcite
from intq.speech.models.network import SpeechModel

# Of what OpenVINO computes between int8 products; by default it is bfloat16 where the processor has that.
PRECISIONS = {"the rest in its own choice": {}, "the rest in float32": FLOAT32}


class Network(nn.Module):
    """The encoder and the head of a speech model: features float32 (n, bands, frames) to logits.

    In the form that the engines know and have fast kernels for: `_planar` where the encoder is all convolutions over
    time, `Shifted` attention where it knows distances.
    """

    def __init__(self, model: SpeechModel) -> None:
        super().__init__()
        self.plane = not any(isinstance(each, ConformerEncoder | SqueezeExcite) for each in model.modules())
        self.encoder, self.decoder = copy.deepcopy(model.encoder), model.decoder
        for name, module in list(self.encoder.named_modules()):
            if self.plane and isinstance(module, nn.Conv1d | nn.BatchNorm1d):
                self.encoder.set_submodule(name, _planar(module))
            elif isinstance(module, Attention) and hasattr(module, "linear_pos"):
                self.encoder.set_submodule(name, Shifted(module))
        self.train(model.training).requires_grad_(False)  # exporters give every part the mode of the whole

    def forward(self, x: Tensor) -> Tensor:
        if self.plane:
            x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        x = self.encoder(x)
        return self.decoder(x.squeeze(2) if self.plane else x)


def _planar(module: nn.Conv1d | nn.BatchNorm1d) -> nn.Conv2d | nn.BatchNorm2d:
    """What takes (n, C, 1, t) where this takes (n, C, t): the same sums, to 0.0 in torch."""
    if isinstance(module, nn.BatchNorm1d):
        made = nn.BatchNorm2d(module.num_features, module.eps)
        made.load_state_dict(module.state_dict())
        return made
    channels, sizes = (module.in_channels, module.out_channels), ((1, *module.kernel_size), (1, *module.stride))
    places = (0, *module.padding), (1, *module.dilation)
    made = nn.Conv2d(*channels, *sizes, *places, module.groups, module.bias is not None)
    made.load_state_dict(module.state_dict() | {"weight": module.weight[:, :, None]})
    return made


class Shifted(nn.Module):
    """Attention that knows distances, without intq's own operator: as NeMo exports it, shifted by padding.

    (Dai et al., Transformer-XL, 2019, appendix B.) The distances' table is constant and leaves with its factor.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, distances: Tensor, mask: None = None) -> Tensor:
        this, (n, t, _) = self.attention, x.shape
        q, k, v = (self._split(linear(x)) for linear in (this.linear_q, this.linear_k, this.linear_v))
        table = self._split(this.linear_pos(distances) / math.sqrt(q.shape[-1]))  # (heads, 2 L - 1, d)
        longest = (table.shape[1] + 1) // 2
        near = table[:, longest - t : longest + t - 1].transpose(1, 2)
        scores = functional.pad((q + this.pos_bias_v[:, None]) @ near, (1, 0))  # (n, heads, t, 2 t)
        scores = scores.view(n, this.heads, 2 * t, t)[:, :, 1:].reshape(n, this.heads, t, 2 * t - 1)[..., :t]
        x = functional.scaled_dot_product_attention(q + this.pos_bias_u[:, None], k, v, attn_mask=scores)
        return this.linear_out(x.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.attention.heads, -1)).transpose(-3, -2)  # (n, heads, t, d)


def features(model: SpeechModel, samples: np.ndarray) -> np.ndarray:
    """What the front end of a model makes of int16 samples (n, t): float32 (n, bands, frames)."""
    with torch.inference_mode():
        real = torch.from_numpy(samples.astype(np.float32) / 32768)
        return np.ascontiguousarray(model.cepstra(model.front(real)).numpy())


def prepare(name: str, module: Network, calibration: Sequence[np.ndarray], threads: int) -> list[Entry]:
    """Every peer's int8 network and torch's float32 one, made now or found in the cache.

    calibration: features of one shape, which the networks are made for; the first is also the input that is timed.
    ONNX Runtime and OpenVINO get the settings that are fastest on this processor with `threads` threads.
    """

    def build(folder: Path) -> None:
        np.save(folder / "x.npy", calibration[0])
        export_torch(module, calibration[0], folder / "float32.pt2")
        # Shapes are known once constants are folded; inferring them before that fails at an attention's reshapes.
        onnx = export_onnx(module, calibration[0], folder / "float32.onnx", skip_symbolic_shape=True)
        quantize_dynamic(onnx, folder / "dynamic.onnx")
        fastest_onnxruntime(onnx, calibration, folder, threads)
        quantize_speech_openvino(onnx, calibration, folder / "int8.xml", attends(module))
        fastest(_openvino(folder), threads, folder / "openvino.json")
        onnx.unlink()

    key = [Path(__file__).read_bytes(), processor(), *map(version, ("torch", "onnxruntime", "openvino", "nncf"))]
    folder = cached(name, [*key, str(threads), *module.state_dict().values(), *calibration], build)
    static, x = note(folder / "onnxruntime.json"), folder / "x.npy"
    chosen = next(iter(json.loads((folder / "openvino.json").read_text())))
    return [
        Entry("onnxruntime", "int8 dynamic", folder / "dynamic.onnx", x),
        Entry("onnxruntime", "int8 static", folder / "int8.onnx", x, note=static),
        replace(_openvino(folder)[chosen], note=note(folder / "openvino.json")),
        Entry("torch", "float32", folder / "float32.pt2", x),
    ]


def _openvino(folder: Path) -> dict[str, Entry]:
    """One int8 network with what is between its int8 products in each of the precisions."""
    network, x = folder / "int8.xml", folder / "x.npy"
    return {name: Entry("openvino", "int8", network, x, settings) for name, settings in PRECISIONS.items()}


def attends(module: nn.Module) -> bool:
    """Whether there is attention in a network: the peers' tools have settings of their own for that."""
    return any(isinstance(each, ConformerEncoder) for each in module.modules())


def export_torch(module: nn.Module, x: np.ndarray, path: Path) -> Path:
    """Write a float32 network as a torch.export program for inputs of x's shape."""
    with quiet(), torch.no_grad():
        torch.export.save(torch.export.export(module, (torch.from_numpy(x),)), path)
    return path


def quantize_dynamic(onnx: Path, path: Path) -> Path:
    """ONNX Runtime's dynamic quantization; it has kernels for signed matrices and for unsigned convolutions."""
    from onnxruntime import quantization

    matrices = path.with_suffix(".matrices.onnx")
    with quiet():
        for source, target, operator, weight in (
            (onnx, matrices, "MatMul", "QInt8"),
            (matrices, path, "Conv", "QUInt8"),
        ):
            types = {"weight_type": quantization.QuantType[weight]}
            quantization.quantize_dynamic(source, target, op_types_to_quantize=[operator], **types)
    matrices.unlink()
    return path


def quantize_speech_openvino(onnx: Path, calibration: Sequence[np.ndarray], path: Path, attention: bool) -> Path:
    """NNCF's post-training quantization, with its settings for transformers where there is attention."""
    import nncf

    options = {"model_type": nncf.ModelType.TRANSFORMER} if attention else {}
    return quantize_openvino(onnx, calibration, path, preset=nncf.QuantizationPreset.PERFORMANCE, **options)
