"""Speech networks for the peers: encoder and head, given the features that intq computes from samples itself.

What was tried on QuartzNet 5x5 (10 s of audio, 1 thread, AMX), and is slower or no faster:

    all                     convolutions over time, not over a plane of height 1: OpenVINO +9 %, torch +130 %, ONNX
                            Runtime the same
    OpenVINO                mixed preset: +32 %; shapes left open: +3 % (the worker closes them)
    ONNX Runtime, static    QDQ of signed activations: twice the time
    ONNX Runtime, dynamic   convolutions' weights signed: five times the time; per tensor: +2 %
"""

import copy
import json
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

from intq.speech.models.conformer import ConformerEncoder
from intq.speech.models.convolutional import SqueezeExcite
from intq.speech.models.network import SpeechModel

# Of what OpenVINO computes between int8 products; by default it is bfloat16 where the processor has that.
PRECISIONS = {"the rest in its own choice": {}, "the rest in float32": FLOAT32}


class Network(nn.Module):
    """The encoder and the head of a speech model: features float32 (n, bands, frames) to logits.

    Where the encoder is all convolutions over time, they are made ones over a plane of height 1 whose channels lie
    together. That is the same sums (to 0.0 in torch), and the form whose kernels the engines have made fast.
    """

    def __init__(self, model: SpeechModel) -> None:
        super().__init__()
        self.plane = not any(isinstance(each, ConformerEncoder | SqueezeExcite) for each in model.modules())
        self.encoder = _planar(model.encoder) if self.plane else model.encoder
        self.decoder = model.decoder
        self.train(model.training)  # exporters give every part the mode of the whole

    def forward(self, x: Tensor) -> Tensor:
        if self.plane:
            x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        x = self.encoder(x)
        return self.decoder(x.squeeze(2) if self.plane else x)


def _planar(encoder: nn.Module) -> nn.Module:
    """A copy of the encoder for x (n, C, 1, t)."""
    encoder = copy.deepcopy(encoder)
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.Conv1d):
            sizes = module.in_channels, module.out_channels, (1, *module.kernel_size), (1, *module.stride)
            places = (0, *module.padding), (1, *module.dilation)
            made = nn.Conv2d(*sizes, *places, module.groups, module.bias is not None)
            made.load_state_dict(module.state_dict() | {"weight": module.weight[:, :, None]})
        elif isinstance(module, nn.BatchNorm1d):
            made = nn.BatchNorm2d(module.num_features, module.eps)
            made.load_state_dict(module.state_dict())
        else:
            continue
        encoder.set_submodule(name, made.train(module.training).requires_grad_(False))
    return encoder


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
            quantization.quantize_dynamic(
                source,
                target,
                op_types_to_quantize=[operator],
                weight_type=quantization.QuantType[weight],
                per_channel=True,
            )
    matrices.unlink()
    return path


def quantize_speech_openvino(onnx: Path, calibration: Sequence[np.ndarray], path: Path, attention: bool) -> Path:
    """NNCF's post-training quantization, with its settings for transformers where there is attention."""
    import nncf

    options = {"model_type": nncf.ModelType.TRANSFORMER} if attention else {}
    return quantize_openvino(onnx, calibration, path, preset=nncf.QuantizationPreset.PERFORMANCE, **options)
