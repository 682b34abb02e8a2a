"""Trained weights that packages ship: the networks give what the packages' own runtimes give."""

import struct

import numpy as np
import onnxruntime
import pytest
import torch

from intq import domains
from intq.errors import IntqError
from intq.frontend import mel_filters
from intq.speech import assets, domain, packages
from intq.speech.checkpoint import load
from intq.speech.synthetic import random_audio

# What hama 1.7.0's own engine makes of random_audio(1, 24000, seed=7): each frame's label, and the log-probability of
# every eighth frame's.
LABELS = {8: 189, 12: 34, 24: 189, 30: 34, 36: 189, 39: 101, 45: 13, 48: 125, 51: 39}  # all others are blank, 190
PROBABILITIES = [-0.0593, -0.7621, -0.4737, -0.4983, -0.3267, -0.0393, -1.0276, -0.0138, -0.0041, -0.0544]


@pytest.fixture(scope="module", autouse=True)
def _fetched():
    for name in packages.PACKAGED:
        assets.fetch(name)


def test_their_names_are_checkpoints():
    assert set(domain.PACKAGED) == set(packages.PACKAGED)
    assert all(domains.of_checkpoint(name) is domain for name in domain.PACKAGED)


def test_marblenet_is_its_onnx():
    found = load("marblenet")
    assert (found.head, found.labels, found.sample_rate) == ("frames", ("background", "speech"), 16000)
    session = onnxruntime.InferenceSession(found.source, providers=["CPUExecutionProvider"])
    for seed in (1, 2):
        half = (random_audio(1, 16000, seed=seed) * 32768).astype(np.int16).clip(-32767)
        samples = np.concatenate([half, -half], 1)  # the export takes off the mean, so here it is 0
        silent, active, _ = session.run(None, {session.get_inputs()[0].name: samples[None]})
        expected = torch.from_numpy(np.concatenate([silent, active], -1))
        assert expected.shape == (1, 101, 2) and expected[..., 1].std() > 0.03
        logits = found.model(torch.from_numpy(samples / np.float32(32768)))
        torch.testing.assert_close(logits.softmax(-1), expected, rtol=0, atol=2e-5)


def test_hama_is_its_engine():
    found = load("hama")
    assert (found.head, found.sample_rate, len(found.labels)) == ("ctc", 16000, 190)
    assert found.labels[7:9] == ("a", "aɪ") and found.labels[-1] == " "
    tensors = packages.tensors_of((assets.asset("hama") / "asr_waveform.hama").read_bytes(), "it")
    np.testing.assert_allclose(mel_filters(found.model.front.front), tensors["mel_fb"].T, atol=1e-7)
    samples = torch.from_numpy(random_audio(1, 24000, seed=7))
    scores = found.model(samples)[0].log_softmax(-1)
    assert {frame: label for frame, label in enumerate(scores.argmax(-1).tolist()) if label != 190} == LABELS
    assert scores.amax(-1)[::8].tolist() == pytest.approx(PROBABILITIES, abs=2e-3)


def test_files_that_are_not_hamas():
    content = (assets.asset("hama") / "asr_waveform.hama").read_bytes()
    for wrong in (content[:1000], content[:-1], b"", content[:12], struct.pack("<6sBBI", b"HAMAPK", 1, 2, 2**31)):
        with pytest.raises(IntqError, match=r"it is no whole \.hama file"):
            packages.tensors_of(wrong, "it")
    with pytest.raises(IntqError, match=r"it is no \.hama file of version 1: it begins with b'PK"):
        packages.tensors_of(b"PK" + content[2:], "it")
