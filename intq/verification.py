"""What `intq verify` shows of a graph: every backend equals the reference, nothing overflows, no float is computed.

(The module is not called ``verify`` because :func:`intq.verify` is this module's function.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from intq import dims
from intq.backends import reference
from intq.errors import IntqError
from intq.graph import Graph
from intq.probes import Arrays, padded, padding_of, probes, reads_recordings
from intq.value import check_inputs

COMPILED_RUNS = 4  # of every batch: threads that disturb each other do not do so every time
PADDED_BATCHES, PADDED_TEXTS = 16, 3  # of which every text is also run alone

_NEEDS = {
    "torch": "pip install 'torch==2.13.*'",
    "tvm": "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post0",
}


def verify(
    graph: Graph,
    *,
    kernels: bool = True,
    network: Callable[..., Any] | None = None,
    examples: Iterable[np.ndarray] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare all backends with the reference, bit for bit, and collect the proofs.

    ``kernels``: also the compiled backend, ``"cpu"``: ``network``, or the graph compiled for this machine.
    ``examples``: further inputs, each an array with or without a batch axis, of the graph's (only) input.
    ``seed``: of the random inputs. ``progress(done, total)`` is called after every batch.

    Inputs (:mod:`intq.probes`): of images random ones, everything at its lowest and at its highest, and one element at
    its highest in a corner and in the centre; of texts padded ones, a single token, one token all over, and the longest
    text. The torch backend is compared at every node, the compiled one at the outputs, several times. Where padding is
    masked, every text of some padded batches is also run alone: ``"alone_equals_padded"`` counts what then differs, by
    the compiled backend where there is one, else by torch. The result is JSON::

        {"mismatches": {"torch": 0, "cpu": 0,        elements that differ from the reference
                        "alone_equals_padded": 0},   (texts with a mask only)
         "float_instructions": 0,                    floating-point arithmetic in the compiled kernels
         "overflow": {"proven": true, "widest_bits": 27, "node": "..."},
         "layers": [{"name", "sqnr_db"}],            against the float model, worst first, as measured when quantized
         "first_mismatch": null,                     or {"backend", "node", "input", "index", "expected", "got"}
         "compared": {"torch": 0, "cpu": 0, ...},    elements compared
         "inputs": [{"name", "batch"}],
         "instruction_set": "...", "kernels": {kernel: its floating-point instructions}}

    Without ``kernels`` there is no "cpu", and "float_instructions" and "instruction_set" are null.

    Raises IntqError when a backend cannot run here (never skips one), UnprovenError when a width is not proven.
    """
    proof = graph.verify()
    audit = None
    backends = [("torch", _torch(graph))]
    if kernels:
        network, audit = _audited(graph, network)
        backends += [("cpu", _outputs_of(network, graph))] * COMPILED_RUNS
    batches = [*probes(graph, seed), *_examples(graph, examples)]
    rounds = PADDED_BATCHES if padding_of(graph) is not None or reads_recordings(graph) else 0
    comparisons: list[Comparison] = []
    for done, (name, inputs) in enumerate(batches, 1):
        comparisons += _compare(graph, backends, name, inputs)
        if progress:
            progress(done, len(batches) + rounds)
    for done in range(1, rounds + 1):
        comparisons += _alone_and_padded(graph, backends[-1][1], np.random.default_rng(seed + done))
        if progress:
            progress(len(batches) + done, len(batches) + rounds)
    kinds = list(dict.fromkeys(c.backend for c in comparisons))
    return {
        "mismatches": {kind: sum(c.mismatches for c in comparisons if c.backend == kind) for kind in kinds},
        "float_instructions": sum(audit.kernels.values()) if audit else None,
        "overflow": {"proven": True, "widest_bits": proof.widest_bits, "node": proof.node},
        "layers": sorted(graph.metadata.get("layers", ()), key=lambda layer: layer["sqnr_db"]),
        "first_mismatch": next((c.difference for c in comparisons if c.mismatches), None),
        "compared": {kind: sum(c.elements for c in comparisons if c.backend == kind) for kind in kinds},
        "inputs": [{"name": name, "batch": len(inputs[0])} for name, inputs in batches],
        "instruction_set": audit.instruction_set if audit else None,
        "kernels": audit.kernels if audit else {},
    }


