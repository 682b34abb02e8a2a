"""Networks whose values lie where the processor cannot reach them, as in a GPU: copied there and back."""

import numpy as np
import pytest
from compiled import assert_same
from graphs import random_graph

from intq.errors import IntqError
from intq.kernels import lower, runtime
from intq.kernels.cuda.place import refuse
from intq.kernels.place import Place, Staged, processor


class Far:
    """Memory of its own behind copies, and calls that are recorded when they are run the second time."""

    def __init__(self):
        self.here, self.copied, self.recorded = processor(runtime.tensor), 0, 0

    def staged(self, part) -> Staged:
        far = np.from_dlpack(part)
        near = np.empty_like(far)

        def given() -> None:
            self.copied += 1
            far[...] = near

        def taken() -> None:
            self.copied += 1
            near[...] = far

        return Staged(near, given, taken)

    def repeated(self, calls):
        runs = []

        def run() -> None:
            runs.append(1)
            self.recorded += len(runs) == 2
            for call in calls:
                call()

        return run

    @property
    def place(self) -> Place:
        return Place(self.here.area, self.here.part, self.staged, self.repeated, self.here.seconds)


def test_values_are_brought_to_the_kernels_and_back(tmp_path, monkeypatch):
    graph, far, rng = random_graph(5), Far(), np.random.default_rng(0)
    library = lower.build(graph, "cpu", "plain").keep(tmp_path)
    monkeypatch.setattr(runtime, "_place", lambda isa: far.place)
    network = runtime.load(graph, library, 1)
    weights = far.copied
    assert weights >= sum(bool(node.constants) for node in graph.nodes) - 1  # each array of each node, once
    network(np.zeros((0, *graph.inputs[0].shape[1:]), np.uint8))
    assert far.copied == weights  # nothing to compute
    for batch in (1, 3, 1, 3, 2):
        pixels = rng.integers(0, 256, (batch, *graph.inputs[0].shape[1:])).astype(np.uint8)
        assert_same(graph, network, pixels)
    assert far.copied == weights + 5 * (1 + len(graph.outputs))
    assert (
        far.recorded == 1
    )  # the batch of 3, whose plan came again: it needed more memory, and that of 1 was made anew
    times = network.time_layers(pixels, repeats=2)
    assert all(times[layer.name] > 0 for layer in network.layers if layer.kernel)


@pytest.mark.parametrize("shape", [(70_000, 3), (60_000, 224, 224, 3)])
def test_values_too_large_for_a_gpu_are_refused(shape):
    refuse({"x": (65_535, 32_767), "scalar": (1,)})
    with pytest.raises(IntqError, match=r"y would be .* fewer inputs"):
        refuse({"x": (3,), "y": shape})


def test_an_artifact_for_a_gpu_is_refused_without_one(tmp_path):
    graph = random_graph(5)
    graph.save(tmp_path / "net")
    lower.build(graph, "nvidia/nvidia-t4").keep(tmp_path / "net")
    with pytest.raises(IntqError, match=r"net is compiled for a GPU: .*; for this machine's processor: intq compile"):
        runtime.compile(tmp_path / "net", threads=1)
    lower.build(graph, "cpu", "plain").keep(tmp_path / "net")
    pixels = np.zeros((2, *graph.inputs[0].shape[1:]), np.uint8)
    assert_same(graph, runtime.compile(tmp_path / "net", threads=1), pixels)
