"""Compiled networks beside the reference: on every instruction set that this machine has, equal to the last bit."""

from pathlib import Path

import numpy as np

from intq.backends import reference
from intq.errors import IntqError
from intq.graph import Graph
from intq.kernels import lower, runtime
from intq.kernels.cpu.isa import ISAS
from intq.kernels.targets import choose


def here() -> list[str]:
    """The instruction sets of this machine, the best first; the last, "plain", is every machine's."""
    found = []
    for isa in ISAS:
        try:
            choose("cpu", isa)
        except IntqError:
            continue
        found.append(isa)
    assert choose("cpu").isa.name == found[0] and found[-1] == "plain"
    return found


def loaded(graph: Graph, isa: str, folder: Path, threads: int = 1) -> runtime.Network:
    return runtime.load(graph, lower.build(graph, "cpu", isa).keep(folder), threads)


def assert_same(graph: Graph, network: runtime.Network, *inputs: np.ndarray, runs: int = 1) -> None:
    """The network's outputs are the reference's, dtypes too. ``runs``: threads that step on each other do so rarely."""
    expected = reference.run(graph, *inputs)
    for _ in range(runs):
        found = network(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        for name, ours, theirs in zip(graph.outputs, found, expected, strict=True):
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} of {[x.shape for x in inputs[:1]]}")
