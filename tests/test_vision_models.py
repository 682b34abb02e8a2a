"""The model definitions: published sizes, recognition from a state dict, and random networks with sane activations."""

import numpy as np
import pytest
import torch

from intq.errors import IntqError
from intq.vision.models import ARCHITECTURES, architecture, from_state_dict
from intq.vision.models.inception import MEAN, STD, inception_v3, small_inception
from intq.vision.models.mobilenet import MobileNetV2
from intq.vision.models.resnet import BasicBlock, Bottleneck, ResNet
from intq.vision.models.squeezenext import SqueezeNext
from intq.vision.synthetic import random_images, random_model

# Parameters of torchvision's, pytorchcv's and efficientnet-lite-pytorch's definitions (InceptionV3 without AuxLogits).
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "mobilenet_v2": 3_504_872,
    "inception_v3": 23_834_568,
    "squeezenext": 724_056,
    "small_squeezenext": 127_642,
    "small_inception": 170_266,
    "efficientnet_lite0": 4_652_008,
    "vit-base-16": 86_567_656,
    "deit-small-16": 22_050_664,
}
TRANSFORMERS = ("vit-base-16", "deit-small-16")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_size(name):
    known = architecture(name)
    with torch.device("meta"):
        model = known.build(known.classes).eval()
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS.get(
            name, sum(parameter.numel() for parameter in model.parameters())
        )
        pixels = torch.zeros(2, known.preprocess.channels, *known.size)
        assert model(pixels).shape == (2, known.classes)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in TRANSFORMERS])
def test_recognition(name):
    known = architecture(name)
    with torch.device("meta"):
        model = known.build(known.classes).eval()
        _, found, preprocess = from_state_dict(model.state_dict())
    assert preprocess == known.preprocess
    assert {key: value.shape for key, value in found.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert str(found) == str(model)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet152", lambda: ResNet(Bottleneck, (3, 8, 36, 3), 7)),
        ("resnet50", lambda: ResNet(Bottleneck, (3, 4, 6, 3), 9, groups=32, group_width=4)),
        ("resnet50", lambda: ResNet(Bottleneck, (3, 4, 6, 3), group_width=128)),
        ("resnet20", lambda: ResNet(BasicBlock, (3, 3, 3), 10, 3, width=16, stem=3)),
        ("mobilenet_v2", lambda: MobileNetV2(11, 0.35)),
        ("mobilenet_v2", lambda: MobileNetV2(1000, 1.4)),
        ("mobilenet_v2", lambda: MobileNetV2(5, 0.75, channels=1)),
        ("squeezenext", lambda: SqueezeNext(7, 1, (1, 2, 3, 1), 0.5)),
        ("small_squeezenext", lambda: SqueezeNext(100, 3, (1, 2, 1), stem=3)),
        ("small_inception", lambda: small_inception(100, 3)),
    ],
)
def test_variants_are_recognised_by_their_shapes(name, model):
    with torch.device("meta"):
        model = model()
        found_name, found, preprocess = from_state_dict(model.state_dict())
    assert (found_name, str(found)) == (name, str(model))
    assert preprocess.channels == next(iter(model.parameters())).shape[1]


def test_foreign_keys_are_not_recognised():
    assert from_state_dict({"layers.0.weight": torch.zeros(2, 2)}) is None


def test_inception_transforms_its_input():
    torch.manual_seed(0)
    plain, transforming = inception_v3(3).eval(), inception_v3(3, transform_input=True).eval()
    transforming.load_state_dict(plain.state_dict())
    pixels = torch.rand(1, 3, 96, 96)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        torch.testing.assert_close(transforming((pixels - mean) / std), plain((pixels - 0.5) / 0.5))


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "squeezenext", "small_resnet", "small_squeezenext", "small_inception"]
)
def test_random_models_are_reproducible_and_alive(name):
    known = architecture(name)
    before = torch.random.get_rng_state()
    model, again, other = (random_model(name, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
    widest = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _module, _inputs, output: widest.append(output.std().item()))
    pixels = known.preprocess.normalize(random_images(2, known.size, 9, known.preprocess.channels))
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert min(widest) > 0.1 and max(widest) < 5  # neither dead nor exploding anywhere
    assert 0.1 < logits.std() < 5


def test_random_vision_transformer_is_alive():
    known, model, again = architecture("deit-small-16"), *(random_model("deit-small-16", 2) for _ in range(2))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    widths = []
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].std().item()))
    pixels = known.preprocess.normalize(random_images(4, known.size, 9))
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert len(widths) == 25 and min(widths) > 0.5 and max(widths) < 20  # the residual stream grows from layer to layer
    assert 0.1 < logits.std() < 5 and logits.std(0).mean() > 0.05


def test_random_images_look_like_photographs():
    images = random_images(8, (48, 64), 1)
    assert images.shape == (8, 48, 64, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, random_images(8, (48, 64), 1))
    assert not np.array_equal(images, random_images(8, (48, 64), 2))
    assert random_images(1, (28, 28), 0, channels=1).shape == (1, 28, 28, 1)
    values = images.astype(float)
    assert 25 < values.std() < 100
    centred = values - values.mean((1, 2), keepdims=True)
    neighbours = (centred[:, :, 1:] * centred[:, :, :-1]).mean() / (centred**2).mean()
    assert neighbours > 0.7  # white noise would give 0


def test_unknown_architecture():
    with pytest.raises(IntqError, match="no architecture is called 'resnet51'; there are resnet18"):
        random_model("resnet51")
