"""Hugging Face's CTC recognisers: what the folder says, the same numbers as transformers, and the same in integers."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from intq import domains
from intq.backends import reference
from intq.capture import capture
from intq.errors import IntqError
from intq.simplify import simplify
from intq.speech import checkpoint, domain, huggingface
from intq.speech.decode import greedy
from intq.speech.synthetic import random_audio, randomize
from intq.widths import bits_read

TINY = {
    "vocab_size": len(huggingface.LETTERS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 24, 24),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {  # name: (family, what its configuration adds, do_normalize)
    "wav2vec2": ("Wav2Vec2", {}, True),
    "wav2vec2-stable": ("Wav2Vec2", STABLE, True),
    "wav2vec2-raw": ("Wav2Vec2", {"num_conv_pos_embeddings": 7}, False),  # an odd window drops no frame
    "hubert": ("Hubert", {}, True),
    "hubert-stable": ("Hubert", STABLE | {"conv_pos_batch_norm": True}, True),
}


def written(folder, kind: str, **more):
    """A folder of save_pretrained with random weights, and transformers' own model."""
    family, settings, normalize = KINDS[kind]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**TINY, **settings, **more})
    model = getattr(transformers, f"{family}ForCTC")(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(huggingface.LETTERS)}))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    extractor.save_pretrained(folder)
    return model, extractor


def heard(rows: int, samples: int, seed: int = 0) -> np.ndarray:
    return random_audio(rows, samples, seed=seed)


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, extractor = written(folder, request.param)
    return checkpoint.load(folder), model, extractor


def test_the_numbers_are_those_of_transformers(loaded):
    found, model, extractor = loaded
    samples = heard(3, 9000)
    given = extractor(list(samples), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        wanted = model(given).logits
        got = found.model(torch.from_numpy(samples))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std(1).mean() > 0.1  # it hears something
    assert got.shape[1] == found.model.frames(9000) == model._get_feat_extract_output_lengths(9000)


def test_with_lengths_each_row_is_what_it_is_alone(loaded):
    found, _, _ = loaded
    samples, lengths = heard(3, 5000, seed=2), (5000, 3100, 800)
    predict = domain.network(found)
    whole = predict((samples * 32768).astype(np.int16), np.array(lengths, np.int32))
    for row, length, logits in zip(samples, lengths, whole, strict=True):
        with torch.no_grad():
            alone = found.model(torch.from_numpy(row[None, :length]))[0]
        frames = found.model.frames(length)
        np.testing.assert_allclose(logits[:frames], alone, rtol=1e-4, atol=1e-4)
        assert not logits[frames:].any()


@pytest.fixture(scope="module")
def captured(loaded):
    found, _, _ = loaded
    return found, simplify(capture(found.model, torch.zeros(1, 16000, dtype=torch.int16)))


def test_the_captured_graph_computes_the_same(captured):
    found, graph = captured
    ops = [node.op for node in graph.nodes]
    assert ops.count("attention") == 2 and "slice" not in ops and "permute" not in ops
    grouped = found.model.model.config.feat_extract_norm == "group"
    assert ops.count("normalize_frames") == found.model.normalize + grouped
    for samples in (800, 7777):
        x = torch.from_numpy(heard(2, samples, seed=3))
        with torch.no_grad():
            torch.testing.assert_close(graph.run(x), found.model(x), rtol=1e-4, atol=1e-4)


def test_samples_are_read_in_16_bits_unless_told_otherwise(captured):
    _, graph = captured
    (first,) = (node.name for node in graph.nodes if node.name.endswith("conv_layers.0.conv"))
    assert bits_read(graph, {}) == {first: 16}
    assert bits_read(graph, {"*conv_layers.0.conv": 8}) == {}
    assert len(bits_read(graph, {"*conv_layers.1.conv": 16})) == 2


@pytest.fixture(scope="module", params=["wav2vec2", "hubert-stable"])
def integer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("integer")
    written(folder, request.param)
    found = checkpoint.load(folder)
    return found, domain.prepare(found, None, samples=2, seed=0, rounding="nearest").quantize()


def test_integers_are_close_and_a_row_is_what_it_is_alone(integer):
    found, graph = integer
    samples, lengths = (heard(3, 6000, seed=5) * 32768).astype(np.int16), np.array([6000, 4321, 900], np.int32)
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, samples.shape)
    padded = np.where(np.arange(6000) < lengths[:, None], samples, noise).astype(np.int16)
    (scores,) = reference.run(graph, padded, lengths)
    real = domain.network(found)(samples, lengths)
    scale = graph.values[graph.outputs[0]].scale
    for row, length in enumerate(lengths):
        (alone,) = reference.run(graph, padded[row : row + 1, :length], lengths[row : row + 1])
        frames = found.model.frames(int(length))
        np.testing.assert_array_equal(scores[row, :frames], alone[0, :frames])
    assert np.square(scores[0] * scale - real[0]).mean() < 0.05 * real[0].var()
    graph.verify()


