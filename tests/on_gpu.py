"""Networks on a GPU that is not there: every kernel's CUDA runs lane by lane (:mod:`simt`), node after node."""

from dataclasses import dataclass

import numpy as np
import simt

from intq.backends import reference
from intq.graph import Graph
from intq.kernels import lower, pack
from intq.kernels.cuda import pipeline
from intq.value import bind_shape

ORDERS = (0, -1, 5)  # of lanes: first to last, last to first, shuffled


@dataclass(frozen=True)
class Simulated:
    """A network whose nodes' kernels, with their arrays, are compiled for ``arch``."""

    graph: Graph
    names: dict[str, str]
    arrays: dict[str, list[np.ndarray]]
    kernels: simt.Kernels

    def __call__(self, *inputs: np.ndarray, order: int = 0) -> list[np.ndarray]:
        """The network's outputs. Values begin as garbage, since every element is to be written."""
        graph, values = self.graph, dict(zip((v.name for v in self.graph.inputs), inputs, strict=True))
        sizes = {d: s for v in graph.inputs for d, s in zip(v.shape, values[v.name].shape, strict=True)}
        sizes = {d: s for d, s in sizes.items() if isinstance(d, str)}
        for node in graph.nodes:
            taken = [values[name] for name in node.inputs]
            shape = bind_shape(node.output.shape, sizes)
            if not self.names[node.name]:
                values[node.name] = taken[0].reshape(shape)
                continue
            out = np.full(shape, 77, node.output.dtype)
            self.kernels[self.names[node.name]](*taken, *self.arrays[node.name], out, order=order)
            values[node.name] = out
        return [values[name] for name in graph.outputs]


def simulated(graph: Graph, arch: str) -> Simulated:
    names, functions = lower.kernels_of(graph, arch)
    inputs = {node.name: tuple(graph.values[name] for name in node.inputs) for node in graph.nodes}
    arrays = {node.name: pack.arrays(node, inputs[node.name], arch) for node in graph.nodes if names[node.name]}
    return Simulated(graph, names, arrays, simt.compile(functions, arch, tir_pipeline=pipeline.NAME))


def assert_same(network: Simulated, *inputs: np.ndarray, order: int = 0) -> None:
    """The network's outputs are the reference's."""
    expected = reference.run(network.graph, *inputs)
    for name, ours, theirs in zip(network.graph.outputs, network(*inputs, order=order), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} of {[x.shape for x in inputs[:1]]}")