def _examples(graph: Graph, examples: Iterable[np.ndarray]) -> Iterator[tuple[str, Arrays]]:
    for i, example in enumerate(examples):
        if len(graph.inputs) != 1:
            raise IntqError(f"examples fit a graph with one input; this one has {len(graph.inputs)}")
        array = np.asarray(example)
        array = array[None] if array.ndim == len(graph.inputs[0].shape) - 1 else array
        check_inputs(graph.inputs, (array,))
        yield f"example {i}", (array,)


# ---- backends --------------------------------------------------------------------------------------------------


def _torch(graph: Graph) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Every value that the torch backend computes, by name."""
    prepared = _load("torch", "intq.backends.torch").prepare(graph)

    def values(inputs: Arrays) -> dict[str, np.ndarray]:
        known: dict[str, np.ndarray] = {}
        prepared(*inputs, observe=lambda name, tensor: known.update({name: tensor.numpy()}))
        return known

    return values


def _outputs_of(network: Callable[..., Any], graph: Graph) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """The outputs of a compiled network (an array, or a tuple of them), by name."""

    def values(inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = network(*inputs)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return {name: np.asarray(y) for name, y in zip(graph.outputs, outputs, strict=True)}

    return values


def _audited(graph: Graph, network):
    """The compiled network and its float audit, which reads the library's file."""
    with TemporaryDirectory() as folder:
        if network is None:
            path = Path(folder) / "cpu.so"
            _kernels("lower").build(graph).save(path)
            network = _kernels("runtime").load(graph, path)
        return network, _kernels("audit").audit(network)


def _kernels(module: str):
    return _load("tvm", f"intq.kernels.{module}")


def _load(library: str, module: str):
    """A module by name, only now: a machine that only runs networks has no torch, one that only trains no TVM."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (library, f"{library}_ffi"):
            raise
        raise IntqError(f"verify compares all backends and {library} is not installed: {_NEEDS[library]}") from None


# ---- comparison ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One value of one backend against the reference; ``difference`` describes the first of its ``mismatches``."""

    backend: str
    elements: int
    mismatches: int = 0
    difference: Mapping[str, Any] | None = None


def _compared(backend: str, node: str, batch: str, expected: np.ndarray, got: np.ndarray) -> Comparison:
    where = {"backend": backend, "node": node, "input": batch}
    if (expected.shape, expected.dtype) != (got.shape, got.dtype):  # a difference in every element
        wanted, found = (f"{a.dtype.name}{list(a.shape)}" for a in (expected, got))
        difference = where | {"index": None, "expected": wanted, "got": found}
        return Comparison(backend, expected.size, expected.size, difference)
    differing = np.argwhere(expected != got)
    if not len(differing):
        return Comparison(backend, expected.size)
    index = tuple(differing[0].tolist())
    difference = where | {"index": list(index), "expected": int(expected[index]), "got": int(got[index])}
    return Comparison(backend, expected.size, len(differing), difference)


def _compare(graph: Graph, backends, batch: str, inputs: Arrays) -> list[Comparison]:
    """Run the reference once and compare every value of it that a backend has, in order of execution."""
    results = [(backend, values(inputs)) for backend, values in backends]
    comparisons = []

    def compare(name: str, expected: np.ndarray) -> None:
        for backend, values in results:
            if name in values:
                comparisons.append(_compared(backend, name, batch, expected, values.pop(name)))

    reference.run(graph, *inputs, observe=compare)
    return comparisons


def _alone_and_padded(graph: Graph, values, rng: np.random.Generator) -> Iterator[Comparison]:
    """A random padded batch's outputs against those of each of its texts without padding, as one backend has them."""
    arrays, lengths = padded(graph, PADDED_TEXTS, rng)
    together = values(tuple(arrays))
    for i, length in enumerate(lengths):
        alone = values(tuple(a[i : i + 1, :length] if a.ndim > 1 else a[i : i + 1] for a in arrays))
        for name in graph.outputs:
            expected = together[name][i : i + 1]
            per_token = graph.values[name].shape[1:2]
            if per_token and isinstance(per_token[0], str):  # a result for every token, or every frame
                expected = expected[:, : dims.size(per_token[0], {dims.parts(per_token[0])[0]: length})]
            yield _compared("alone_equals_padded", name, f"{length} alone", expected, alone[name])
