"""A graph's kernels for a GPU, run on the CPU lane by lane (simt.py), node by node, beside the reference."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import simt
import tvm

from intq.backends import reference
from intq.graph import Graph
from intq.kernels import lower, pack
from intq.kernels.cuda import binary, pipeline, sass

ORDERS = (0, -1, 1, 2)  # of a block's lanes: ascending, descending, two shuffles


def on_cpu(module: tvm.IRModule, arch: str = "sm_75") -> simt.Kernels:
    """Kernels to be run lane by lane, by intq's own passes."""
    with simt.cuda_on_cpu():
        return simt.Kernels(tvm.compile(module, target=_target(arch), tir_pipeline=pipeline.NAME).mod)


def facts(module: tvm.IRModule, arch: str = "sm_75") -> dict[str, sass.Facts]:
    """What the machine code of each kernel holds."""
    _, cubin = binary.build(module, _target(arch), arch, tir_pipeline=pipeline.NAME)
    return sass.facts(cubin)


def _target(arch: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")


@dataclass(frozen=True)
class Nodes:
    """The kernels of a graph's nodes, compiled when they are first asked for."""

    graph: Graph
    arch: str = "sm_75"

    @cached_property
    def _written(self) -> tuple[dict[str, str], tvm.IRModule]:
        """(the kernel of each node, all of them)."""
        names, kernels = lower.kernels_of(self.graph, self.arch)
        return names, tvm.IRModule(kernels)

    @cached_property
    def _on_cpu(self) -> simt.Kernels:
        return on_cpu(self._written[1], self.arch)

    def facts(self) -> dict[str, sass.Facts]:
        """What the machine code of each kernel holds."""
        return facts(self._written[1], self.arch)

    def assert_same(self, *inputs: np.ndarray, order: int = 0) -> None:
        """Every node's kernel gives the reference's integers, from the reference's own inputs of the node."""
        values = self.graph.values
        known = dict(zip((value.name for value in self.graph.inputs), inputs, strict=True))
        reference.run(self.graph, *inputs, observe=known.__setitem__)
        for node in self.graph.nodes:
            if not self._written[0][node.name]:  # a view
                continue
            expected, given = known[node.name], [known[name] for name in node.inputs]
            constants = pack.arrays(node, tuple(values[name] for name in node.inputs), self.arch)
            found = np.full_like(expected, 77)
            self._on_cpu[self._written[0][node.name]](*given, *constants, found, order=order)
            np.testing.assert_array_equal(found, expected, err_msg=f"{node.name} of {[x.shape for x in given]}")


def assert_integers_alone(facts: dict[str, sass.Facts]) -> None:
    """No kernel has floating point, or numbers that do not fit its registers; blocks' shared memory fits any GPU's."""
    for name, fact in facts.items():
        assert (fact.floats, fact.spills, fact.local) == ({}, 0, 0), f"{name}: {fact}"
        assert fact.shared <= 48 * 1024, f"{name}: {fact}"
