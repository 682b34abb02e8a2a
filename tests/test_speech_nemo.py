"""NeMo's checkpoints: read as NeMo writes them, written and read back, and refused where they are unsafe or unknown."""

import io
from dataclasses import replace

import pytest
import torch
from nemo_files import ASR, QUARTZNET, config, saved, state, write_nemo
from safetensors.torch import save_file
from torch import nn

from intq.errors import IntqError
from intq.frontend import FrontEnd, mel_filters
from intq.speech import archive, nemo, sections
from intq.speech.checkpoint import Checkpoint, load
from intq.speech.labels import piece_names
from intq.speech.models import CEPSTRAL
from intq.speech.models.conformer import ConformerSettings
from intq.speech.models.convolutional import BlockSettings, ConvEncoder
from intq.speech.models.heads import HEADS
from intq.speech.models.network import SpeechModel
from intq.speech.synthetic import random_audio, random_checkpoint, randomize


def test_read_as_nemo_writes_them(tmp_path):
    values = state(config())
    for mode in ("w", "w:gz"):
        found = load(write_nemo(tmp_path / "net.nemo", config(), saved(values), mode))
        assert isinstance(found, Checkpoint)
        assert (found.name, found.head, found.sample_rate, found.tokenizer) == ("net", "ctc", 16000, None)
        assert found.source == str((tmp_path / "net.nemo").resolve())
        assert found.labels == (" ", "a", "b", "'")
        assert (found.front.window, found.front.hop, found.front.bands) == (320, 160, 8)
        own = found.model.state_dict()
        assert all(torch.equal(own[key], value) for key, value in values.items() if not key.startswith("preprocessor"))
        assert found.model(torch.from_numpy(random_audio(2, 4800))).shape == (2, 15, 5)
        assert not found.model.training and not any(value.requires_grad for value in found.model.parameters())


def test_the_encoder_of_the_yaml():
    encoder = sections.encoder(config()["encoder"])
    assert encoder.blocks == (
        BlockSettings(12, 5, stride=2, separable=True),
        BlockSettings(12, 11, 2, dropout=0.1, residual=True, separable=True),  # int(7 * 1.5) = 10, made odd
        BlockSettings(10, 9, dilation=2, separable=True),
    )
    block = {"filters": 8, "kernel": 3, "repeat": 1, "stride": 1, "dilation": 1, "dropout": 0, "residual": True}
    extended = {"residual_mode": "stride_add", "se": True, "se_reduction_ratio": 2, "se_context_size": 64}
    section = {"_target_": ASR + "ConvASREncoder", "feat_in": 8, "jasper": [block | extended, block]}
    first, second = sections.encoder(section).blocks
    assert first.se and first.se_reduction_ratio == 2 and not second.se
    assert (first.residual_mode, second.residual_mode) == ("stride_add", "stride_add")  # inherited, as in NeMo
    dense = [block | {"residual_dense": True, "filters": width} for width in (6, 7)]
    encoder = sections.encoder(section | {"jasper": dense})
    assert [len(layer.res) for layer in encoder.encoder] == [1, 2]


def test_weights_with_their_yaml(tmp_path):
    values = state(config())
    (tmp_path / "net.yaml").write_text(QUARTZNET)  # with references, and the model under its name
    torch.save({"state_dict": values, "epoch": 3}, tmp_path / "net.ckpt")
    save_file({key: value.contiguous() for key, value in values.items()}, tmp_path / "net.safetensors")
    for name in ("net.ckpt", "net.safetensors"):
        found = load(tmp_path / name)
        key = "encoder.encoder.1.mconv.5.conv.weight"
        assert torch.equal(found.model.state_dict()[key], values[key])
    with pytest.raises(IntqError, match=r"expected one file of weights .* found net\.ckpt, net\.safetensors"):
        load(tmp_path)
    (tmp_path / "net.ckpt").unlink()
    assert load(tmp_path).labels == found.labels
    (tmp_path / "net.yaml").unlink()
    with pytest.raises(IntqError, match=r"needs its configuration beside it: expected net\.yaml"):
        load(tmp_path / "net.safetensors")


