"""A small NeMo checkpoint: its configuration as NeMo's own files have it, weights, and the archive of both."""

import io
import tarfile

import torch
import yaml
from torch import nn

from intq.speech import nemo, sections
from intq.speech.synthetic import randomize

ASR = "nemo.collections.asr.modules."
# As NeMo's own files have it: lists for numbers, references, and much that only training reads.
QUARTZNET = """
name: &name QuartzNet
model:
  sample_rate: &sample_rate 16000
  repeat: 2
  labels: &labels [" ", "a", "b", "'"]
  train_ds:
    manifest_filepath: ???
    labels: *labels
  preprocessor:
    _target_: nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor
    normalize: "per_feature"
    window_size: 0.02
    sample_rate: *sample_rate
    window_stride: 0.01
    window: "hann"
    features: &n_mels 8
    n_fft: 512
    frame_splicing: 1
    dither: 0.00001
    stft_conv: false
  spec_augment: {_target_: nemo.collections.asr.modules.SpectrogramAugmentation, rect_freq: 50}
  encoder:
    _target_: nemo.collections.asr.modules.ConvASREncoder
    feat_in: *n_mels
    activation: relu
    conv_mask: true
    jasper:
    - {dilation: [1], dropout: 0.0, filters: 12, kernel: [5], repeat: 1, residual: false, separable: true, stride: [2]}
    - {dilation: [1], dropout: 0.1, filters: 12, kernel: [7], repeat: "${model.repeat}", residual: true, stride: [1],
       separable: true, kernel_size_factor: 1.5}
    - {dilation: [2], dropout: 0.0, filters: 10, kernel: [9], repeat: 1, residual: false, separable: true, stride: [1]}
  decoder:
    _target_: nemo.collections.asr.modules.ConvASRDecoder
    feat_in: 10
    num_classes: 4
    vocabulary: *labels
"""


def config(**changes) -> dict:
    """The model's configuration; a change "encoder__activation" is one of its section's settings."""
    model = yaml.safe_load(QUARTZNET)["model"]
    model["encoder"]["jasper"][1]["repeat"] = 2
    for key, value in changes.items():
        section, _, name = key.partition("__")
        (model[section] if name else model)[name or section] = value
    return model


def state(model: dict) -> dict[str, torch.Tensor]:
    """Random weights for a configuration, with the front end's tables, which NeMo keeps beside them."""
    encoder = sections.encoder(model["encoder"])
    _, head, _ = sections.head({"labels": None, "tokenizer": None, **model}, encoder.channels, None)
    parts = nn.ModuleDict({"encoder": encoder, "decoder": head})
    torch.manual_seed(2)
    randomize(parts)
    tables = {"preprocessor.featurizer.window": torch.ones(320), "preprocessor.featurizer.fb": torch.ones(1, 8, 257)}
    return {**tables, **parts.state_dict()}


def saved(values) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def write_nemo(path, model, values=None, mode="w", **files):
    values = saved(state(model)) if values is None else values
    members = {nemo.CONFIG: yaml.safe_dump(model).encode(), nemo.WEIGHTS: values, **files}
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path
