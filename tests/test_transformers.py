"""Transformers from torch to integers: capture, rewrites that keep the function, widths, what quantization makes."""

import numpy as np
import pytest
import torch
from text_models import FAMILIES, tiny, tiny_ids
from torch import nn

import intq
from intq.artifact import digest
from intq.backends import reference
from intq.calibrate import observe_limits
from intq.capture import capture
from intq.errors import IntqError
from intq.floatgraph import FloatGraph
from intq.migrate import MOVED, migrate
from intq.simplify import simplify
from intq.tokens import sentences, spread_tokens, tokens_value

torch.set_num_threads(1)
HEADS = ("classification", "tokens", "embedding", "regression")


def silent(*_) -> None:
    pass


def decibel(exact: np.ndarray, rough: np.ndarray) -> float:
    return 10 * np.log10((exact**2).sum() / ((exact - rough) ** 2).sum())


@pytest.fixture(scope="module")
def bert() -> tuple[nn.Module, list[torch.Tensor]]:
    return tiny("bert"), [tiny_ids("bert", 8, tokens, seed=tokens) for tokens in range(5, 30, 3)]


@pytest.fixture(scope="module")
def graph(bert) -> FloatGraph:
    model, batches = bert
    return simplify(capture(model, batches[0]))


# ---- capture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_captured_encoder_computes_what_the_model_computes(family):
    model = tiny(family)
    captured, few, many = (
        capture(model, tiny_ids(family, 2, 4)),
        tiny_ids(family, 3, 5),
        tiny_ids(family, 2, 23, seed=1),
    )
    for ids in (few, many):
        assert torch.equal(captured.run(ids), model(ids))
    assert captured.reads_tokens and captured.input_shape == ("n", "s")
    torch.testing.assert_close(simplify(captured).run(many), model(many), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_captured(head):
    model, ids = tiny("roberta", head), tiny_ids("roberta", 3, 9)
    torch.testing.assert_close(simplify(capture(model, ids)).run(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_an_encoder_layer_is_seven_nodes_and_the_last_is_of_one_token(graph):
    ops = [node.op for node in graph.nodes]
    assert ops.count("embedding") == ops.count("mask") == 1 and ops.count("attention") == 2
    assert {node.op for node in graph.nodes} == {
        *("embedding", "mask", "layer_norm", "linear", "attention", "function", "slice", "reshape")
    }
    last = next(node for node in graph.nodes if node.name.endswith("layer.1.intermediate.dense"))
    assert last.shape == ("n", 1, 64)


class Custom(nn.Module):
    """An embedding and one attention, with a mask and positions as given."""

    def __init__(self, mask=None, positions=None, causal=False):
        super().__init__()
        self.word, self.place = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.mask, self.positions, self.causal = mask, positions, causal

    def forward(self, ids):
        x = self.word(ids)
        if self.positions:
            x = x + self.place(self.positions(ids))
        heads = x.unsqueeze(1)
        mask = self.mask(ids) if self.mask else None
        return nn.functional.scaled_dot_product_attention(heads, heads, heads, mask, is_causal=self.causal)[:, 0]


def key_mask(ids):
    return (ids != 3)[:, None, None, :]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Custom(causal=True), "causal masks"),
        (Custom(mask=lambda ids: (ids > 3)[:, None, None, :]), "leaves out 4 different tokens"),
        (Custom(mask=lambda ids: (ids != ids[:, :1])[:, None, None, :]), "depends on more|leaves out"),
        (Custom(mask=lambda ids: (ids != 3)[:, None, None, :] & (ids != 3)[:, None, :, None]), "one value a key"),
        (Custom(key_mask, positions=lambda ids: ids.flip(1)), "positions and segments must follow"),
    ],
)
def test_what_the_ids_determine_otherwise_is_refused(model, reason):
    with pytest.raises(IntqError, match=reason):
        capture(model, torch.zeros(2, 4, dtype=torch.int64))


def test_masks_and_positions_written_otherwise_are_recognised():
    additive = Custom(
        lambda ids: torch.where(ids == 3, -torch.inf, 0.0)[:, None, None, :], lambda ids: (ids * 0 + 1).cumsum(1) - 1
    )
    captured = capture(additive, torch.zeros(2, 4, dtype=torch.int64))
    mask, positions = (
        next(n for n in captured.nodes if test(n))
        for test in (lambda n: n.op == "mask", lambda n: "position" in n.parameters)
    )
    assert mask.attrs["padding"] == 3 and positions.attrs["positions"] == "index"


def test_integers_that_no_embedding_reads_are_refused():
    with pytest.raises(IntqError, match="no embedding reads them"):
        capture(nn.Sequential(nn.Flatten()), torch.zeros(2, 4, dtype=torch.int64))


# ---- rewrites ----------------------------------------------------------------------------------------------------


