"""The memory of a compiled network: no two values that are needed at one moment share a byte."""

import numpy as np
import pytest
from graphs import random_graph
from hypothesis import given
from hypothesis import strategies as st
from text_graphs import random_text_graph, sentences

from intq.backends import reference
from intq.kernels import arena, lower, runtime
from intq.value import bind_shape

life = st.builds(
    lambda size, start, length: arena.Life(size, start, start + length),
    st.integers(0, 5000),
    st.integers(-1, 20),
    st.integers(0, 8),
)


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), life, max_size=20))
def test_values_alive_at_once_are_apart_and_aligned(lives):
    where, size = arena.offsets(lives)
    assert all(at % arena.ALIGNMENT == 0 for at in where.values())
    assert all(where[name] + lives[name].size <= size for name in lives)
    for one in lives:
        for other in lives:
            together = lives[one].start <= lives[other].end and lives[other].start <= lives[one].end
            if one < other and together and lives[one].size and lives[other].size:
                first, second = sorted((one, other), key=where.__getitem__)
                assert where[first] + lives[first].size <= where[second]


def test_a_chain_needs_no_more_than_its_two_largest_neighbours():
    lives = {str(i): arena.Life(640 if i == 3 else 64, i, i + 1) for i in range(10)}
    assert arena.offsets(lives)[1] == 640 + 64


def test_a_view_keeps_its_owner_alive():
    shapes = dict.fromkeys(("x", "a", "view", "b", "c"), ((64,), "uint8"))
    steps = [("a", ("x",)), ("view", ("a",)), ("b", ("x",)), ("c", ("view", "b"))]
    lives = arena.lives(shapes, steps, {"view": "a"}, ("c",))
    assert "view" not in lives
    assert (lives["a"].start, lives["a"].end) == (0, 3)
    assert lives["c"].end == len(steps)


@pytest.mark.parametrize("seed", range(3))
def test_any_batch_after_any_other(seed):
    """The plan is made anew for another batch, and one run leaves nothing behind that changes the next."""
    graph, rng = random_graph(seed), np.random.default_rng(seed)
    network = runtime.compile(graph)
    for batch in (2, 1, 5, 1):
        inputs = [
            rng.integers(v.low, v.high, bind_shape(v.shape, {"n": batch}), endpoint=True).astype(v.dtype)
            for v in graph.inputs
        ]
        got = network(*inputs)
        for ours, theirs in zip(got if isinstance(got, tuple) else (got,), reference.run(graph, *inputs), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_texts_of_any_length_after_any_other():
    """More shapes than plans are kept: larger ones than before, smaller ones in the same places, and old ones again."""
    graph = random_text_graph(1, layers=1)
    network = runtime.compile(graph, threads=1)
    shapes = [
        (1, 9),
        (1, 24),
        (2, 5),
        (1, 3),
        (4, 24),
        *((1, s) for s in range(10, 10 + runtime.PLANS)),
        (2, 5),
        (1, 24),
    ]
    for n, s in shapes:
        ids = sentences(n, s, seed=s)
        np.testing.assert_array_equal(network(ids), reference.run(graph, ids)[0])


@pytest.mark.parametrize("make, sizes", [(random_graph, {"n": 3}), (random_text_graph, {"n": 3, "s": 7})])
def test_the_library_runs_by_itself_through_relax(make, sizes, tmp_path):
    """`main` is what a host without Python calls: inputs and packed constants in, outputs out."""
    import tvm
    from tvm import relax

    graph = make(1)
    library = lower.build(graph).keep(tmp_path)
    network = runtime.load(graph, library, 1)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    rng = np.random.default_rng(0)
    inputs = [rng.integers(v.low, v.high, bind_shape(v.shape, sizes)).astype(v.dtype) for v in graph.inputs]
    constants = [constant for layer in network.layers for constant in layer.constants]
    results = machine["main"](*map(tvm.runtime.tensor, inputs), constants)
    for ours, theirs in zip(results, reference.run(graph, *inputs), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
