"""What the integers of every value mean: how many bits they have, and the range that these cover.

A value is stored in as many bits as the reader needs that takes most; others get a copy with fewer. Sums, tables and
averages take 8 bits, layers what was chosen for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from intq.calibrate import Histogram, choose_range, mirrored
from intq.floatgraph import CONTRACTIONS, FloatGraph, FloatNode, evaluate
from intq.frames import FULL_SCALE
from intq.frontend import LOG_MEL_SCALE
from intq.plan import LEVELS, MOVES, NIBBLE, Plan, Quant
from intq.widths import INT16_HEADROOM, bits_read, curve_argument, curve_arguments, lifted_functions, wide_values

INT32_SCORES = 2.0**23  # the scores' largest value seen, as an integer: 8 bits are left above it
FINE_BITS = 6  # that a curve's polynomials have below a step of 8 bits, about


def tied_groups(graph: FloatGraph) -> list[list[str]]:
    """The values by groups that share one scale and zero point: what only moves or selects integers ties them."""
    parent = {name: name for name in graph.real()}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op in MOVES:
            for name in node.inputs:
                parent[find(name)] = find(node.name)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def choose_quants(
    graph: FloatGraph,
    histograms: Mapping[str, Histogram],
    *,
    pixels: bool,
    method: str = "mse",
    residual_bits: int = 8,
    bits: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """A plan without weights; the arguments are those of :func:`intq.quantize.quantize`."""
    makers, users, ranges = {n.name: n for n in graph.nodes}, graph.users(), ranges or {}
    reads, curved = bits_read(graph, bits or {}), curve_arguments(graph)
    wide = wide_values(graph, reads, residual_bits == 16)
    quants, narrow = {name: Quant("uint8", 1.0, 0) for name in graph.shapes()}, {}
    if graph.reads_tokens:
        quants[graph.input] = Quant("int32", 1.0, 0)
    for names in tied_groups(graph):
        fresh = [n for n in names if n not in makers or makers[n].op not in MOVES]
        seen = [histograms[n] for n in fresh]
        known = [ranges[makers[n].module] for n in fresh if n in makers and makers[n].module in ranges]
        ceiling = min([math.inf, *(float(makers[n].channel_high.min()) for n in fresh if n in makers)])
        symmetric = any(user.op in ("attention", "relative") for name in names for user in users[name])
        function = _reader(names, users)
        taken = {_bits_taken(user, name, reads) for name in names for user in users[name] if user.op not in MOVES}
        largest = max(max(abs(histograms[n].low), abs(histograms[n].high)) for n in fresh) or 1.0

        def interval(dtype: str, of: list[Histogram], function=function, known=known, ceiling=ceiling):
            low, high = choose_range(of, method, function, LEVELS[dtype][1])
            if known:
                low, high = min(0.0, *(k[0] for k in known)), max(0.0, *(k[1] for k in known))
            return low, min(high, ceiling)

        if symmetric:
            low, high = interval("uint8", [*seen, *map(mirrored, seen)])
            eight = symmetric_uint8(max(-low, high))
        else:
            eight = affine("uint8", *interval("uint8", seen))
        fewer = {8: eight} | ({4: affine(NIBBLE, *interval(NIBBLE, seen))} if 4 in taken else {})
        if pixels and graph.input in names:
            quant, fewer = Quant("uint8", 1.0, 0), {}
        elif unit := _given_unit(graph, names, makers):
            quant = Quant("int16", unit, 0)
        elif _are_scores(graph, names, fresh, makers, users):
            quant, fewer = Quant("int32", largest / INT32_SCORES, 0), {}
        elif any(name in wide for name in names):
            quant = Quant("int16", INT16_HEADROOM * largest / 2**15, 0)
        elif taken == {4} and graph.output not in names:
            quant, fewer = fewer[4], {}
        else:
            quant = fewer.pop(8)
        quants.update(dict.fromkeys(names, quant))
        narrow.update(dict.fromkeys(names, fewer))
    lifted = lifted_functions(graph, curved, frozenset(wide))
    for name in lifted:  # what the polynomials compute with, before the channel's scale and the rounding to 8 bits
        quants[name] = Quant("int16", quants[users[name][0].name].scale / 2**FINE_BITS, 0)
    for node in graph.nodes:
        if node.op == "attention" and node.attrs.get("biased"):  # in the unit of the products that it is added to
            q, k, _, bias, *_ = node.inputs
            quants[bias] = Quant("int32", quants[q].scale * quants[k].scale * node.attrs["scale"], 0)
    for name in curved:
        function = users[name][0]
        result = quants[users[function.name][0].name if function.name in lifted else function.name]
        quants[name] = curve_argument(function, histograms[name], result)
    # what enters the network is not narrowed, nor is it widened
    has = {name: quants[makers[name].inputs[0]].dtype == "int16" if b == 16 else True for name, b in reads.items()}
    return Plan(graph, quants, narrow, {}, curved, lifted, {name: b for name, b in reads.items() if has[name]})


def _bits_taken(user: FloatNode, name: str, reads: Mapping[str, int]) -> int:
    """The bits in which a node takes one of its inputs."""
    by_products = user.op in CONTRACTIONS and name == user.inputs[0] and name not in user.inputs[1:]
    return reads.get(user.name, 8) if by_products else 8


def affine(dtype: str, low: float, high: float) -> Quant:
    """All levels of uint8, or of a nibble, over [low, high], zero being one of them; low <= 0 <= high."""
    most = LEVELS[dtype][1]
    scale = (high - low) / most
    if not scale > 0:  # nothing but zero was seen
        return Quant(dtype, 1.0, 0)
    return Quant(dtype, scale, min(max(round(-low / scale), 0), most))


def symmetric_uint8(high: float) -> Quant:
    """Integers about 128, the levels of an int8, over [-high, high]: what attention takes."""
    return Quant("uint8", high / 127 if high > 0 else 1.0, 128)


def _given_unit(graph: FloatGraph, names: list[str], makers: Mapping[str, FloatNode]) -> float | None:
    """The scale of a recording's samples and of log-mel features, which nobody chooses."""
    if graph.reads_samples and graph.input in names:
        return 1 / FULL_SCALE
    return LOG_MEL_SCALE if any(makers[n].op == "log_mel" for n in names if n in makers) else None


def _are_scores(graph: FloatGraph, names: list[str], fresh: list[str], makers: dict, users: dict) -> bool:
    """Whether the values are the network's answer alone and made by sums, which keep 32 bits."""
    read_inside = any(user.op not in MOVES for name in names for user in users[name])
    from_sums = all(name in makers and makers[name].op != "function" for name in fresh)
    return graph.output in names and not read_inside and from_sums


def _reader(names: list[str], users: Mapping[str, list[FloatNode]]) -> Callable[[Tensor], Tensor] | None:
    """What a value is read through, when functions alone read it."""
    readers = [user for name in names for user in users[name]]
    if len(names) > 1 or not readers or any(user.op != "function" for user in readers):
        return None
    return lambda x: torch.stack([evaluate(u, x.reshape(-1, 1)).reshape(x.shape) for u in readers]).sum(0)
