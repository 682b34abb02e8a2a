"""The peers' int8 text networks for accuracy: each in the settings that keep it closest to float, and in common ones.

They get one sentence at a time, without padding: no range is widened by what is not there.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from encoders import Published, eager, export_onnx, quantize_dynamic
from engines import FLOAT32, OnnxRuntime, quantize_onnxruntime, quantize_openvino, quiet

from intq.nlp.checkpoint import Checkpoint

AXES = {0: "n", 1: "s"}
Predict = Callable[[np.ndarray], np.ndarray]  # ids int32 (n, s) -> real scores (n, classes)


def peers(
    checkpoint: Checkpoint, batches: Sequence[np.ndarray], folder: Path
) -> dict[tuple[str, str], Callable[[], Predict]]:
    """(engine, settings) -> what quantizes the checkpoint so, with the ids as calibration, and gives the predictor."""
    import nncf

    sentences = [row[row != checkpoint.padding][None].astype(np.int64) for ids in batches for row in ids]
    config = checkpoint.model.model.config
    module = Published(checkpoint.model.model, checkpoint.padding, checkpoint.separator).eval()
    with eager(module):
        onnx = export_onnx(module, torch.from_numpy(sentences[0]), AXES, folder / "float32.onnx")

    def openvino_network(preset: nncf.QuantizationPreset) -> Predict:
        options = {"model_type": nncf.ModelType.TRANSFORMER, "preset": preset}
        return openvino(quantize_openvino(onnx, sentences, folder / "int8.xml", **options))

    found = {
        ("openvino", f"NNCF for transformers, {preset.value}"): partial(openvino_network, preset)
        for preset in (nncf.QuantizationPreset.MIXED, nncf.QuantizationPreset.PERFORMANCE)
    }
    found["onnxruntime", "dynamic, per channel"] = lambda: onnxruntime(per_channel(onnx, folder / "channels.onnx"))
    found["onnxruntime", "dynamic, fused"] = lambda: onnxruntime(quantize_dynamic(onnx, folder / "fused.onnx", config))
    found["onnxruntime", "static, all operators"] = lambda: onnxruntime(
        quantize_onnxruntime(onnx, sentences, folder / "static.onnx", OnnxRuntime())
    )
    return found


def per_channel(onnx: Path, path: Path) -> Path:
    """ONNX Runtime's dynamic quantization of the plain network, a scale for each of the weights' channels."""
    from onnxruntime import quantization

    with quiet():
        quantization.quantize_dynamic(onnx, path, weight_type=quantization.QuantType.QInt8, per_channel=True)
    return path


def onnxruntime(network: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"x": ids.astype(np.int64)})[0]


def openvino(network: Path) -> Predict:
    """What is not int8 is float32, as in the other engines."""
    import openvino

    request = openvino.Core().compile_model(network, "CPU", FLOAT32).create_infer_request()
    return lambda ids: np.array(request.infer({0: ids.astype(np.int64)})[0])
