"""`intq verify`: it shows that all is well where it is, and finds what is not."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from graphs import random_graph
from text_graphs import LONGEST, PADDING, VOCABULARY, random_text_graph

import intq
from intq import verification
from intq.backends import reference
from intq.errors import IntqError
from intq.graph import Graph, make_node
from intq.probes import SHORT, padded, padding_of, probes
from intq.value import Value
from intq.verification import PADDED_BATCHES, verify


def compiled_like_the_reference(graph: Graph, monkeypatch, spoil=lambda outputs: None, kernels=None):
    """A network that stands for the compiled one: the reference, its outputs handed to `spoil`; and its audit."""

    def network(*inputs):
        outputs = [y.copy() for y in reference.run(graph, *inputs)]
        spoil(outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    audit = SimpleNamespace(instruction_set="fake", kernels=kernels or {"conv2d": 0, "linear": 0})
    modules = {"intq.kernels.audit": SimpleNamespace(audit=lambda network: audit)}
    load = verification.import_module
    monkeypatch.setattr(verification, "import_module", lambda name: modules.get(name) or load(name))
    return network


def test_the_compiled_network_of_this_machine():
    graph = replace(
        random_graph(5), metadata={"layers": [{"name": "b", "sqnr_db": 31.5}, {"name": "a", "sqnr_db": 20.25}]}
    )
    result = intq.verify(graph)
    proof = graph.verify()
    values = sum(np.prod(node.output.shape[1:]) for node in graph.nodes)
    assert result["mismatches"] == {"torch": 0, "cpu": 0}
    assert result["float_instructions"] == 0 and set(result["kernels"].values()) == {0}
    assert result["overflow"] == {"proven": True, "widest_bits": proof.widest_bits, "node": proof.node}
    assert result["layers"] == [{"name": "a", "sqnr_db": 20.25}, {"name": "b", "sqnr_db": 31.5}], "worst first"
    assert result["first_mismatch"] is None
    assert result["compared"] == {"torch": 5 * values, "cpu": 4 * 5 * 10}, "batches of 1, 2 and 2"
    assert json.loads(json.dumps(result)) == result


def test_every_kind_of_input_is_tried():
    graph = random_graph(0)
    batches = dict(probes(graph, seed=3))
    assert list(batches) == ["random", "lowest, highest", "one-hot corner, one-hot centre"]
    ((random,), (ends,), (hot,)) = batches.values()
    assert random.shape == (1, 12, 13, 3) and random.dtype == np.uint8 and len(np.unique(random)) > 100
    assert [(a.min(), a.max()) for a in ends] == [(0, 0), (255, 255)]
    assert [np.argwhere(a).tolist() for a in hot] == [[[0, 0, 0]], [[6, 6, 1]]] and hot.max() == 255
    np.testing.assert_array_equal(random, dict(probes(graph, seed=3))["random"][0])
    assert (random != dict(probes(graph, seed=4))["random"][0]).any()


def test_inputs_stay_in_their_declared_bounds():
    values = (Value("a", ("n", 50), "int16", -7, 300), Value("b", ("n", 50), "uint8", 3, 3))
    for _, (a, b) in probes(Graph(values, (), ()), seed=0):
        assert (a.dtype, a.min() >= -7, a.max() <= 300) == (np.int16, True, True)
        assert (b == 3).all()


def test_every_kind_of_text_is_tried():
    graph = random_text_graph(0)
    assert padding_of(graph) == PADDING
    batches = {name: ids for name, (ids,) in probes(graph, seed=3)}
    assert list(batches) == ["random, padded", "one token", "lowest, highest, padding"]
    random = batches["random, padded"]
    assert random.shape == (3, LONGEST) and random.dtype == np.int32
    assert (random[0] != PADDING).all() and (random[2, 1:] == PADDING).all() and random[2, 0] != PADDING
    assert batches["one token"].shape == (1, 1)
    extremes = batches["lowest, highest, padding"]
    assert extremes.shape == (3, LONGEST) and (extremes == [[0], [VOCABULARY - 1], [PADDING]]).all()


def test_the_longest_text_is_tried_and_a_text_without_mask_has_no_padding():
    longer = random_text_graph(1, masked=False)
    longer = replace(longer, inputs=(replace(longer.inputs[0], longest=100),))
    batches = {name: ids for name, (ids,) in probes(longer, seed=0)}
    assert batches["longest"].shape == (1, 100) and batches["random, padded"].shape == (3, SHORT)
    assert batches["lowest, highest"].shape == (2, SHORT) and padding_of(longer) is None


@pytest.mark.parametrize("seed", range(4))
def test_padded_texts_have_padding_at_their_ends_only(seed):
    arrays, lengths = padded(random_text_graph(seed), 5, np.random.default_rng(seed))
    assert lengths[0] == LONGEST and lengths[-1] == 1 and len(lengths) == 5
    for row, length in zip(arrays[0], lengths, strict=True):
        assert (row[:length] != PADDING).all() and (row[length:] == PADDING).all()


@pytest.mark.parametrize(("seed", "masked"), [(1, True), (2, True), (0, False)])
def test_a_text_network_is_verified(seed, masked):
    graph = random_text_graph(seed, masked=masked)
    result = verify(graph, kernels=False)
    assert set(result["mismatches"]) == ({"torch", "alone_equals_padded"} if masked else {"torch"})
    assert sum(result["mismatches"].values()) == 0 and result["first_mismatch"] is None
    assert min(result["compared"].values()) > 0
    assert result["inputs"][0] == {"name": "random, padded", "batch": 3}


def test_the_compiled_text_network_of_this_machine():
    graph, seen = random_text_graph(3), []
    result = verify(graph, progress=lambda *at: seen.append(at))
    assert result["mismatches"] == {"torch": 0, "cpu": 0, "alone_equals_padded": 0}
    assert result["float_instructions"] == 0
    steps = 3 + PADDED_BATCHES
    assert seen == [(i, steps) for i in range(1, steps + 1)]


def test_a_network_that_looks_at_padding_is_found():
    """The mask of the first attention is gone: a sentence's answer then depends on how far it is padded."""
    graph = random_text_graph(2)
    at = next(i for i, node in enumerate(graph.nodes) if node.op == "attention")
    blind = replace(graph.nodes[at], inputs=graph.nodes[at].inputs[:3])
    graph = replace(graph, nodes=(*graph.nodes[:at], blind, *graph.nodes[at + 1 :]))
    result = verify(graph, kernels=False)
    assert result["mismatches"]["torch"] == 0 and result["mismatches"]["alone_equals_padded"] > 0
    assert result["first_mismatch"]["input"].endswith(" alone")


