"""Checkpoints: save_pretrained folders and state dict files give the same logits, and anything else one clear error."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from intq.errors import IntqError
from intq.vision import checkpoint
from intq.vision.models import architecture
from intq.vision.models.mobilenet import MobileNetV2
from intq.vision.models.resnet import BasicBlock, Bottleneck, ResNet, small_resnet
from intq.vision.preprocess import Preprocess

transformers.utils.logging.disable_progress_bar()

RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 7}
FAMILIES = {
    "resnet basic": (transformers.ResNetConfig, {**RESNET, "layer_type": "basic"}),
    "resnet bottleneck": (transformers.ResNetConfig, {**RESNET, "downsample_in_bottleneck": True}),
    "resnet first stage": (transformers.ResNetConfig, {**RESNET, "downsample_in_first_stage": True}),
    "mobilenet v1": (transformers.MobileNetV1Config, {"depth_multiplier": 0.25, "num_labels": 5}),
    "mobilenet v1 odd": (transformers.MobileNetV1Config, {"depth_multiplier": 0.25, "image_size": 75}),
    "mobilenet v2": (transformers.MobileNetV2Config, {"depth_multiplier": 0.35, "num_labels": 1001}),
    "mobilenet v2 torch": (transformers.MobileNetV2Config, {"depth_multiplier": 0.5, "tf_padding": False}),
    "mobilenet v2 dilated": (
        transformers.MobileNetV2Config,
        {"depth_multiplier": 0.35, "output_stride": 16, "first_layer_is_expansion": False, "finegrained_output": False},
    ),
}
# A vision transformer takes images of one size only, so these have processors of their own below.
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 5}
VIT |= {"image_size": 48, "patch_size": 16}
TRANSFORMERS = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
PROCESSOR = {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 65}}


def save(folder, family: str, processor: bool = True, seed: int = 0):
    """A small network with random weights and statistics in a folder of save_pretrained."""
    config, options = FAMILIES[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageClassification.from_config(config(**options)).eval()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
    model.save_pretrained(folder)
    if processor:
        kind = {"image_processor_type": "MobileNetV2ImageProcessor", **PROCESSOR}
        (folder / "preprocessor_config.json").write_text(json.dumps(kind))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_gives_the_model_its_preprocessing_and_labels(family, tmp_path):
    model = save(tmp_path / "net", family)
    loaded = checkpoint.load(tmp_path / "net")
    assert loaded.preprocess == Preprocess(73, (64, 65), "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert (loaded.name, loaded.input_size, len(loaded.labels)) == ("net", (64, 65), model.config.num_labels)
    assert not loaded.model.training
    pixels = torch.rand(2, 3, 64, 65)
    with torch.inference_mode():
        assert torch.equal(loaded.model(pixels), model(pixels).logits)


def test_folder_without_preprocessing_says_what_it_assumes(tmp_path, caplog):
    save(tmp_path / "net", "mobilenet v1 odd", processor=False)
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load(str(tmp_path / "net"))
    assert loaded.input_size == (75, 75)
    assert "has no preprocessor_config.json" in caplog.text
    save(tmp_path / "resnet", "resnet basic", processor=False)
    assert checkpoint.load(tmp_path / "resnet").preprocess == Preprocess(256, (224, 224), "bicubic")


def test_half_precision_and_bin_weights_load(tmp_path):
    model = save(tmp_path / "net", "resnet basic")
    model.half().save_pretrained(tmp_path / "net")
    assert all(value.dtype == torch.float32 for value in checkpoint.load(tmp_path / "net").model.parameters())
    (tmp_path / "net" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "net" / "pytorch_model.bin")
    assert len(checkpoint.load(tmp_path / "net").labels) == 7


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_vision_transformers(name, tmp_path, caplog):
    torch.manual_seed(3)
    config = (transformers.ViTConfig if name.startswith("ViT") else transformers.DeiTConfig)(**VIT)
    model = getattr(transformers, name)(config).eval()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        usual = checkpoint.load(tmp_path).preprocess
    assert "has no preprocessor_config.json" in caplog.text
    half = ((0.5,) * 3,) * 2
    vit = Preprocess((48, 48), None, "bilinear", *half)
    deit = Preprocess((54, 54), (48, 48), "bicubic", *half)
    assert usual == (vit if name.startswith("ViT") else deit)
    kind = "ViTImageProcessor" if name.startswith("ViT") else "DeiTImageProcessor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, "size": 48}))
    loaded = checkpoint.load(tmp_path)
    deit = Preprocess((48, 48), (224, 224), "bicubic", *half)
    assert loaded.preprocess == (vit if name.startswith("ViT") else deit)
    assert len(loaded.labels) == 5
    pixels = torch.rand(2, 3, 48, 48)
    assert torch.equal(loaded.model(pixels), model(pixels).logits)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(loaded.model, (pixels,), dynamic_shapes=dynamic)
    operations = [str(node.target) for node in program.graph.nodes]
    assert operations.count("aten.scaled_dot_product_attention.default") == 2
    torch.testing.assert_close(program.module()(pixels[:1]), loaded.model(pixels[:1]))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_broken_folders(tmp_path):
    folder = tmp_path / "net"
    with pytest.raises(IntqError, match="there is no file or folder"):
        checkpoint.load(folder)
    folder.mkdir()
    with pytest.raises(IntqError, match="is no checkpoint: expected a folder written by save_pretrained"):
        checkpoint.load(folder)
    save(folder, "resnet basic")
    config, weights = folder / "config.json", folder / "model.safetensors"
    whole, tensors = config.read_text(), load_file(weights)

    edit(config, model_type="swin")
    with pytest.raises(IntqError, match="type 'swin'; supported are ResNetForImageClassification"):
        checkpoint.load(folder)
    config.write_text(whole)
    edit(config, architectures=["ResNetModel"])
    with pytest.raises(IntqError, match="holds a ResNetModel"):
        checkpoint.load(folder)
    for broken in ("[]", whole[:100], "\0"):
        config.write_text(broken)
        with pytest.raises(IntqError, match=r"config\.json"):
            checkpoint.load(folder)
    config.write_text(whole)
    edit(config, depths=[1, 3])
    with pytest.raises(IntqError, match="the weights lack"):
        checkpoint.load(folder)
    config.write_text(whole)
    edit(config, depths=[1, 1])
    with pytest.raises(IntqError, match="the weights hold"):
        checkpoint.load(folder)
    config.write_text(whole)
    edit(config, hidden_sizes=[16, 24])
    with pytest.raises(IntqError, match="weights"):
        checkpoint.load(folder)
    config.write_text(whole)

    name = next(key for key in tensors if key.endswith("convolution.weight"))
    for value in (float("nan"), float("inf")):
        damaged = {key: tensor.clone() for key, tensor in tensors.items()}
        damaged[name].view(-1)[3] = value
        save_file(damaged, weights, metadata={"format": "pt"})
        with pytest.raises(IntqError, match=f"{name} holds 1 NaN or infinite"):
            checkpoint.load(folder)
    save_file(tensors, weights, metadata={"format": "pt"})
    content = weights.read_bytes()
    for cut in (0, 4, 100, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:cut])
        with pytest.raises(IntqError, match="do not load"):
            checkpoint.load(folder)
    weights.unlink()
    with pytest.raises(IntqError, match=r"no weights: looked for model\.safetensors"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.safetensors", "wrapped.pth", "parallel.pth"])
def test_state_dict_files(name, tmp_path):
    torch.manual_seed(1)
    model = ResNet(Bottleneck, (1, 1, 1, 1), 6, width=8, group_width=64).eval()
    state = model.state_dict()
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif name == "wrapped.pth":
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        torch.save({"state_dict": old, "epoch": 3}, path)
    elif name == "parallel.pth":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = checkpoint.load(path)
    assert (loaded.name, loaded.labels, loaded.input_size) == ("resnet14", tuple("012345"), (224, 224))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.model(pixels), model(pixels))


@pytest.mark.parametrize(
    ("model", "size", "channels"),
    [
        (lambda: small_resnet(10), (28, 28), 1),
        (lambda: ResNet(BasicBlock, (2, 2, 2, 2), 100, width=8, stem=3), (32, 32), 3),
        (lambda: MobileNetV2(4, 0.35), (224, 224), 3),
        (lambda: architecture("small_mobilenet_v2").build(10), (28, 28), 1),
        (lambda: architecture("small_squeezenext").build(10), (28, 28), 1),
        (lambda: architecture("small_inception").build(10), (28, 28), 1),
    ],
)
def test_input_follows_from_the_shapes(model, size, channels, tmp_path):
    torch.save(model().state_dict(), tmp_path / "a.pth")
    loaded = checkpoint.load(tmp_path / "a.pth")
    assert (loaded.input_size, loaded.preprocess.channels) == (size, channels)
    assert loaded.model(torch.zeros(1, channels, *size)).shape == (1, len(loaded.labels))


def test_inception_drops_its_auxiliary_classifier(tmp_path):
    model = architecture("inception_v3").build(3)
    torch.save({**model.state_dict(), "AuxLogits.fc.weight": torch.zeros(3, 768)}, tmp_path / "a.pth")
    loaded = checkpoint.load(tmp_path / "a.pth")
    assert (loaded.name, loaded.input_size, loaded.preprocess.mean) == ("inception_v3", (299, 299), (0.5,) * 3)


def test_broken_state_dicts(tmp_path):
    state = small_resnet(10).state_dict()
    path = tmp_path / "a.pth"

    def error(value, match: str):
        torch.save(value, path)
        with pytest.raises(IntqError, match=match):
            checkpoint.load(path)

    error({key: value for key, value in state.items() if "layer2.0.bn1" not in key}, "missing layer2.0.bn1.weight")
    error(state | {"head.weight": torch.zeros(2)}, r"unknown head\.weight")
    error(state | {"fc.bias": torch.zeros(9)}, r"fc\.bias has the shape \(9,\), resnet8 expects \(10,\)")
    error(state | {"fc.weight": torch.full((10, 64), torch.nan)}, r"fc\.weight holds 640 NaN")
    error(state | {"conv1.weight": torch.zeros(3)}, "shapes fit no architecture")
    error({"a.weight": torch.zeros(2)}, "not the keys of an architecture")
    error({"optimizer": {"lr": 1}}, "holds no state dict")
    error({}, "holds no state dict")
    error([1, 2], "holds no state dict")
    torch.save(small_resnet(10), path)  # a whole pickled module could run code when loaded
    with pytest.raises(IntqError, match=r"expected a state dict saved by torch\.save"):
        checkpoint.load(path)
    torch.save(state, path)
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 20):
        path.write_bytes(content[:cut])
        with pytest.raises(IntqError, match="does not load as a file of tensors"):
            checkpoint.load(path)
    tensors = tmp_path / "a.safetensors"
    save_file(state, tensors)
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(IntqError, match="not a whole safetensors file"):
        checkpoint.load(tensors)


def test_names_that_are_no_checkpoint(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*_arguments, **_options):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(IntqError, match=r"microsoft/resnet-50 .*could not be fetched.*no route to the hub"):
        checkpoint.load("microsoft/resnet-50")
    with pytest.raises(IntqError, match="resnet50 is an architecture without weights"):
        checkpoint.load("resnet50")
    with pytest.raises(IntqError, match=r"there is no file or folder weights\.pth"):
        checkpoint.load("weights.pth")
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path))
    with pytest.raises(IntqError, match="run scripts/fetch_data"):
        checkpoint.load("mobilenet_v2")


def test_hub_id_loads_the_downloaded_folder(monkeypatch, tmp_path):
    import huggingface_hub

    save(tmp_path, "resnet basic")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_arguments, **_options: str(tmp_path))
    loaded = checkpoint.load("someone/resnet-8")
    assert loaded.name == "resnet-8"
    assert loaded.model(torch.zeros(1, 3, 64, 65)).isfinite().all()
