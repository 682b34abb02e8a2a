"""torch: the reference's integers exactly.

(tests/test_ops.py compares the backend with the reference operation by operation; tests/test_straight_through.py has
the gradients.)
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import pixels, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from text_graphs import PADDING, random_text_graph, sentences

from intq.backends import reference
from intq.backends import torch as torch_backend
from intq.backends.torch import EXACT_FLOAT32, TorchDialect, convolve, convolve_unfolded, exact_runs, prepare
from intq.errors import IntqError

torch.set_num_threads(1)


WHOLE = [(random_graph(seed, blocks=5), pixels(random_graph(seed), seed=seed)) for seed in range(20)]
WHOLE += [(random_text_graph(seed, masked=seed % 3 > 0), sentences(3, 1 + seed, seed)) for seed in range(20)]


@pytest.mark.parametrize(("graph", "x"), WHOLE, ids=[graph.metadata["name"] for graph, _ in WHOLE])
def test_whole_networks_equal_the_reference_at_every_value(graph, x):
    got = {}
    (scores,) = torch_backend.run(graph, torch.from_numpy(x), observe=got.__setitem__)
    (expected,) = reference.run(
        graph, x, observe=lambda name, array: np.testing.assert_array_equal(got.pop(name).numpy(), array, err_msg=name)
    )
    np.testing.assert_array_equal(scores.numpy(), expected)
    assert not got


def test_a_prepared_network_takes_any_batch_and_arrays():
    graph = random_graph(0)
    network = prepare(graph)
    for batch in (1, 3, 0):
        x = pixels(graph, batch)
        np.testing.assert_array_equal(network(x)[0].numpy(), reference.run(graph, x)[0])


@pytest.mark.parametrize("seed", range(10))
def test_a_sentence_has_the_same_answer_alone_and_in_a_padded_batch(seed):
    """200 random batches of up to 4 sentences, 20 a network."""
    graph = random_text_graph(seed)
    network = prepare(graph)
    for batch in range(20):
        ids = sentences(1 + batch % 4, 2 + batch, 20 * seed + batch)
        (together,) = network(ids)
        for row, expected in zip(ids, together, strict=True):
            alone = np.trim_zeros(row - PADDING, "b") + PADDING  # without the padding at its end
            (answer,) = network(alone[None])
            assert torch.equal(answer[0], expected[: len(alone)] if expected.ndim == 2 else expected)


@pytest.mark.parametrize("terms", [511, 512, 513, 1024])
def test_products_of_8_bits_are_exact_with_any_number_of_terms(terms):
    """At their largest, where every float32 sum beyond 2**24 would round; the last one makes the sum odd."""
    a, b = torch.full((2, 3, terms), 255), torch.full((2, terms, 4), -128)
    a[..., -1], b[:, -1] = 1, 127
    got = TorchDialect.matmul(a, b, terms)
    assert got.dtype == torch.int32
    assert (got == 255 * -128 * (terms - 1) + 127).all()


def test_torchs_settings_of_precision_and_libraries_change_nothing():
    """bfloat16 products of 8-bit values are exact; NNPACK's, which torch takes where oneDNN is off, are not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (16, 17, 17, 32), generator=generator).float()
    weight = torch.randint(-127, 128, (24, 3, 3, 32), generator=generator).float()
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    expected, before = convolve(x.double(), weight.double(), **geometry), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(convolve(x, weight, **geometry).double(), expected)
        torch.backends.mkldnn.set_flags(_enabled=False)
        assert torch.equal(convolve(x, weight, **geometry).double(), expected)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.mkldnn.set_flags(_enabled=True)


@pytest.mark.parametrize("x", [torch.zeros(1, 12, 13, 3), torch.zeros(1, 12, 12, 3, dtype=torch.uint8)])
def test_other_inputs_are_refused(x):
    with pytest.raises(IntqError, match="input pixels: expected"):
        torch_backend.run(random_graph(0), x)


def weights(k: int, kind: str) -> torch.Tensor:
    """(co, k): the worst case, all of one sign, and trained-like ones."""
    rng = np.random.default_rng(0)
    made = {
        "extreme": np.full((2, k), 127),
        "alternating": np.tile([127, -127], (2, k))[:, :k],
        "normal": np.clip(np.rint(rng.normal(0, 30, (4, k))), -127, 127),
    }
    return torch.from_numpy(made[kind].astype(np.float32))


@pytest.mark.parametrize("kind", ["extreme", "alternating", "normal"])
@pytest.mark.parametrize("k", [1, 518, 519, 1037, 4608])
def test_runs_cover_the_channels_and_stay_exact_in_float32(k, kind):
    weight = weights(k, kind)
    runs = exact_runs(weight, "uint8")
    assert torch.equal(torch.cat([r.weight for r in runs], dim=1), weight)
    for run in runs:
        assert run.weight.dtype == torch.float32
        for sign in (run.weight.clamp(min=0), run.weight.clamp(max=0)):
            assert sign.double().sum(1).abs().max() * 255 <= EXACT_FLOAT32
    least = max(float(s.double().sum(1).abs().max()) for s in (weight.clamp(min=0), weight.clamp(max=0)))
    assert len(runs) <= 1 + 2 * least * 255 // EXACT_FLOAT32, "runs are no shorter than need be"
    x = torch.full((3, k), 255, dtype=torch.uint8)
    x[1], x[2] = (weight[0] > 0) * 255, (weight[0] < 0) * 255
    total = sum(F.linear(x.float()[:, r.channels], r.weight).long() for r in runs)
    assert torch.equal(total, x.long() @ weight.long().T)


def test_inputs_of_16_bits_and_grouped_convolutions_that_need_a_split_run_in_float64():
    (run,) = exact_runs(weights(4, "normal"), "int16")
    assert run.weight.dtype == torch.float64
    wide = torch.full((2, 3, 3, 100), 127.0)
    assert len(exact_runs(wide, "uint8")) > 1
    (run,) = exact_runs(wide, "uint8", groups=2)
    assert run.weight.dtype == torch.float64


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_other_devices_convolve_by_matrix_products(data):
    """convolve_unfolded, which CPUs do not use, against convolve."""
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, ci, co = draw(1, 3), draw(1, 5), draw(1, 4)
    geometry = {
        "stride": (draw(1, 3), draw(1, 3)),
        "padding": (draw(0, 2), draw(0, 2)),
        "dilation": (draw(1, 2), draw(1, 2)),
        "groups": groups,
    }
    generator = torch.Generator().manual_seed(draw(0, 2**31))
    x = torch.randint(0, 256, (draw(1, 2), draw(6, 9), draw(6, 9), groups * ci), generator=generator).float()
    weight = torch.randint(-127, 128, (groups * co, draw(1, 3), draw(1, 3), ci), generator=generator).float()
    assert torch.equal(convolve_unfolded(x, weight, **geometry), convolve(x, weight, **geometry))