def test_without_kernels_only_torch_is_compared():
    result = verify(random_graph(1), kernels=False)
    assert result["mismatches"] == {"torch": 0}
    assert (result["float_instructions"], result["instruction_set"], result["kernels"]) == (None, None, {})


def test_progress_and_further_examples():
    graph, seen = random_graph(1), []
    image = np.full((12, 13, 3), 9, np.uint8)
    result = verify(graph, kernels=False, examples=[image, image[None]], progress=lambda *at: seen.append(at))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert result["inputs"][3:] == [{"name": "example 0", "batch": 1}, {"name": "example 1", "batch": 1}]


def test_an_image_of_another_size_is_refused():
    with pytest.raises(IntqError, match=r"expected shape \(n, 12, 13, 3\), got \(1, 9, 9, 3\)"):
        verify(random_graph(1), kernels=False, examples=[np.zeros((9, 9, 3), np.uint8)])


def test_a_wrong_compiled_output_is_counted_and_located(monkeypatch):
    graph = random_graph(2)

    def spoil(outputs):
        if len(outputs[0]) == 2:
            outputs[0][1, 4] += 1

    network = compiled_like_the_reference(graph, monkeypatch, spoil)
    result = verify(graph, network=network)
    assert result["mismatches"] == {"torch": 0, "cpu": 2 * 4}
    first = result["first_mismatch"]
    assert (first["backend"], first["node"], first["index"]) == ("cpu", graph.outputs[0], [1, 4])
    assert first["input"] == "lowest, highest" and first["got"] == first["expected"] + 1


def test_a_network_that_is_wrong_only_sometimes_is_found(monkeypatch):
    calls = iter(range(100))

    def spoil(outputs):
        if next(calls) == 10:
            outputs[0][0, 0] ^= 1

    result = verify(random_graph(2), network=compiled_like_the_reference(random_graph(2), monkeypatch, spoil))
    assert result["mismatches"]["cpu"] == 1