def made(head: str, tokenizer: bytes | None = None, **settings) -> Checkpoint:
    torch.manual_seed(4)
    blocks = (
        BlockSettings(12, 5, stride=2, separable=True),
        BlockSettings(12, 7, 2, residual=True, residual_dense=True, se=True),
        BlockSettings(9, 7, 2, residual=True, residual_dense=True, groups=3),
    )
    encoder = ConvEncoder(8, blocks, "swish")
    decoder = HEADS[head](9, 3)
    randomize(nn.ModuleList([encoder, decoder]))
    front = FrontEnd(8000, 200, 80, 256, 8, **settings)
    model = SpeechModel(front, encoder, decoder).eval().requires_grad_(False)
    return Checkpoint(model, "made", "", front, ("a", "b", "ø"), head, tokenizer)


@pytest.mark.parametrize("head", HEADS)
def test_written_and_read_back(tmp_path, head):
    tokenizer = b"pieces" if head == "ctc" else None
    settings = {"normalize": "none", "high_hz": 3800.0, "preemphasis": 0.0, "padding": "reflect", "extra_frame": True}
    one, path = made(head, tokenizer, **settings), tmp_path / "made.nemo"
    nemo.save(one, path)
    content = path.read_bytes()
    found = load(path)
    assert (found.labels, found.head, found.sample_rate, found.tokenizer) == (one.labels, head, 8000, tokenizer)
    assert (found.name, found.source, found.front) == ("made", str(path.resolve()), one.front)
    samples = torch.from_numpy(random_audio(2, 2400, 8000))
    assert torch.equal(found.model(samples), one.model(samples))
    nemo.save(found, path)  # replaces it, with the same bytes
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


CONFORMER = {  # NeMo's conformer_ctc_bpe.yaml, but for its sizes
    "_target_": ASR + "ConformerEncoder",
    "feat_in": 8,
    "feat_out": -1,
    "n_layers": 2,
    "d_model": 16,
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": -1,
    "causal_downsampling": False,
    "ff_expansion_factor": 4,
    "self_attention_model": "rel_pos",
    "n_heads": 4,
    "att_context_size": [-1, -1],
    "att_context_style": "regular",
    "xscaling": True,
    "untie_biases": True,
    "pos_emb_max_len": 5000,
    "conv_kernel_size": 31,
    "conv_norm_type": "batch_norm",
    "conv_context_size": None,
    "dropout": 0.1,
    "dropout_pre_encoder": 0.1,
    "dropout_emb": 0.0,
    "dropout_att": 0.1,
    "stochastic_depth_drop_prob": 0.0,
    "stochastic_depth_mode": "linear",
    "stochastic_depth_start_layer": 1,
}


def test_conformers(tmp_path):
    samples, path = torch.from_numpy(random_audio(2, 4800)), tmp_path / "net.nemo"
    for change, settings in (
        ({}, ConformerSettings(8, 16, 2, 4)),
        (
            {"subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": 6, "xscaling": False},
            ConformerSettings(8, 16, 2, 4, subsampling="dw_striding", factor=8, inner=6, scaled=False),
        ),
        ({"use_bias": False, "conv_kernel_size": 9}, ConformerSettings(8, 16, 2, 4, kernel=9, bias=False)),
    ):
        model = config(encoder=CONFORMER | change, decoder__feat_in=None)
        found = load(write_nemo(path, model))
        assert found.model.encoder.settings == settings
        logits = found.model(samples)
        nemo.save(found, path)
        assert torch.equal(load(path).model(samples), logits)
    for change, match in (
        ({"self_attention_model": "abs_pos"}, "encoder.self_attention_model is 'abs_pos'; taken is 'rel_pos'"),
        ({"att_context_size": [70, 0]}, r"att_context_size is \[70, 0\]; taken is \[-1, -1\]"),
        ({"conv_norm_type": "layer_norm"}, "conv_norm_type is 'layer_norm'"),
        ({"subsampling": "vggnet"}, "subsampling is 'vggnet'; taken are striding and dw_striding"),
        ({"feat_out": 8}, "feat_out is 8; taken is -1"),
        ({"novelty": True}, "settings that are not taken: novelty"),
    ):
        with pytest.raises(IntqError, match=match):
            load(write_nemo(path, config(encoder=CONFORMER | change), saved(state(config()))))
    other = random_checkpoint("hama")
    model = SpeechModel(FrontEnd(16000, 400, 160, 512, 80), other.model.encoder, other.model.decoder)
    with pytest.raises(IntqError, match="NeMo has no such Conformer"):
        nemo.save(replace(other, model=model), path)


