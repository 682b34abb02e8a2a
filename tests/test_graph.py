"""The graph: what it refuses, what it derives, how it reads."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import random_graph
from text_graphs import LONGEST, VOCABULARY, random_text_graph, sentences

from intq.backends import reference
from intq.errors import IntqError, UnprovenError
from intq.graph import Graph, make_node
from intq.ops import OPS
from intq.value import DTYPE_RANGE, Value, bind_shape


def classifier(k: int = 6, co: int = 3, weight=None) -> Graph:
    """uint8 (n, k) -> int32 (n, co) through a table."""
    x = Value("x", ("n", k), "uint8", 0, 255, 0.1, 100)
    table = {"table": np.arange(255, -1, -1).astype(np.uint8)}
    turned = make_node("lookup", "turned", [x], dtype="uint8", attrs={"function": "neg"}, constants=table, source="act")
    constants = {
        "weight": np.ones((co, k), np.int8) if weight is None else weight,
        "multiplier": np.full(co, 2**30, np.int32),
        "offset": np.full(co, 2**29, np.int64),
        "shift": np.full(co, 30, np.int32),
    }
    attrs = dict(zip(("low", "high"), DTYPE_RANGE["int32"], strict=True))
    scores = make_node(
        "linear", "scores", [turned.output], dtype="int32", attrs=attrs, constants=constants, source="fc"
    )
    return Graph((x,), (turned, scores), ("scores",))


def test_shapes_and_bounds_are_derived():
    graph = classifier()
    assert graph.values["scores"] == Value("scores", ("n", 3), "int32", 0, 6 * 255)
    proof = graph.verify()
    assert (proof.node, proof.widest_bits) == ("scores", 12)


def test_the_text_has_a_line_a_node():
    assert classifier().text().splitlines() == [
        "input  x: uint8[n, 6] in [0, 255]",
        'turned: uint8[n, 6] in [0, 255] = lookup(x; function="neg", table:uint8[256])  # act',
        "scores: int32[n, 3] in [0, 1530] = linear(turned; low=-2147483648, high=2147483647, "
        "multiplier:int32[3], offset:int64[3], shift:int32[3], weight:int8[3, 6])  # fc",
        "return scores",
    ]


@pytest.mark.parametrize("seed", range(3))
def test_every_value_is_in_the_text(seed):
    graph = random_graph(seed)
    text = graph.text()
    assert all(f"{node.name}: " in text and node.source in text for node in graph.nodes)


def test_a_network_whose_accumulator_could_overflow_is_rejected_when_it_is_built():
    k = 2**31 // (127 * 255) + 1
    with pytest.raises(UnprovenError, match=r"scores \(linear\): accumulator needs 33 bits, has 32; lower"):
        classifier(k, 1, np.full((1, k), 127, np.int8))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"dtype": "float32"}, "x: dtype must be one of"),
        ({"low": -1}, r"x: bounds must lie in uint8's \[0, 255\]"),
        ({"high": 256}, "bounds must lie"),
        ({"low": 9, "high": 8}, r"\[9, 8\]"),
    ],
)
def test_values_that_cannot_be(value, says):
    with pytest.raises(IntqError, match=says):
        replace(Value("x", ("n", 4), "uint8", 0, 255), **value)


def edited(graph: Graph, index: int, **changes) -> Graph:
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return replace(graph, nodes=tuple(nodes))


def renamed(value: Value, name: str) -> Value:
    return replace(value, name=name)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda g: edited(g, 0, op="divide"), "turned: unknown operation 'divide'; known: add, "),
        (lambda g: edited(g, 0, inputs=("y",)), r"turned \(lookup\): its input 'y' is not defined before it"),
        (lambda g: edited(g, 1, inputs=("scores",)), r"scores \(linear\): its input 'scores' is not defined before"),
        (lambda g: edited(g, 0, output=renamed(g.nodes[0].output, "x")), "two values have the name 'x'"),
        (lambda g: replace(g, outputs=("logits",)), "the output 'logits' is not defined"),
        (lambda g: edited(g, 1, output=replace(g.nodes[1].output, high=7)), r"declared as .* in \[0, 7\], derived as"),
        (lambda g: edited(g, 1, output=replace(g.nodes[1].output, shape=("n", 4))), r"declared as .*\[n, 4\]"),
        (lambda g: edited(g, 1, attrs={"low": 0, "high": 10}), "declared as"),
        (lambda g: edited(g, 1, attrs={"low": 0}), "needs the attributes"),
    ],
)
def test_verify_finds_what_was_edited(edit, says):
    graph = classifier()
    graph.verify()
    with pytest.raises(IntqError, match=says):
        edit(graph).verify()


def test_an_edited_weight_that_breaks_the_proof_is_found():
    graph = classifier()
    constants = dict(graph.nodes[1].constants) | {"weight": np.full((3, 6), -100, np.int8)}
    with pytest.raises(IntqError, match=r"scores \(linear\): declared as"):
        edited(graph, 1, constants=constants).verify()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ([], "expected 1 inputs, got 0"),
        ([np.zeros((1, 6), np.int8)], "input x: expected uint8, got int8"),
        ([np.zeros((1, 7), np.uint8)], r"input x: expected shape \(n, 6\), got \(1, 7\)"),
        ([np.zeros(6, np.uint8)], r"expected shape \(n, 6\), got \(6,\)"),
    ],
)
def test_inputs_that_are_not_as_declared_are_refused(arrays, says):
    with pytest.raises(IntqError, match=says):
        reference.run(classifier(), *arrays)


def test_the_reference_shows_every_value_and_takes_any_batch():
    seen = {}
    graph = classifier()
    for n in (0, 1, 5):
        (scores,) = reference.run(graph, np.full((n, 6), 250, np.uint8), observe=seen.__setitem__)
        assert scores.tolist() == [[30, 30, 30]] * n
        assert list(seen) == ["turned", "scores"] and seen["turned"].shape == (n, 6)


def test_an_output_that_is_also_read_later_survives():
    graph = replace(classifier(), outputs=("turned", "scores", "x"))
    x = np.arange(6, dtype=np.uint8)[None]
    turned, scores, same = reference.run(graph, x)
    assert (turned.tolist(), scores.tolist()) == ([[255 - i for i in range(6)]], [[sum(255 - i for i in range(6))] * 3])
    assert same is x


def test_symbolic_dimensions_are_bound():
    assert bind_shape(("n", 4, "s"), {"n": 2, "s": 7}) == (2, 4, 7)


def test_texts_have_any_length_up_to_the_longest():
    graph = random_text_graph(1)
    for batch, tokens in ((1, 1), (3, 7), (2, LONGEST)):
        (scores,) = reference.run(graph, sentences(batch, tokens))
        assert scores.shape == bind_shape(graph.values[graph.outputs[0]].shape, {"n": batch, "s": tokens})
    with pytest.raises(IntqError, match=f"ids: at most {LONGEST} along 's' are possible, got {LONGEST + 1}; shorten"):
        reference.run(graph, sentences(1, LONGEST + 1))
    for wrong in (-1, VOCABULARY):
        with pytest.raises(IntqError, match=rf"ids: its integers must lie in \[0, {VOCABULARY - 1}\]"):
            reference.run(graph, np.full((1, 3), wrong, np.int32))


def test_an_input_longer_than_attention_is_proven_for_is_refused():
    sample = OPS["attention"].samples(np.random.default_rng(0))[1]
    node = make_node(
        "attention", "y", sample.inputs, dtype=sample.dtype, attrs=sample.attrs, constants=sample.constants
    )
    graph = Graph(sample.inputs, (node,), ("y",))
    graph.verify()
    for longest, found in ((sample.attrs["longest"] + 1, sample.attrs["longest"] + 1), (0, "inf")):
        longer = replace(graph, inputs=tuple(replace(v, longest=longest) for v in graph.inputs))
        with pytest.raises(IntqError, match=rf"y \(attention\): proven for at most 512 along 's', .* makes {found};"):
            longer.verify()
    texts = random_text_graph(1)
    with pytest.raises(IntqError, match="positions for"):
        replace(texts, inputs=(replace(texts.inputs[0], longest=LONGEST + 1),)).verify()


@pytest.mark.parametrize("make", [random_graph, random_text_graph])
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_are_proven(make, seed):
    graph = make(seed)
    assert 1 < graph.verify().widest_bits <= 32
