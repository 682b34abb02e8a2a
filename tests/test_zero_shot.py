"""Calibration without data: statistics that fit, the same samples from the same seed, and what it says it did."""

import numpy as np
import pytest
import torch
from commandline import answer, complaint
from text_models import save_tiny, tiny_tokenizer
from torch import nn

import intq
from intq import artifact
from intq.backends import torch as integers
from intq.errors import IntqError
from intq.nlp import domain
from intq.nlp.synthetic import random_texts
from intq.vision.metrics import sqnr_db
from intq.vision.models import architecture
from intq.vision.synthetic import random_images, random_model
from intq.vision.zero_shot import FromPixels, dead_leaves, images_for
from intq.zero_shot import distill, made_for, mismatch, normalisations


def conv_net(dimensions: int = 2, norms: bool = True, seed: int = 0) -> nn.Module:
    """Three convolutions whose BatchNorms, if any, saw samples of mean 1.5 and deviation 2."""
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv2d, nn.BatchNorm2d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for width, channels in ((3, 8), (8, 16), (16, 16)):
            layers += [
                conv(width, channels, 3, padding=1),
                *([norm(channels, momentum=1.0)] if norms else []),
                nn.ReLU(),
            ]
        model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))
        with torch.no_grad():
            model(1.5 + 2 * torch.randn(64, 3, *[12] * dimensions))
    return model.eval()


def noise_of(n: int, dimensions: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, *[12] * dimensions, generator=torch.Generator().manual_seed(seed))


def test_the_mismatch_is_the_one_in_the_docstring():
    model, x = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval(), noise_of(5)
    model[0].running_mean[:], model[0].running_var[:] = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([1.0, 4.0, 0.25])
    inputs, losses = x.numpy().astype(np.float64), []
    for norm in model:
        m, s = norm.running_mean.numpy(), np.sqrt(norm.running_var.numpy() + norm.eps)
        mean, std = inputs.mean((0, 2, 3)), np.sqrt(inputs.var((0, 2, 3)) + norm.eps)
        losses.append((((mean - m) / s) ** 2 + np.log(std / s) ** 2).mean())
        inputs = (inputs - m[:, None, None]) / s[:, None, None]
    assert mismatch(model, x) == pytest.approx(np.sqrt(np.mean(losses)), rel=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_statistics_match_in_front_of_every_batchnorm(dimensions):
    model, start = conv_net(dimensions), noise_of(32, dimensions)
    axes = (0, *range(2, 2 + dimensions))
    samples = distill(model, start, steps=60, close=0.0)
    assert samples.shape == start.shape and samples.dtype == torch.float32
    assert mismatch(model, start) > 0.4 and mismatch(model, samples) < 0.1
    x = samples
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            deviation = layer.running_var.sqrt()
            assert ((x.mean(axes) - layer.running_mean) / deviation).abs().max() < 0.25
            assert (x.std(axes) / deviation - 1).abs().max() < 0.25
        x = layer(x)


def test_the_same_start_gives_the_same_samples_and_the_network_stays_as_it_is():
    model = conv_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    calls = []
    options = {"limits": (-1.0, 2.0), "steps": 3, "close": 0.0, "progress": lambda *call: calls.append(call)}
    first = distill(model, noise_of(40), **options)
    assert calls == [("inputs", 0, 3), ("inputs", 1, 3), ("inputs", 2, 3), ("inputs", 1, 1)]
    assert torch.equal(distill(model, first, close=mismatch(model, first) + 1e-3), first)
    assert torch.equal(first, distill(model, noise_of(40), **options))
    assert first.min() == -1 and first.max() == 2
    assert model.training and all(value.grad is None for value in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_network_without_statistics_takes_the_noise_and_says_so():
    start = noise_of(4)
    for model in (conv_net(norms=False), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))):
        assert normalisations(model) == []
        made = made_for(model, start, "images of nothing")
        assert made.samples is start and "4 images of nothing, because no BatchNorm" in made.notice
        assert made.options["rounding"] == "nearest"
        with pytest.raises(IntqError, match="Sequential has no BatchNorm that keeps statistics"):
            distill(model, start)


def test_a_gradient_that_is_not_finite_is_an_error():
    model = conv_net()
    model[1].running_mean[0] = float("nan")
    with pytest.raises(IntqError, match="not finite"):
        distill(model, noise_of(4))