def test_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "made.nemo"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(archive.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        nemo.save(made("ctc"), path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(IntqError, match="no version of NeMo has this front end"):
        nemo.save(made("ctc", extra_frame=True), path)


def test_labels(tmp_path):
    labels = ["yes", "no", "off"]
    decoder = {"_target_": ASR + "ConvASRDecoderClassification", "feat_in": 10, "return_logits": True}
    model = config(decoder=decoder, labels=labels)
    found = load(write_nemo(tmp_path / "words.nemo", model))
    assert (found.head, found.labels) == ("classification", ("yes", "no", "off"))
    assert found.model(torch.from_numpy(random_audio(2, 4800))).shape == (2, 3)
    model["decoder"] = {"_target_": "nemo.collections.common.parts.MultiLayerPerceptron", "hidden_size": 10}
    model["decoder"] |= {"num_layers": 1, "num_classes": 3, "log_softmax": False}
    found = load(write_nemo(tmp_path / "frames.nemo", model))
    assert (found.head, found.labels) == ("frames", ("yes", "no", "off"))
    model = config(decoder__vocabulary=None, labels=None)
    assert load(write_nemo(tmp_path / "numbers.nemo", model)).labels == ("0", "1", "2", "3")
    for change, match in (
        ({"decoder__num_classes": 5}, "decoder.num_classes is 5, but there are 4 labels"),
        ({"decoder__vocabulary": None, "decoder__num_classes": -1}, "names no labels"),
        ({"decoder__feat_in": 11}, "takes 11 channels, but the encoder gives 10"),
        ({"decoder__add_blank": False}, "decoder.add_blank is False; taken is True"),
    ):
        with pytest.raises(IntqError, match=match):
            load(write_nemo(tmp_path / "wrong.nemo", config(**change), saved(state(config()))))


def test_a_tokenizer(tmp_path):
    import sentencepiece

    text = io.StringIO("\n".join(["the cat sat on the mat", "a dog and a cat", "on the hat of the man"] * 20))
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.getvalue().split("\n")), model_writer=buffer, vocab_size=20, minloglevel=2
    )
    tokenizer = buffer.getvalue()
    section = {"type": "bpe", "dir": "/somewhere", "model_path": "nemo:1234_tokenizer.model"}
    decoder = {
        "_target_": ASR + "ConvASRDecoder",
        "feat_in": 10,
        "num_classes": 20,
        "vocabulary": piece_names(tokenizer),
    }
    model = config(tokenizer=section, decoder=decoder)
    values = saved(state(model))
    decoder |= {"num_classes": -1, "vocabulary": None}
    found = load(write_nemo(tmp_path / "pieces.nemo", model, values, **{"1234_tokenizer.model": tokenizer}))
    assert found.tokenizer == tokenizer
    assert len(found.labels) == 20 and found.labels[0] == "<unk>" and "▁" in found.labels
    with pytest.raises(IntqError, match=r"lacks its tokenizer, 1234_tokenizer\.model"):
        load(write_nemo(tmp_path / "none.nemo", model, values))
    with pytest.raises(IntqError, match="no SentencePiece model"):
        load(write_nemo(tmp_path / "broken.nemo", model, values, **{"1234_tokenizer.model": b"\xff" * 40}))
    section["type"] = "wpe"
    with pytest.raises(IntqError, match="tokenizer of type 'wpe'; taken is bpe"):
        load(write_nemo(tmp_path / "wpe.nemo", model, values))


