"""Every architecture that intq knows, with random weights, of 8 bits and with 4-bit layers, compiled for GPUs that need
not be here: kernels, seconds, and what the machine code of all of them holds.

Floating point, spilled registers and contractions without products on tensor cores are to be 0.

With --json a list of {"network", "bits", "target", "kernels", "contractions", "seconds", "floats", "spills",
"without_cores", "registers", "shared"}; registers and shared memory (bytes) are the most of any kernel.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import tables

from intq import domains
from intq.console import err
from intq.errors import IntqError
from intq.graph import Graph
from intq.kernels import lower
from intq.kernels.cuda import sass
from intq.kernels.cuda.plan import is_depthwise, of_node
from intq.networks import integer_network, opened

HEADER = ("network", "bits", "target", "kernels", "s", "floats", "spills", "without cores", "registers", "shared")
BITS = {"W8A8": {}, "W4A4": {"bits": {"*": 4}, "weight_bits": {"*": 4}}}


def rows(name: str, bits: str, targets: list[str]) -> Iterator[dict]:
    domain, checkpoint = opened(name, 0, random=True)
    graph = integer_network(domain, checkpoint, None, 0, random=True, **BITS[bits])
    for target in targets:
        start = time.perf_counter()
        library = lower.build(graph, target)
        facts = sass.facts(library.cubin)
        multiply = {f"{library.kernels[node]}_kernel" for node in contractions(graph, library.instruction_set)}
        yield {
            "network": name,
            "bits": bits,
            "target": target,
            "kernels": len(facts),
            "contractions": len(multiply),
            "seconds": time.perf_counter() - start,
            "floats": sum(sum(fact.floats.values()) for fact in facts.values()),
            "spills": sum(fact.spills + fact.local for fact in facts.values()),
            "without_cores": sum(not (facts[kernel].int8 or facts[kernel].int4) for kernel in multiply),
            "registers": max(fact.registers for fact in facts.values()),
            "shared": max(fact.shared for fact in facts.values()),
        }


def contractions(graph: Graph, arch: str) -> list[str]:
    """The nodes whose products tensor cores are to take."""
    nodes = [node for node in graph.nodes if "weight" in node.constants]
    dense = [node for node in nodes if not is_depthwise(of_node(arch, node, graph.values[node.inputs[0]]))]
    return [node.name for node in (*dense, *(node for node in graph.nodes if node.op == "attention"))]


def cells(row: dict) -> list[str]:
    first = (row["network"], row["bits"], row["target"], str(row["kernels"]), f"{row['seconds']:.0f}")
    return [*first, *(str(row[key]) for key in ("floats", "spills", "without_cores", "registers", "shared"))]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="compile_gpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = domains.architectures()
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME", help="default: all")
    parser.add_argument("--bits", nargs="+", choices=BITS, default=["W8A8"], help="default W8A8")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["nvidia/nvidia-t4", "nvidia/nvidia-a100", "nvidia/nvidia-h100"],
        metavar="TARGET",
        help="default: T4, A100 and H100",
    )
    tables.add_formats(parser)
    options = parser.parse_args(arguments)
    found = []
    try:
        for name in options.networks:
            for bits in options.bits:
                for row in rows(name, bits, options.targets):
                    found.append(row)
                    err.print("  ".join(cells(row)), soft_wrap=True)
    except IntqError as error:
        err.print(f"compile_gpus: {error}", markup=False, soft_wrap=True)
        return 2
    tables.show(found, HEADER, cells, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
