"""What the search needs to know of a float graph: its layers' sizes, which layers read together, what is alive when.

**Ties.** Layers that read the same integers are given the same input width. What binds integers together is the
quantizer's rule (:func:`intq.quants.tied_groups`): a value and whatever is only moved out of it or into it, by a
concatenation, a maximum, a reshape, share one scale, so they share one storage. Nothing would be wrong without the tie:
a group is stored as wide as its widest reader needs, and a narrower reader gets a copy, requantized. The tie saves that
copy, its memory and its pass, and keeps the costs of a layer its own: no 4-bit reader pays for another's 8 bits. So

- the first convolution and the downsampling of a residual stage are tied: both read the block's input;
- query, key and value projections are tied: they read one normalisation's result;
- the branches of an Inception block are tied, together with all that read the concatenations and maxima around it;
- the two operands of a sum are *not*: each is rescaled into the sum by a multiplier of its own, whatever its width, and
  the layers that made them are free in the bits of their weights.

On ResNets these are the ties that HAWQ-V3 wrote down by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from intq.cost import Geometry, alive_together
from intq.errors import IntqError
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode
from intq.migrate import MOVED
from intq.problem import Live
from intq.quants import tied_groups
from intq.value import bind_shape
from intq.widths import curve_arguments, wide_values


def shapes(graph: FloatGraph) -> dict[str, Geometry]:
    """The layers by module path with the shapes of their weights alone, whatever the sizes of inputs."""
    found: dict[str, Geometry] = {}
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            known = found.get(node.module, Geometry(0, ()))
            found[node.module] = Geometry(0, (*known.shapes, tuple(node.parameters["weight"].shape)))
    return found


def layers(graph: FloatGraph, sizes: Mapping[str, int] | None = None) -> dict[str, Geometry]:
    """The layers that have weights, in order, by module path; nodes of one module are one layer, as for the quantizer.

    ``sizes``: of the symbolic axes but the batch, {"s": tokens} or {"t": samples}. Raises IntqError when one is needed.
    """
    found: dict[str, Geometry] = {}
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            shape = tuple(node.parameters["weight"].shape)
            places = math.prod(_bound(node.name, node.shape, sizes)) // shape[0]
            known = found.get(node.module, Geometry(0, ()))
            found[node.module] = Geometry(known.macs + places * math.prod(shape), (*known.shapes, shape))
    return found


def results(graph: FloatGraph) -> dict[str, str]:
    """{value of the integer network: the layer that makes it}, by which measured times of nodes are times of layers.

    A layer that ends in a curve has the name of the curve's result there (:func:`intq.widths.curve_arguments`), which
    channels moved by powers of two change once more (:mod:`intq.migrate`).
    """
    users, curved, found = graph.users(), curve_arguments(graph), {}
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            name = users[node.name][0].name if node.name in curved else node.name
            found |= {name: node.module, name + MOVED: node.module}
    return found


def input_readers(graph: FloatGraph) -> frozenset[str]:
    """The layers that read the network's input, moved or not: its width is given, 8 bits of pixels, and not chosen."""
    group = next((names for names in tied_groups(graph) if graph.input in names), [])
    return frozenset(node.module for name in group for node in _contractions_reading(graph, name))


def ties(graph: FloatGraph) -> tuple[tuple[str, ...], ...]:
    """Groups of two layers or more, by module path, that read the same integers and so get the same input width."""
    groups: list[set[str]] = []
    for names in tied_groups(graph):
        together = {node.module for name in names for node in _contractions_reading(graph, name)}
        # a layer that is used twice ties what it reads in both places
        for other in [group for group in groups if group & together]:
            groups.remove(other)
            together |= other
        groups.append(together)
    order = {name: place for place, name in enumerate(node.module for node in graph.nodes)}
    return tuple(tuple(sorted(group, key=order.__getitem__)) for group in groups if len(group) > 1)


def moments(
    graph: FloatGraph, sizes: Mapping[str, int] | None = None, residual_bits: int = 8
) -> tuple[tuple[Live, ...], ...]:
    """For each step of the network the values in memory: what it reads, what it makes, and what is read later.

    A value has a byte an element, two where a layer reads 16 bits of it. Values that are wide whoever reads them (a
    residual stream of 16 bits, scores) are so here; the copies of a value for narrower readers are left out.
    """
    live = _live(graph, sizes or {}, residual_bits)
    ends = curve_arguments(graph)
    curved = {node.name: node for node in graph.nodes if node.name in ends}
    steps = []  # a layer that ends in a curve makes the curve's result
    for node in graph.nodes:
        if node.name not in curved:
            names = (curved[name].inputs if name in curved else (name,) for name in node.inputs)
            steps.append((node.name, tuple(each for group in names for each in group)))
    views = {node.name: node.inputs[0] for node in graph.nodes if node.op == "reshape"}
    alive = alive_together((graph.input,), steps, (graph.output,), views)
    found = dict.fromkeys(tuple(live[name] for name in sorted(names)) for names in alive)
    return tuple(found)


def _live(graph: FloatGraph, sizes: Mapping[str, int], residual_bits: int) -> dict[str, Live]:
    """Every value's size, the layer that decides its width, and its bytes whatever that layer reads."""
    shapes, real = graph.shapes(), graph.real()
    wide = wide_values(graph, {}, residual_bits == 16)
    int16 = wide | ({graph.input} if graph.reads_samples else set())
    int32 = {graph.output, *(node.name for node in graph.nodes if node.op == "relative")}
    int32 |= {graph.input} if graph.reads_tokens else set()
    found = {}
    for names in [*tied_groups(graph), *([name] for name in shapes if name not in real)]:
        readers = [node.module for name in names for node in _contractions_reading(graph, name)]
        chosen = readers[0] if readers and graph.input not in names else ""
        least = 4 if int32.intersection(names) else 2 if int16.intersection(names) else 1
        found |= {name: Live(math.prod(_bound(name, shapes[name], sizes)), chosen, least) for name in names}
    return found


def _contractions_reading(graph: FloatGraph, name: str) -> list[FloatNode]:
    """The layers that multiply a value by weights; a layer that only adds it, as a residual, does not count."""
    return [node for node in graph.nodes if node.op in CONTRACTIONS and node.inputs[0] == name]


def _bound(name: str, shape: tuple, sizes: Mapping[str, int] | None) -> tuple[int, ...]:
    try:
        return bind_shape(shape, {"n": 1, **(sizes or {})})
    except KeyError as error:
        raise IntqError(
            f"{name} has the shape {shape}: say how large the axis {error} is to count what it costs"
        ) from None