@pytest.mark.parametrize("spoil", [lambda y: y.astype(np.int64), lambda y: y[:, :-1], lambda y: y.astype(np.float32)])
def test_another_dtype_or_shape_is_a_mismatch_of_everything(monkeypatch, spoil):
    graph = random_graph(2)

    def replace_first(outputs):
        outputs[0] = spoil(outputs[0])

    result = verify(graph, network=compiled_like_the_reference(graph, monkeypatch, replace_first))
    assert result["mismatches"]["cpu"] == result["compared"]["cpu"] == 4 * 50
    assert result["first_mismatch"]["expected"] == "int32[1, 10]" and result["first_mismatch"]["index"] is None


def test_a_wrong_node_of_torch_is_named_even_if_no_output_shows_it(monkeypatch):
    """The first node in the order of execution is named, not the first output."""
    x = Value("x", ("n", 8), "uint8", 0, 255)
    table = {"table": np.arange(256).astype(np.uint8)}
    first = make_node("lookup", "first", [x], dtype="uint8", attrs={"function": "a"}, constants=table)
    flat = {"table": np.zeros(256, np.uint8)}
    last = make_node("lookup", "last", [first.output], dtype="uint8", attrs={"function": "b"}, constants=flat)
    graph = Graph((x,), (first, last), ("last",))
    spoiled = {"table": np.where(np.arange(256) == 255, 254, np.arange(256)).astype(np.uint8)}
    wrong = replace(graph, nodes=(replace(first, constants=spoiled), last))
    torch_backend = verification.import_module("intq.backends.torch")
    monkeypatch.setattr(
        verification, "import_module", lambda name: SimpleNamespace(prepare=lambda _: torch_backend.prepare(wrong))
    )
    result = verify(graph, kernels=False, examples=[np.zeros(8, np.uint8)])
    first_mismatch = result["first_mismatch"]
    assert result["mismatches"]["torch"] > 0
    assert (first_mismatch["backend"], first_mismatch["node"]) == ("torch", "first")
    assert (first_mismatch["expected"], first_mismatch["got"]) == (255, 254)


def test_floating_point_instructions_are_counted_by_kernel(monkeypatch):
    graph = random_graph(2)
    kernels = {"conv2d": 3, "lookup": 0, "linear": 2}
    result = verify(graph, network=compiled_like_the_reference(graph, monkeypatch, kernels=kernels))
    assert (result["float_instructions"], result["kernels"]) == (5, kernels)


def test_a_network_of_several_outputs(monkeypatch):
    graph = random_graph(2)
    graph = replace(graph, outputs=(graph.nodes[0].name, *graph.outputs))
    result = verify(graph, network=compiled_like_the_reference(graph, monkeypatch))
    assert result["mismatches"]["cpu"] == 0
    assert result["compared"]["cpu"] == 4 * 5 * (10 + np.prod(graph.nodes[0].output.shape[1:]))


def test_a_graph_that_is_not_proven_is_not_verified():
    graph = random_graph(2)
    node = graph.nodes[0]
    broken = replace(graph, nodes=(replace(node, output=replace(node.output, high=3)), *graph.nodes[1:]))
    with pytest.raises(IntqError, match=r"conv2d\.0 \(conv2d\): declared as"):
        verify(broken, kernels=False)


@pytest.mark.parametrize(
    ("missing", "says"),
    [("torch", "torch is not installed: pip install"), ("tvm", "tvm is not installed: pip install apache")],
)
def test_a_backend_that_cannot_run_is_an_error_not_a_gap(monkeypatch, missing, says):
    load = verification.import_module

    def without(name):
        if name.startswith({"torch": "intq.backends.torch", "tvm": "intq.kernels"}[missing]):
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return load(name)

    monkeypatch.setattr(verification, "import_module", without)
    with pytest.raises(IntqError, match=says):
        verify(random_graph(1))


def test_other_import_errors_are_not_hidden(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'intq.backends.torch'", name="intq.backends.torch")

    monkeypatch.setattr(verification, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        verify(random_graph(1))
