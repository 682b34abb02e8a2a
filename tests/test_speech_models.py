"""The speech networks: NeMo's names and sizes, alone as in a batch, export, random weights alive."""

import pytest
import torch

from intq.errors import IntqError
from intq.frontend import FrontEnd
from intq.speech.models import ARCHITECTURES, architecture
from intq.speech.models.conformer import LONGEST, Attention, ConformerEncoder, ConformerSettings, halved
from intq.speech.models.convolutional import NORM_EPSILON, BlockSettings, ConvEncoder, MaskedConv1d
from intq.speech.models.heads import HEADS
from intq.speech.models.network import SpeechModel
from intq.speech.synthetic import random_audio, random_checkpoint, randomize, settle

# With the published heads. The papers say: QuartzNet 6.7M, 12.8M, 18.9M; Jasper 333M; MatchboxNet 77k; MarbleNet 88k,
# with 64 bands instead of 80 and one pooled answer.
PARAMETERS = {
    "quartznet5x5": 6_713_181,
    "quartznet10x5": 12_818_781,
    "quartznet15x5": 18_924_381,
    "jasper10x5": 332_632_349,
    "marblenet": 91_378,
    "matchboxnet": 77_859,
    "conformer-ctc-small": 12_977_741,
    "hama": 2_005_247,
}
STEM = BlockSettings(12, 5, stride=2)
FAMILIES = {
    "quartznet": (STEM, BlockSettings(16, 7, 3, residual=True, separable=True), BlockSettings(8, 9, dilation=2)),
    "jasper": (
        STEM,
        BlockSettings(12, 5, 2, residual=True, residual_dense=True),
        BlockSettings(16, 7, 2, residual=True, residual_dense=True),
        BlockSettings(10, 7, 2, residual=True, residual_dense=True),
        BlockSettings(8, 1),
    ),
    "citrinet": (
        STEM,
        BlockSettings(
            16, 5, 2, 2, residual=True, residual_mode="stride_add", separable=True, se=True, stride_last=True
        ),
        BlockSettings(16, 5, 2, residual=True, separable=True, se=True),
    ),
    "conformer": ConformerSettings(8, 16, 2, 4, kernel=7),
    "fastconformer": ConformerSettings(8, 12, 2, 3, 5, 2, "dw_striding", 8, inner=6, scaled=False, bias=False),
    "placeless": ConformerSettings(8, 16, 2, 4, 7, subsampling="conv1d", factor=2, positions=False, scaled=False),
    "grouped": (STEM, BlockSettings(16, 7, 2, residual=True, separable=True, groups=4), BlockSettings(8, 3, groups=2)),
}


def network(family: str = "quartznet", head: str = "ctc", bands: int = 8, labels: int = 5) -> SpeechModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = FAMILIES[family]
        conformer = isinstance(settings, ConformerSettings)
        encoder = ConformerEncoder(settings) if conformer else ConvEncoder(bands, settings)
        model = SpeechModel(FrontEnd(16000, 160, 160, 256, bands), encoder, HEADS[head](encoder.channels, labels))
        randomize(model)
        settle(encoder, model.front(audio(4, 8000)))
    return model.eval().requires_grad_(False)


def audio(n: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random_audio(n, samples, seed=seed))


