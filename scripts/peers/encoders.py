"""Transformer encoders for the peers: exported once for any batch and length, quantized in each engine's fastest way.

What was tried on RoBERTa-base (1 x 128 tokens, 2 threads, AMX), and is slower or no faster:

    ONNX Runtime, dynamic   without fused attention, GELU and LayerNorm: +23 %; scaled dot product attention, not fused:
                            the same; weights per channel: +3 %; unsigned weights: +224 %; shapes fixed: the same
    ONNX Runtime, static    QDQ: +5 %; products alone: +15 %; of the fused network, whose operators it does not take and
                            leaves in float: +200 % and more
    OpenVINO                of torch's own export: the same; mixed preset: +3 %; without SmoothQuant: the same; float32
                            between the products: +8 %; shapes left open: +5 % (the worker closes them)
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from engines import Entry, OnnxRuntime, cached, processor, quantize_onnxruntime, quantize_openvino, quiet
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

STATIC = OnnxRuntime("QOperator", "QUInt8", "QInt8")


class Published(nn.Module):
    """A text classifier as transformers has it, of ids alone as all engines get them: int64 (n, s) -> logits.

    Its mask is two-dimensional, as users give it: the exporters' patterns know the graph that comes of it.
    """

    def __init__(self, model: PreTrainedModel, padding: int, separator: int | None):
        super().__init__()
        self.model, self.padding, self.separator = model, padding, separator
        self.train(model.training)  # exporters give every part the mode of the whole

    def forward(self, ids: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": (ids != self.padding).long()}
        if self.separator is not None:
            ends = (ids == self.separator).long()
            given["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=self.model.config.type_vocab_size - 1)
        return self.model(**given).logits


def prepare(
    name: str, module: nn.Module, calibration: Sequence[np.ndarray], axes: Mapping[int, str], x: Path
) -> list[Entry]:
    """Every peer's int8 network and torch's float32 one, made now or found in the cache, to be run on the array in x.

    module: a network of one input with a transformers model in it. calibration: such inputs. axes: their dimensions
    that stay open, by name.
    """

    def build(folder: Path) -> None:
        example = torch.from_numpy(calibration[0])
        export_torch(module, example, axes, folder / "float32.pt2")
        with eager(module):
            onnx = export_onnx(module, example, axes, folder / "float32.onnx")
        quantize_dynamic(onnx, folder / "dynamic.onnx", transformer(module).config)
        quantize_onnxruntime(onnx, calibration, folder / "static.onnx", STATIC)
        quantize_encoder_openvino(onnx, calibration, folder / "int8.xml")
        onnx.unlink()

    key = [Path(__file__).read_bytes(), processor(), *map(version, ("torch", "onnxruntime", "openvino", "nncf"))]
    folder = cached(name, [*key, *module.state_dict().values(), *calibration], build)
    return [
        Entry("onnxruntime", "int8 dynamic", folder / "dynamic.onnx", x),
        Entry("onnxruntime", "int8 static", folder / "static.onnx", x),
        Entry("openvino", "int8", folder / "int8.xml", x),
        Entry("torch", "float32", folder / "float32.pt2", x),
    ]


def transformer(module: nn.Module) -> PreTrainedModel | None:
    """The outermost transformers model in a network, if there is one."""
    return next((each for each in module.modules() if isinstance(each, PreTrainedModel)), None)


@contextlib.contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """With attention written out in products and softmax: the form whose fusions ONNX Runtime knows."""
    model = transformer(module)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def export_torch(module: nn.Module, x: Tensor, axes: Mapping[int, str], path: Path) -> Path:
    """Write a float32 network as a torch.export program."""
    open_dimensions = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    example = x.repeat(2, *[1] * (x.dim() - 1))  # a size of one would be taken for fixed
    with quiet(), torch.no_grad():
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(open_dimensions,)), path)
    return path


def export_onnx(module: nn.Module, x: Tensor, axes: Mapping[int, str], path: Path) -> Path:
    """Write a network as ONNX."""
    names = {"input_names": ["x"], "output_names": ["y"]}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module, (x,), path, dynamo=False, opset_version=17, dynamic_axes={"x": dict(axes), "y": {0: "n"}}, **names
        )
    return path


def quantize_dynamic(onnx: Path, path: Path, config: PreTrainedConfig) -> Path:
    """ONNX Runtime's dynamic quantization, weights per tensor, after the fusions of its transformers tools."""
    from onnx import TensorProto
    from onnxruntime import quantization
    from onnxruntime.transformers import optimizer

    fused = path.with_suffix(".fused.onnx")
    with quiet():
        optimizer.optimize_model(
            str(onnx),
            model_type="vit" if config.model_type in ("vit", "deit") else "bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
            opt_level=0,
        ).save_model_to_file(str(fused))
        quantization.quantize_dynamic(
            fused,
            path,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # shapes do not pass through its own operators
        )
    fused.unlink()
    return path


def quantize_encoder_openvino(onnx: Path, calibration: Sequence[np.ndarray], path: Path) -> Path:
    """NNCF's post-training quantization with its settings for transformers."""
    import nncf

    return quantize_openvino(
        onnx,
        calibration,
        path,
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
    )
