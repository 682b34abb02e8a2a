"""scripts/train_speech, from the corpus to the .nemo file and the table, with a tiny network that learns tones."""

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import soundfile
import torch

from intq.speech.models.convolutional import BlockSettings

RATE = 16000
WORDS = ("ab", "ba", "aab", "bb")
TONES = {"a": 500, "b": 1500, " ": 3000}


def spoken(text, generator):
    """A tone of a tenth of a second for each letter, with a little silence around it, and noise."""
    letters = [
        np.concatenate(
            [np.zeros(800), 4000 * np.sin(2 * np.pi * TONES[letter] * np.arange(1600) / RATE), np.zeros(800)]
        )
        for letter in text
    ]
    samples = np.concatenate(letters)
    return (samples + generator.normal(0, 30, len(samples))).astype(np.int16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for number, (split, count) in enumerate((("train", 120), ("dev", 6), ("test", 6), ("test-other", 2)), start=1):
        chapter = folder / split / str(number) / "1"
        chapter.mkdir(parents=True)
        texts = [" ".join(generator.choice(WORDS, generator.integers(1, 4))) for _ in range(count)]
        for index, text in enumerate(texts):
            soundfile.write(chapter / f"{number}-1-{index:04d}.flac", spoken(text, generator), RATE)
        lines = "".join(f"{number}-1-{index:04d} {text.upper()}\n" for index, text in enumerate(texts))
        (chapter / f"{number}-1.trans.txt").write_text(lines)
    return folder


@pytest.fixture
def train(root, monkeypatch):
    """The module, with a network that is trained in seconds."""
    monkeypatch.syspath_prepend(root / "scripts" / "speech")
    import train

    blocks = (BlockSettings(24, 11, stride=2, separable=True), BlockSettings(24, 9, stride=2, separable=True))
    monkeypatch.setattr(train, "NETWORK", replace(train.NETWORK, encoder=(*blocks, BlockSettings(32, 1))))
    monkeypatch.setattr(train, "BATCH", 600)
    monkeypatch.setattr(train, "RATE_PEAK", 2e-2)
    return train


def test_trains_once_and_the_file_answers_as_the_network_did(train, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "corpus", lambda hours, seed: made)
    assert train.main(["--epochs", "4", "--json"]) == 0
    shown = capsys.readouterr()
    row, other = rows = json.loads(shown.out)
    assert "epoch 4 of 4" in shown.err
    assert (row["task"], row["examples"], row["data"]) == ("speech-recognition", 6, str(made))
    assert (row["split"], other["split"], other["examples"]) == ("test", "test-other", 2)
    assert row["metrics"]["wer"] < 0.5 and row["metrics"]["cer"] < 0.2, shown.err
    assert row["model"] == str(tmp_path / "speech-models" / "quartznet-small-6-hours-4-epochs-seed-0.nemo")
    assert train.main(["--epochs", "4", "--json"]) == 0  # not trained again
    shown = capsys.readouterr()
    assert json.loads(shown.out) == [each | {"seconds": 0.0} for each in rows] and "epoch" not in shown.err
    assert train.main(["--epochs", "4"]) == 0
    assert "WER" in capsys.readouterr().out


def test_a_missing_asset_is_one_sentence_and_2(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    import make

    monkeypatch.setattr(make, "fetch", lambda name: None)
    assert train.main([]) == 2
    assert "run scripts/fetch_data" in capsys.readouterr().err


def test_the_fast_way_is_the_same_function_with_the_same_gradient(train):
    torch.manual_seed(0)
    network = train.NETWORK.build().train()
    encoder, head = network.encoder, network.decoder
    x, frames = torch.randn(3, 64, 50), torch.tensor([50, 41, 30])

    def run():
        network.zero_grad()
        logits = head(encoder(x, frames))
        logits.square().sum().backward()
        return logits.detach(), [weight.grad.clone() for weight in network.parameters()]

    slow = run()
    train.fast(network)
    fast = run()
    train.slow(network)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-3)
    assert not any("forward" in vars(module) for module in network.modules())


def test_every_utterance_is_in_one_batch_of_similar_ones(train, made, monkeypatch):
    from intq.speech.data import librispeech

    heard = train.hear(librispeech(made / "train"), lambda done, total: None)
    assert heard.features[0].dtype == torch.float16 and len(heard.labels[0]) == len(heard.texts[0])
    first, second = (list(train.batches(heard, np.random.default_rng(seed))) for seed in (0, 1))
    assert first != second
    for batches in (first, second, train.batches(heard, None)):
        assert sorted(chain.from_iterable(batches)) == list(range(120))
    for batch in first:
        x, frames = train.padded(heard, batch)
        assert x.shape[0] * x.shape[2] <= 600 or len(batch) == 1
        assert all(not row[:, length:].any() for row, length in zip(x, frames.tolist(), strict=True))


def test_augmenting_keeps_the_bands_and_scales_the_lengths(train):
    generator = np.random.default_rng(0)
    x, frames = torch.randn(4, 64, 200), torch.tensor([200, 180, 150, 12])
    for _ in range(20):
        new, lengths = train.augment(x, frames, generator)
        factor = new.shape[2] / 200
        assert new.shape[:2] == (4, 64) and abs(factor - 1) <= train.STRETCH + 0.01
        assert int(lengths.max()) == new.shape[2] and (lengths - frames * factor).abs().max() <= 1