def test_published_sizes():
    assert set(PARAMETERS) == set(ARCHITECTURES)
    for name, count in PARAMETERS.items():
        with torch.device("meta"):
            model = architecture(name).build()
        parts = (model.encoder, model.decoder)
        assert sum(value.numel() for part in parts for value in part.parameters()) == count, name


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = architecture(name).build().state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def test_names_of_quartznet_are_nemos():
    found = shapes("quartznet15x5")
    assert len(found) == 637
    expected = {
        "encoder.encoder.0.mconv.0.conv.weight": (64, 1, 33),
        "encoder.encoder.0.mconv.1.conv.weight": (256, 64, 1),
        "encoder.encoder.0.mconv.2.running_mean": (256,),
        "encoder.encoder.1.mconv.0.conv.weight": (256, 1, 33),
        "encoder.encoder.1.mconv.5.conv.weight": (256, 1, 33),
        "encoder.encoder.1.mconv.21.conv.weight": (256, 256, 1),
        "encoder.encoder.1.mconv.22.num_batches_tracked": (),
        "encoder.encoder.1.res.0.0.conv.weight": (256, 256, 1),
        "encoder.encoder.1.res.0.1.bias": (256,),
        "encoder.encoder.7.res.0.0.conv.weight": (512, 256, 1),
        "encoder.encoder.16.mconv.0.conv.weight": (512, 1, 87),
        "encoder.encoder.17.mconv.0.conv.weight": (1024, 512, 1),
        "encoder.encoder.17.mconv.1.running_var": (1024,),
        "decoder.decoder_layers.0.weight": (29, 1024, 1),
        "decoder.decoder_layers.0.bias": (29,),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert not [key for key in found if ".0.res." in key and key.startswith("encoder.encoder.0.")]


def test_names_of_jasper_and_the_small_ones_are_nemos():
    found = shapes("jasper10x5")
    assert found["encoder.encoder.0.mconv.0.conv.weight"] == (256, 64, 11)
    assert found["encoder.encoder.10.mconv.16.conv.weight"] == (768, 768, 25)
    panes = [found[f"encoder.encoder.10.res.{index}.0.conv.weight"] for index in range(10)]
    assert panes == [(768, width, 1) for width in (256, 256, 256, 384, 384, 512, 512, 640, 640, 768)]
    assert found["encoder.encoder.11.mconv.0.conv.weight"] == (896, 768, 29)
    assert not [key for key in found if key.startswith("encoder.encoder.11.res")]
    found = shapes("marblenet")
    assert found["encoder.encoder.0.mconv.0.conv.weight"] == (80, 1, 11)
    assert found["encoder.encoder.3.mconv.5.conv.weight"] == (64, 1, 17)
    assert found["decoder.layer0.weight"] == (2, 128)
    assert shapes("matchboxnet")["decoder.decoder_layers.0.weight"] == (35, 128)


def test_the_published_tables():
    encoder = architecture("quartznet15x5").build().encoder
    convolutions = [module for module in encoder.modules() if isinstance(module, MaskedConv1d)]
    first, last_wide = convolutions[0].conv, encoder.encoder[16].mconv[0].conv
    assert (first.stride, first.padding, first.groups, first.bias) == ((2,), (16,), 64, None)
    assert (last_wide.dilation, last_wide.padding, last_wide.kernel_size) == ((2,), (86,), (87,))
    assert {m.eps for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)} == {NORM_EPSILON} == {1e-3}
    kernels = [encoder.encoder[index].mconv[0].conv.kernel_size[0] for index in range(18)]
    assert kernels == [33, *[33] * 3, *[39] * 3, *[51] * 3, *[63] * 3, *[75] * 3, 87, 1]
    assert [encoder.frames(frames) for frames in (1, 2, 3, 101)] == [1, 1, 2, 51]
    mout = encoder.encoder[1].mout
    assert isinstance(mout[0], torch.nn.ReLU) and isinstance(mout[1], torch.nn.Dropout)


def test_a_block_is_its_formula():
    settings = BlockSettings(6, 5, 2, residual=True, separable=True)
    encoder = ConvEncoder(4, (settings,)).eval()
    randomize(encoder)
    block, x = encoder.encoder[0], torch.randn(2, 4, 30)
    inner = block.mconv
    y = torch.relu(
        inner[2](torch.conv1d(torch.conv1d(x, inner[0].conv.weight, padding=2, groups=4), inner[1].conv.weight))
    )
    y = inner[7](torch.conv1d(torch.conv1d(y, inner[5].conv.weight, padding=2, groups=6), inner[6].conv.weight))
    y = torch.relu(y + block.res[0][1](torch.conv1d(x, block.res[0][0].conv.weight)))
    torch.testing.assert_close(encoder(x), y)


def test_dense_residuals_add_every_earlier_block():
    encoder = network("jasper").encoder
    x = encoder.encoder[0]([torch.randn(2, 8, 40)])
    assert [len(block.res) for block in encoder.encoder] == [0, 1, 2, 3, 0]
    for block in encoder.encoder[1:4]:
        y = x[-1]
        for module in block.mconv:
            y = module(y)
        y = torch.relu(y + sum(norm(conv(pane)) for pane, (conv, norm) in zip(x, block.res, strict=True)))
        x.append(y)
        torch.testing.assert_close(block(x[:-1])[-1], y)
    assert len(encoder.encoder[4](x)) == 1