def test_front_ends():
    def front(rate=None, version=None, **settings):
        section = {"_target_": ASR + "AudioToMelSpectrogramPreprocessor"} | settings
        found, cepstra = sections.front_end({"preprocessor": section, "sample_rate": rate, "nemo_version": version})
        assert cepstra is None
        return found

    newest = FrontEnd(16000, 320, 160, 512, 8)
    assert sections.front_end({"nemo_version": None, **config()}) == (newest, None)
    assert sections.front_end(config(nemo_version="2.5.0rc0")) == (newest, None)
    old = FrontEnd(16000, 320, 160, 512, 8, padding="reflect", extra_frame=True)
    for version in ("0.11.0", "1.0.0rc1", "1.23.0", "2.4.0"):
        assert sections.front_end(config(nemo_version=version)) == (old, None)
    assert front() == FrontEnd(16000, 320, 160, 512, 64)
    assert front(8000) == FrontEnd(8000, 160, 80, 256, 64)
    samples = {"n_window_size": 400, "n_window_stride": 100, "window_size": None, "window_stride": None}
    assert front(**samples) == FrontEnd(16000, 400, 100, 512, 64)
    bands = {"highfreq": 7600, "lowfreq": 20, "mel_norm": None, "features": 80, "n_fft": 1024}
    assert front(**bands) == FrontEnd(16000, 320, 160, 1024, 80, low_hz=20.0, high_hz=7600.0, mel_norm=None)
    other = {"preemph": None, "normalize": "NA", "log_zero_guard_value": "eps", "window": "none"}
    expected = {"preemphasis": 0.0, "normalize": "none", "guard": 2.0**-23, "window_kind": "rectangular"}
    assert front(**other) == FrontEnd(16000, 320, 160, 512, 64, **expected)
    assert front(log_zero_guard_type="clamp").guard_kind == "clamp"
    section = {"cls": ASR + "AudioToMelSpectrogramPreprocessor", "params": {"features": 80}}
    assert sections.front_end({"preprocessor": section, "sample_rate": None, "nemo_version": None})[0].bands == 80
    for change, match in (
        ({"normalize": "all_features"}, "normalize is 'all_features'; taken are per_feature and none"),
        ({"normalize": {"fixed_mean": [0], "fixed_std": [1]}}, "taken are per_feature and none"),
        ({"mag_power": 1.0}, "preprocessor.mag_power is 1.0; taken is 2.0"),
        ({"log": False}, "preprocessor.log is False"),
        ({"warp": 3}, "preprocessor has settings that are not taken: warp"),
        ({"window": "bartlett"}, "window_kind must be one of hann"),
        (
            {"_target_": ASR + "AudioToSpectrogramPreprocessor"},
            "AudioToSpectrogramPreprocessor; taken are AudioTo",
        ),
        ({"_target_": ASR + "AudioToMFCCPreprocessor", "n_mfcc": 65}, "n_mfcc is 65, more than its 64 bands"),
        ({"_target_": ASR + "AudioToMFCCPreprocessor", "norm": None}, "preprocessor.norm is None; taken is 'ortho'"),
    ):
        with pytest.raises(IntqError, match=match):
            front(**change)
    with pytest.raises(IntqError, match="nemo_version is 'new'"):
        front(version="new")