def test_the_metadata_says_how_to_read_its_answer(integer):
    found, graph = integer
    metadata = graph.metadata
    assert metadata["longest"] == graph.inputs[0].longest == 480000  # half a minute: attention
    reader = domain.reader(None, metadata)
    assert reader.labels == huggingface.letters() and reader.labels.blank == 0
    assert len(metadata["labels"]) == len(huggingface.LETTERS) - 1
    assert [reader.frames(n) for n in (900, 6000)] == [found.model.frames(n) for n in (900, 6000)]


def test_the_blank_is_the_first_label():
    labels = huggingface.letters()
    path = [huggingface.LETTERS.index(token) for token in ("<pad>", "I", "I", "<pad>", "I", "|", "T", "</s>")]
    scores = np.zeros((len(path), len(labels)), np.int32)
    scores[np.arange(len(path)), path] = 9
    assert greedy(scores, labels) == "II T"


# ---- what a folder may say ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    written(tmp_path, "wav2vec2")
    return tmp_path


def change(path, **values) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def test_what_it_is_called_and_whose_it_is(folder):
    found = checkpoint.load(folder)
    assert domains.of_checkpoint(str(folder)) is domain
    assert (found.name, found.source, found.head) == (folder.name, str(folder), "ctc")
    assert (found.front, found.sample_rate, found.longest) == (None, 16000, 480000)
    assert not found.model.training and not any(p.requires_grad for p in found.model.parameters())


def test_a_processor_saves_all_in_one_file(folder):
    (folder / "preprocessor_config.json").unlink()
    settings = {"do_normalize": False, "feature_extractor_type": huggingface.EXTRACTOR, "sampling_rate": 16000}
    change(folder / "processor_config.json", feature_extractor=settings)
    assert not checkpoint.load(folder).model.normalize


def test_other_special_tokens_and_lower_case(folder):
    tokens = ["'", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "[UNK]", "[PAD]"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    change(folder / "added_tokens.json", **{"<s>": 30, "</s>": 31, "<never>": 32})
    special = {"pad_token": {"content": "[PAD]", "special": True}, "unk_token": "[UNK]"}
    change(folder / "tokenizer_config.json", do_lower_case=True, **special)
    labels = checkpoint.load(folder).spelling()
    assert labels.blank == tokens.index("[PAD]") == 29
    assert labels.texts == ("'", " ", *"abcdefghijklmnopqrstuvwxyz", "", "", "", "")


def test_weights_of_training_are_left_out(folder):
    weights = load_file(folder / "model.safetensors")
    before = checkpoint.load(folder).model(torch.from_numpy(heard(1, 2000)))
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights | {"quantizer.codevectors": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(checkpoint.load(folder).model(torch.from_numpy(heard(1, 2000))), before)


def broken(name: str, **values):
    return lambda folder: change(folder / name, **values)


def without_head(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "vocab.json").unlink(), "has no vocab.json: without it nobody knows"),
        (broken("vocab.json", deu={"a": 0}), "several languages"),
        (broken("vocab.json", more=0), "are not the numbers 0 to 31|spells 33 labels, but the network has 32"),
        (broken("config.json", vocab_size=31), "do not load into Wav2Vec2ForCTC"),
        (broken("tokenizer_config.json", pad_token="[PAD]"), "has no '\\[PAD\\]', which is CTC's blank"),
        (broken("tokenizer_config.json", tokenizer_class="Wav2Vec2PhonemeCTCTokenizer"), "tokenizer of the class"),
        (broken("config.json", architectures=["WavLMForCTC"]), "a WavLMForCTC; of the networks that read samples"),
        (broken("config.json", add_adapter=True), "add_adapter is not taken"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "with preprocessor_config.json"),
        (broken("preprocessor_config.json", sampling_rate=8000), "a sampling_rate of 8000, taken is 16000 Hz"),
        (broken("preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor"), "WhisperFeatureEx"),
        (broken("preprocessor_config.json", do_normalize="yes"), "do_normalize is 'yes'"),
        (without_head, "the weights lack lm_head.bias, lm_head.weight"),
    ],
)
def test_what_is_refused(folder, harm, says):
    harm(folder)
    with pytest.raises(IntqError, match=says):
        checkpoint.load(folder)