def test_names_of_conformer_are_nemos():
    found = shapes("conformer-ctc-small")
    expected = {
        "encoder.pre_encode.conv.0.weight": (176, 1, 3, 3),
        "encoder.pre_encode.conv.2.weight": (176, 176, 3, 3),
        "encoder.pre_encode.out.weight": (176, 3520),
        "encoder.layers.0.norm_feed_forward1.weight": (176,),
        "encoder.layers.0.feed_forward1.linear1.weight": (704, 176),
        "encoder.layers.0.norm_self_att.bias": (176,),
        "encoder.layers.0.self_attn.pos_bias_u": (4, 44),
        "encoder.layers.0.self_attn.linear_pos.weight": (176, 176),
        "encoder.layers.0.self_attn.linear_out.bias": (176,),
        "encoder.layers.0.norm_conv.weight": (176,),
        "encoder.layers.0.conv.pointwise_conv1.weight": (352, 176, 1),
        "encoder.layers.0.conv.depthwise_conv.weight": (176, 1, 31),
        "encoder.layers.0.conv.batch_norm.running_var": (176,),
        "encoder.layers.0.conv.pointwise_conv2.weight": (176, 176, 1),
        "encoder.layers.15.feed_forward2.linear2.weight": (176, 704),
        "encoder.layers.15.norm_out.weight": (176,),
        "decoder.decoder_layers.0.weight": (29, 176, 1),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert len(found) == 6 + 16 * 40 + 2
    fast = ConformerEncoder(FAMILIES["fastconformer"]).state_dict()
    assert [fast[f"pre_encode.conv.{index}.weight"].shape for index in (0, 2, 3, 5, 6)] == [
        (6, 1, 3, 3),
        (6, 1, 3, 3),
        (6, 6, 1, 1),
        (6, 1, 3, 3),
        (6, 6, 1, 1),
    ]


def test_attention_knows_distances():
    settings, t = ConformerSettings(8, 16, 1, 4), 7
    encoder = ConformerEncoder(settings)
    randomize(encoder)
    attention, x = encoder.layers[0].self_attn, torch.randn(2, t, 16)
    q, k, v = (
        linear(x).view(2, t, 4, 4).transpose(1, 2)
        for linear in (attention.linear_q, attention.linear_k, attention.linear_v)
    )
    scores = torch.empty(2, 4, t, t)
    for i in range(t):
        for j in range(t):
            angles = (i - j) * 10000.0 ** (-torch.arange(0, 16, 2) / 16)
            waves = torch.stack([angles.sin(), angles.cos()], -1).flatten()
            r = attention.linear_pos(waves).view(4, 4)
            u, w = attention.pos_bias_u, attention.pos_bias_v
            scores[:, :, i, j] = ((q[:, :, i] + u) * k[:, :, j] + (q[:, :, i] + w) * r).sum(-1)
    expected = attention.linear_out(((scores / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, encoder.distances), expected)
    assert encoder.distances.shape == (2 * LONGEST - 1, 16)
    assert [halved(frames) for frames in (1, 2, 3, 4)] == [1, 1, 2, 2]
    with pytest.raises(IntqError, match=f"takes up to {LONGEST} frames, found {LONGEST + 1}: cut the audio"):
        encoder(torch.zeros(1, 8, 4 * LONGEST + 4))
    assert not hasattr(Attention(FAMILIES["placeless"]), "linear_pos")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_utterance_alone_is_what_it_is_in_a_batch(family, head):
    model, lengths = network(family, head), torch.tensor([8000, 5283, 3200, 7999])
    samples = audio(4, 8000)
    together = model(samples, lengths)
    for row, length, found in zip(samples, lengths.tolist(), together, strict=True):
        alone = model(row[None, :length])[0]
        assert head == "classification" or len(alone) == model.frames(length)
        found = found if head == "classification" else found[: model.frames(length)]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.frames(lengths), torch.tensor([model.frames(length) for length in lengths.tolist()]))
    masked = model(samples, torch.full((4,), 8000))
    torch.testing.assert_close(masked, model(samples), rtol=1e-4, atol=1e-5)
    assert (model(samples)[1] - model(samples)[0]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("family", "head"), [*((family, "ctc") for family in FAMILIES), ("quartznet", "classification")]
)
def test_export_with_any_batch_and_any_length(family, head):
    model, dynamic = network(family, head), torch.export.Dim.DYNAMIC
    tail = torch.nn.Sequential(model.encoder, model.decoder)
    program = torch.export.export(tail, (torch.randn(2, 8, 40),), dynamic_shapes=(({0: dynamic, 2: dynamic}),))
    assert not [str(node.target) for node in program.graph.nodes if "arange" in str(node.target)]
    exported = program.module()
    for n, frames in ((1, 9), (3, 57), (2, 200)):
        x = torch.randn(n, 8, frames)
        torch.testing.assert_close(exported(x), tail(x))


def test_without_lengths_there_is_no_mask():
    model = network("quartznet")
    program = torch.export.export(model.encoder, (torch.randn(1, 8, 40),))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name.split(".")[1] for name in names} == {"conv1d", "batch_norm", "relu", "add", "dropout"}