def test_moving_channels_keeps_the_function(bert, graph):
    _, batches = bert
    moved, limits = migrate(graph, observe_limits(graph, batches, silent))
    ids = tiny_ids("bert", 4, 17, seed=3)
    torch.testing.assert_close(moved.run(ids), graph.run(ids), rtol=1e-4, atol=1e-4)
    values = dict(moved.values(batches[0]))
    for name in (name for name in values if name.endswith(MOVED)):
        assert (values[name].flatten(0, -2).amax(0) <= limits[name].high + 1e-3).all()


def test_moved_channels_are_alike_although_some_are_outliers(bert, graph):
    """A LayerNorm with channels a hundred times as wide: after the move no channel is left with a few levels alone."""
    name = next(n.name for n in graph.nodes if n.op == "layer_norm")
    gain = torch.ones(32)
    gain[3], gain[7] = 100.0, 30.0
    wide = [n.with_parameters(weight=n.parameters["weight"] * gain) if n.name == name else n for n in graph.nodes]
    wide = FloatGraph(graph.input, graph.input_shape, tuple(wide), graph.output)
    _, limits = migrate(wide, observe_limits(wide, bert[1], silent))
    reach = limits[name + MOVED].high - limits[name + MOVED].low
    assert float(reach.max() / reach.min()) < 20


# ---- sentences ---------------------------------------------------------------------------------------------------


def test_sentences_lose_their_padding_and_lie_together_by_length(graph):
    ids = torch.tensor([[2, 9, 3, 0, 0], [2, 8, 3, 0, 0], [2, 9, 8, 7, 3]])
    assert [batch.tolist() for batch in sentences(graph, [ids])] == [[[2, 9, 3], [2, 8, 3]], [[2, 9, 8, 7, 3]]]
    value = tokens_value(graph)
    assert (value.dtype, value.low, value.high, value.longest) == ("int32", 0, 59, 40)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (torch.full((1, 4), 60), r"must lie in \[0, 59\], found \[60, 60\]"),
        (torch.ones(1, 41, dtype=torch.int64), "a sentence of 41 tokens"),
        (torch.zeros(2, 3, dtype=torch.int64), "padding alone"),
    ],
)
def test_sentences_that_do_not_fit_are_refused(graph, ids, reason):
    with pytest.raises(IntqError, match=reason):
        sentences(graph, [ids])


def test_spread_tokens_takes_from_all_lengths():
    batches = [torch.ones(20, length, dtype=torch.int64) for length in (5, 10, 15)]
    taken = spread_tokens(batches, 150)
    assert [batch.shape[1] for batch in taken] == [5, 10, 15] and sum(b.numel() for b in taken) < 300


# ---- quantization ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def integers(bert):
    return intq.quantize(*bert)


def answers(graph, ids) -> np.ndarray:
    return reference.run(graph, ids.numpy().astype(np.int32))[0] * graph.values[graph.outputs[0]].scale


def test_an_encoder_in_integers_is_near_the_float_one_on_other_sentences(bert, integers):
    ids = tiny_ids("bert", 64, 21, seed=99)
    assert decibel(bert[0](ids).numpy(), answers(integers, ids)) > 25
    *stream, last = (v.dtype for v in integers.values.values() if v.name.endswith("LayerNorm"))
    assert set(stream) == {"int16"} and last == "uint8"  # nothing is added to the last one


def test_the_same_data_and_seed_give_the_same_integers(bert, integers):
    assert digest(intq.quantize(*bert)) == digest(integers)


def test_sixteen_bits_for_all_layers_are_nearer(bert, integers):
    ids = tiny_ids("bert", 64, 21, seed=99)
    wide = intq.quantize(*bert, bits={"*": 16, "*.query": 8})
    exact = bert[0](ids).numpy()
    assert decibel(exact, answers(wide, ids)) > decibel(exact, answers(integers, ids)) + 3
    assert any(node.name.endswith("query") and len(node.inputs) == 1 for node in wide.nodes)


def test_halves_are_the_whole(bert):
    wide = intq.quantize(*bert, bits={"*.intermediate.dense": 16})
    low = next(node for node in wide.nodes if node.op == "add" and node.name.endswith(".low_byte"))
    nodes = {node.name: node for node in wide.nodes}
    x = np.arange(-(2**15), 2**15, dtype=np.int16).reshape(1, -1, 32)
    high = reference.run_node(nodes[low.inputs[1]], [x])
    halves = 256 * (high.astype(np.int32) - 128) + reference.run_node(low, [x, high])
    np.testing.assert_array_equal(halves, x)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": {"*.nowhere": 16}}, "no layer is called"),
        ({"bits": {"*": 12}}, "4, 8, 16 bits, got 12"),
        ({"functions": "quick"}, "functions must be one of exact, ibert"),
        ({"mean": [0.5]}, "mean and std go with uint8 pixels"),
    ],
)
def test_options_that_mean_nothing_are_refused(bert, options, reason):
    with pytest.raises(IntqError, match=reason):
        intq.quantize(*bert, **options)


def test_iberts_polynomials_are_taken_when_asked_for(bert, integers):
    made = intq.quantize(*bert, functions="ibert")
    names = {node.attrs.get("function") for node in made.nodes}
    assert "ibert_gelu" in names and "gelu" not in names
    assert digest(made) != digest(integers)