def test_an_architecture_is_no_checkpoint():
    with pytest.raises(IntqError, match="architecture without weights here"):
        checkpoint.load("wav2vec2-base")
    assert "wav2vec2-base" in domain.names()


# ---- capture -----------------------------------------------------------------------------------------------------


class Cut(torch.nn.Module):
    def __init__(self, *, stride: int = 1, padding: int = 2, groups: int = 4, cut: slice = slice(None)) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(1, 4, 4, stride, padding)
        self.norm, self.cut = torch.nn.GroupNorm(groups, 4), cut

    def forward(self, samples):
        return self.norm(self.conv(samples[:, None])[:, :, self.cut]).transpose(1, 2)


def test_the_last_frames_of_a_convolution_are_its_padding():
    torch.manual_seed(0)
    for cut, padding in ((slice(None, -1), (2, 1)), (slice(0, -2), (2, 0)), (slice(0, None), (2, 2))):
        module = Cut(cut=cut).eval()
        graph = simplify(capture(module, torch.zeros(1, 50, dtype=torch.int16)))
        assert [node.op for node in graph.nodes] == ["reshape", "conv1d", "normalize_frames"]
        assert [node.attrs["padding"] for node in graph.nodes if node.op == "conv1d"] == [padding]
        x = torch.randn(2, 40)
        with torch.no_grad():
            torch.testing.assert_close(graph.run(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cut": slice(None, -3)}, "slice: the last 3 of a number of frames that is not known"),
        ({"cut": slice(None, -1), "stride": 2}, "directly behind a Conv1d of stride 1"),
        ({"cut": slice(1, None)}, "of unknown length, only the first alone is taken"),
        ({"cut": slice(None, 9)}, "of unknown length, only the first alone is taken"),
        ({"groups": 2}, "taken is a group for each channel of recordings"),
    ],
)
def test_other_frames_and_other_groups_are_refused(settings, says):
    with pytest.raises(IntqError, match=says):
        simplify(capture(Cut(**settings).eval(), torch.zeros(1, 50, dtype=torch.int16)))


class Ramp(torch.nn.Module):
    """Adds what depends on the number of samples."""

    def forward(self, samples):
        return samples[..., None] + torch.arange(samples.shape[1])[:, None].float()


class Near(torch.nn.Module):
    """Attends to the first frames alone."""

    def forward(self, samples):
        x = samples[:, None, :, None].expand(-1, 1, -1, 4)
        near = torch.arange(samples.shape[1])[None, None, None] < 90
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, near).flatten(1)


@pytest.mark.parametrize(
    ("module", "says"),
    [(Ramp(), "may not depend on the number of samples"), (Near(), "a mask that leaves frames out is not taken")],
)
def test_what_follows_from_the_number_of_samples(module, says):
    with pytest.raises(IntqError, match=says):
        capture(module, torch.zeros(1, 50, dtype=torch.int16))