@pytest.mark.parametrize("name", ["quartznet5x5", "marblenet", "matchboxnet", "conformer-ctc-small", "hama"])
def test_random_networks_are_reproducible_and_alive(name):
    before = torch.random.get_rng_state()
    one, again, other = (random_checkpoint(name, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    known = architecture(name)
    assert (one.name, one.source, one.head, one.labels) == (name, "", known.head, known.labels)
    assert (one.sample_rate, one.tokenizer) == (16000, None)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    assert not torch.equal(next(one.model.encoder.parameters()), next(other.model.encoder.parameters()))
    widths = []
    encoder = one.model.encoder
    for block in encoder.layers if isinstance(encoder, ConformerEncoder) else encoder.encoder:
        block.register_forward_hook(lambda _module, _inputs, output: widths.append(output[-1].std().item()))
    logits = one.model(audio(3, 24000, seed=8))
    assert min(widths) > 0.4 and max(widths) < 4
    frames = {"conformer-ctc-small": 38, "hama": 76}.get(name, 75)
    labels = len(known.labels) + (known.head == "ctc")
    assert logits.shape == ((3, labels) if known.head == "classification" else (3, frames, labels))
    assert logits.std(1).min() > 0.05 and logits.abs().max() < 30
    assert not one.model.training and not any(value.requires_grad for value in one.model.parameters())


def test_random_audio_is_like_a_voice():
    samples = random_audio(3, 16001, seed=2)
    assert samples.shape == (3, 16001) and samples.dtype == "float32"
    assert (samples == random_audio(3, 16001, seed=2)).all() and (samples != random_audio(3, 16001, seed=3)).any()
    assert ((samples * 32768) % 1 == 0).all() and samples.min() >= -1 and samples.max() < 1
    energies = (samples[:, :16000].reshape(3, 100, 160) ** 2).mean(-1)
    assert (energies.max(1) > 100 * energies.min(1)).all()
    assert random_audio(1, 10).shape == (1, 10)


def test_what_is_not_taken():
    with pytest.raises(IntqError, match="no architecture is called 'quartznet'; there are quartznet5x5"):
        random_checkpoint("quartznet")
    with pytest.raises(IntqError, match="stride 2 and dilation 2"):
        BlockSettings(8, 3, stride=2, dilation=2)
    with pytest.raises(IntqError, match="residual_mode 'max'"):
        BlockSettings(8, 3, residual_mode="max")
    for change, match in (
        ({"heads": 3}, "heads must be a divisor of 16 channels, found 3"),
        ({"kernel": 8}, "kernel must be odd, found 8"),
        ({"factor": 6}, "factor must be a power of two above 1, found 6"),
        ({"subsampling": "conv1d"}, "factor must be 2 for conv1d, found 4"),
    ):
        with pytest.raises(IntqError, match=match):
            ConformerSettings(**{"bands": 8, "channels": 16, "layers": 2, "heads": 4} | change)
    with pytest.raises(IntqError, match="activation 'selu': taken are relu, swish, hardtanh"):
        ConvEncoder(8, (STEM,), "selu")
