"""The peers' int8 speech networks for accuracy, from features: each in its usual settings and in others that it offers.

They get one recording at a time, without padding, and the features of the float front end.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from encoders import export_onnx
from engines import FLOAT32, OnnxRuntime, quantize_onnxruntime, quantize_openvino
from features import Network, attends, features
from torch import from_numpy

from intq.speech.models.network import SpeechModel

AXES = {0: "n", 2: "t"}
ONNX_RUNTIME = {
    "static, minima and maxima": OnnxRuntime(),
    "static, mean minima and maxima": OnnxRuntime(options=(("CalibMovingAverage", True),)),
}
Predict = Callable[[np.ndarray], np.ndarray]  # samples int16 (1, t) -> real scores (1, frames, labels)


def peers(
    model: SpeechModel, recordings: Sequence[np.ndarray], folder: Path
) -> dict[tuple[str, str], Callable[[], Predict]]:
    """(engine, settings) -> what quantizes the model so, with int16 recordings (1, t), and returns the predictor."""
    heard = [features(model, each) for each in recordings]
    network = Network(model)
    onnx = export_onnx(network, from_numpy(heard[0]), AXES, folder / "float32.onnx")

    def openvino_network(**options) -> Predict:
        return openvino(model, quantize_openvino(onnx, heard, folder / "int8.xml", **options))

    def onnxruntime_network(settings: OnnxRuntime) -> Predict:
        return onnxruntime(model, quantize_onnxruntime(onnx, heard, folder / "int8.onnx", settings))

    found = {("openvino", name): partial(openvino_network, **options) for name, options in _nncf(network).items()}
    return found | {
        ("onnxruntime", name): partial(onnxruntime_network, settings) for name, settings in ONNX_RUNTIME.items()
    }


def _nncf(network: Network) -> dict[str, dict]:
    """Settings of NNCF by name: its own, and what it offers for more accuracy.

    (Convolutions alone have no mixed preset here: OpenVINO 2026.4.0 dies of it on few channels, at the second length.)
    """
    from nncf import ModelType, QuantizationPreset

    if attends(network):
        presets = (QuantizationPreset.MIXED, QuantizationPreset.PERFORMANCE)
        return {
            f"for transformers, {each.value}": {"model_type": ModelType.TRANSFORMER, "preset": each} for each in presets
        }
    return {"performance": {}, "performance, accurate bias correction": {"fast_bias_correction": False}}


def onnxruntime(model: SpeechModel, network: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return lambda samples: session.run(None, {"x": features(model, samples)})[0]


def openvino(model: SpeechModel, network: Path) -> Predict:
    """What is not int8 is float32, as in the other engines."""
    import openvino

    request = openvino.Core().compile_model(network, "CPU", FLOAT32).create_infer_request()
    return lambda samples: np.array(request.infer({0: features(model, samples)})[0])