def test_cepstral_coefficients(tmp_path, caplog):
    section = {"_target_": ASR + "AudioToMFCCPreprocessor", "window_size": 0.025, "window_stride": 0.01, "n_fft": 512}
    model = config(preprocessor=section | {"window": "hann", "n_mels": 20, "n_mfcc": 8})
    path, samples = tmp_path / "net.nemo", torch.from_numpy(random_audio(2, 4800))
    found = load(write_nemo(path, model))
    assert found.front == replace(CEPSTRAL, bands=20)
    with torch.no_grad():  # torchaudio's MFCC, step by step
        window = torch.hann_window(400)
        power = torch.stft(samples, 512, 160, 400, window, return_complex=True).abs().square()
        bands = torch.log(torch.from_numpy(mel_filters(found.front)).float() @ power + 1e-6)
        k, b = torch.arange(8)[:, None], torch.arange(20)
        cosines = torch.cos(torch.pi / 20 * (b + 0.5) * k) * (2 / 20) ** 0.5
        cosines[0] *= 0.5**0.5
        expected = found.model.decoder(found.model.encoder(cosines @ bands))
    logits = found.model(samples)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    nemo.save(found, path)
    assert torch.equal(load(path).model(samples), logits)
    caplog.clear()
    load(write_nemo(path, model | {"crop_or_pad_augment": {"audio_length": 128}}))
    assert "NeMo cuts or fills every recording to one length; here it is taken as it is" in caplog.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoder___target_": ASR + "SqueezeformerEncoder"}, r"the encoder is .*SqueezeformerEncoder; taken are Conv"),
        ({"encoder": {"jasper": []}}, "the encoder is without a _target_"),
        ({"encoder": None}, "has no section 'encoder'"),
        ({"decoder___target_": "nemo.collections.asr.modules.RNNTDecoder"}, "the decoder is .*RNNTDecoder; taken are"),
        ({"encoder__normalization_mode": "layer"}, "encoder.normalization_mode is 'layer'; taken is 'batch'"),
        ({"encoder__conv_mask": False}, "encoder.conv_mask is False; taken is True"),
        ({"encoder__activation": "selu"}, "activation 'selu'"),
        ({"encoder__novelty": 1}, "encoder has settings that are not taken: novelty"),
        (
            {"encoder__jasper": [{"filters": 8, "kernel": [3], "heads": 4}]},
            r"encoder.jasper\[0\].heads is 4; taken is -1",
        ),
        ({"encoder__jasper": [{"filters": 8, "kernel": [3, 5]}]}, r"encoder.jasper\[0\].kernel is \[3, 5\]"),
        ({"encoder__jasper": [{"filters": 8, "kernel": [3], "future_context": 2}]}, "future_context is 2"),
        ({"encoder__jasper": [{"kernel": [3]}]}, "is not as NeMo writes it"),
        ({"encoder__jasper": 7}, "is not as NeMo writes it"),
        ({"encoder__feat_in": 9}, "the front end gives 8 features, the encoder takes 9"),
        ({"sample_rate": "${model.rate}"}, r"refers to \$\{model.rate\}, which it does not hold"),
        ({"sample_rate": "${sample_rate}"}, "refers to itself"),
    ],
)
def test_configurations_that_are_not_taken(tmp_path, change, match):
    with pytest.raises(IntqError, match=match):
        load(write_nemo(tmp_path / "net.nemo", config(**change), saved(state(config()))))


def test_weights_that_do_not_fit(tmp_path):
    values, path = state(config()), tmp_path / "net.nemo"
    key = "encoder.encoder.1.res.0.0.conv.weight"
    for change, match in (
        ({key: None}, rf"not the weights of ConvEncoder: missing {key}"),
        ({"encoder.encoder.9.x": torch.ones(1)}, r"unknown encoder\.encoder\.9\.x"),
        ({key: torch.ones(12, 11, 1)}, rf"{key} has the shape \(12, 11, 1\), ConvEncoder expects \(12, 12, 1\)"),
        ({key: torch.full((12, 12, 1), torch.nan)}, rf"{key} holds 144 NaN"),
    ):
        wrong = {name: value for name, value in (values | change).items() if value is not None}
        with pytest.raises(IntqError, match=match):
            load(write_nemo(path, config(), saved(wrong)))
    counts = {name: value for name, value in values.items() if not name.endswith("num_batches_tracked")}
    assert load(write_nemo(path, config(), saved(counts)))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(IntqError, match=r"there is no file or folder .*net\.nemo"):
        load(tmp_path / "net.nemo")
    with pytest.raises(IntqError, match="quartznet15x5 is an architecture without weights"):
        load("quartznet15x5")
    with pytest.raises(IntqError, match=r"expected one configuration \(\.yaml, \.yml\), found none"):
        load(tmp_path)