def test_images_are_pixels_that_the_network_knows_better():
    known = architecture("small_resnet")
    model, preprocess = random_model("small_resnet"), known.preprocess
    for module in model.modules():  # as if its training data had been darker and of more contrast than any shapes
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean -= 0.5 * module.running_var.sqrt()
            module.running_var *= 2
    made = images_for(model, preprocess, known.size, 32, seed=3)
    assert made.samples.dtype == np.uint8 and made.samples.shape == (32, 28, 28, 1) and made.options == {}
    assert "32 images of random shapes" in made.notice and "standard deviations off" in made.notice
    network, shapes = FromPixels(model, preprocess), dead_leaves(32, known.size, 3, 1)
    before, after = (mismatch(network, torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (shapes, made.samples))
    assert after < 0.8 * before


def test_shapes_are_the_seeds_and_have_edges():
    shapes = dead_leaves(8, (64, 48), seed=3)
    assert shapes.shape == (8, 64, 48, 3) and shapes.dtype == np.uint8 and shapes.std() > 30
    assert np.array_equal(shapes, dead_leaves(8, (64, 48), seed=3))
    assert not np.array_equal(shapes, dead_leaves(8, (64, 48), seed=4))
    steps = np.abs(np.diff(shapes.astype(int), axis=1))
    assert steps.max() > 150 and np.median(steps) < 20


def test_made_images_serve_where_shapes_alone_do_not():
    """The network of a camera that sees everything in 100 to 140: its ranges are not those of the shapes."""
    known = architecture("small_resnet")
    model, preprocess = random_model("small_resnet"), known.preprocess
    data = 100 + random_images(96, known.size, 9, 1) // 6
    normal = torch.from_numpy(preprocess.normalize(data)).permute(0, 3, 1, 2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(normal[:32])
        wanted = model.eval()(normal[32:]).numpy()
    quality = []
    for batch in (data[:32], images_for(model, preprocess, known.size, 32).samples, dead_leaves(32, known.size, 0, 1)):
        graph = intq.quantize(model, [batch], mean=preprocess.mean, std=preprocess.std)
        scores = integers.prepare(graph)(torch.from_numpy(data[32:]))[0].numpy()
        quality.append(sqnr_db(graph.values[graph.outputs[0]].scale * scores, wanted))
    assert quality[0] > quality[1] > quality[2] + 3


def test_random_texts_have_the_frequent_words_most_often():
    tokenizer = tiny_tokenizer("bert")
    texts = random_texts(tokenizer, 60, 200, 20)
    assert texts == random_texts(tokenizer, 60, 200, 20) != random_texts(tokenizer, 60, 200, 20, seed=1)
    words = [text.rstrip(".").replace(",", "").split() for text in texts]
    assert all(text.endswith(".") for text in texts) and any("," in text for text in texts)
    assert {4, 20} <= {len(row) for row in words} <= set(range(4, 21))
    known = [word for word in map(tokenizer.decode, range(60)) if len(word) > 1 and word.isalpha()]
    counts = [sum(row.count(word) for row in words) for word in known]
    assert counts[0] == max(counts) > 2 * counts[len(known) // 2] and sum(counts) == sum(map(len, words))


def test_quantize_without_data(tmp_path):
    weights = tmp_path / "small.pth"
    torch.save(random_model("small_resnet").state_dict(), weights)
    value = answer("quantize", weights, "--zero-shot", "--samples", 8, "-o", tmp_path / "net")
    assert value["calibration"] == "zero-shot" and "8 images of random shapes" in value["notices"][-1]
    metadata = artifact.load(tmp_path / "net").metadata
    assert metadata["calibration"] == "zero-shot" and metadata["notices"] == value["notices"]
    assert metadata["preprocess"]["mean"] and metadata["layers"]
    same = answer("quantize", weights, "--zero-shot", "--samples", 8, "-o", tmp_path / "same")
    assert same["bytes"] == value["bytes"]
    digests = [artifact.digest(artifact.load(tmp_path / name)) for name in ("net", "same")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("head", "family"), [("classification", "bert"), ("embedding", "roberta")])
def test_quantize_text_without_texts(tmp_path, head, family):
    save_tiny(tmp_path / "tiny", family, head)
    value = answer("quantize", tmp_path / "tiny", "--zero-shot", "--samples", 9, "-o", tmp_path / "net")
    assert value["calibration"] == "zero-shot" and "9 texts of random words" in value["notices"][-1]
    assert value["overflow"]["proven"] is True


def test_half_of_the_texts_of_a_network_that_tells_segments_apart_are_pairs(tmp_path):
    save_tiny(tmp_path / "tiny", "bert", "classification")
    checkpoint = domain.load(tmp_path / "tiny")
    rows = [row for ids in domain._random_words(checkpoint, 10, 0) for row in ids]
    ends = [int((row == checkpoint.separator).sum()) for row in rows]
    assert sorted(ends) == [1] * 5 + [2] * 5 and all(len(row) <= checkpoint.longest for row in rows)


def test_zero_shot_and_data_contradict_each_other(tmp_path):
    for option, given in (("--data", [tmp_path]), ("--task", ["sst2"]), ("--random", [])):
        sentence = complaint("quantize", "small_resnet", "--zero-shot", option, *given, "-o", tmp_path / "net")
        assert "--zero-shot" in sentence and f"leave out {option}" in sentence
    assert not (tmp_path / "net").exists()
    assert "--zero-shot" in complaint("quantize", "small_resnet", "-o", tmp_path / "net")
