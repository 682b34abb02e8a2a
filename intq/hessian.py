"""The Hessian of a loss, of which only products with vectors are computed: traces and diagonals of its blocks.

    H = d2 l / dt2,  t = (weights, perturbations of activations),  H v = d(g . v) / dt,  g = dl / dt  (Pearlmutter 1994)

Hutchinson's estimate: for ``v = s r``, ``r`` independent signs (Rademacher), ``s`` a scale for each layer,
``E[r_i (H v)_i / s_i]`` is the diagonal of the layer's block ``H_ii``, and ``E[r_i . (H v)_i / s_i]`` its trace: the
parts ``r_i . H_ij r_j`` that come from other layers have mean zero. One product H v serves all layers. The price is
variance,

    Var(r_i . (H v)_i / s_i) = 2 sum_{a != b} (H_ii)_ab**2 + sum_{j != i} (s_j / s_i)**2 |H_ij|_F**2,

whose second sum is absent where each layer has a product of its own, for as many times the cost. Three things that cost
next to nothing keep it low. The scales, without which the layers of large trace drown the others, are balanced first:
``s_i <- sqrt(s_i / |(H v)_i|)``, repeated, makes all parts of ``s H v`` equally large (a matrix-free form of Ruiz's
equilibration). Every batch has a ``v`` of its own: the variances of the batches' Hessians add up, not their roots. And
so has every sample, for its perturbations.

Measured (ResNet-50, random weights, 16 images of 64 x 64 in batches of 2, 4 probes of each; relative standard errors of
54 weights and 50 activations, median and largest): scales of 1: 16 % and 610 % of weights, 120 % and 1600 % of
activations; balanced: 11 % and 27 %, 13 % and 19 %. A product for the weights and another for the activations: 9 % and
15 %, 8 % and 14 %, which as many products for all give as well.

Dong et al. 2020, "HAWQ-V2" (the mean trace as sensitivity, for weights and activations); Yao et al. 2020,
"PyHessian"; Yao et al. 2021, "AdaHessian" (the diagonal).

Products are made in reverse mode over reverse mode, and a batch is probed several times while the graph of its gradient
is there: a product costs about six passes through the network, the gradient three. Memory is that of one batch. The
smaller the batches (:func:`intq.losses.split`), the more vectors there are for the same passes. Measured (ResNet-50,
224 x 224, 32 images, one core): a product takes 1.4 s of an image alone, 1.9 s of two, 3.0 s of four together; 8 probes
of each image alone bring all 104 standard errors to 9 % or less (6.3 % in the middle), in 200 s of each of two
processes and 1.8 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from intq.errors import IntqError
from intq.losses import Batch, Loss, counts, samples, unperturbed
from intq.processes import from_first, share, summed

AT_ONCE = 4  # probes of a batch for one gradient
BALANCINGS = 6  # products by which scales are balanced: each halves the logarithm of what they are off by
NEGLIGIBLE = 0.01  # of the largest trace of its kind: how exact a smaller one must be is measured by that
BALANCE, PROBE = 0, 1  # what vectors are drawn for
ENOUGH = 10  # degrees of freedom without which a standard error is not believed
CANNOT = ("derivative for", "not implemented", "nference tensor", "once_differentiable")  # parts of torch's messages

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trace:
    """``mean`` = trace / elements; ``error``: the standard error of the trace, over ``probes`` independent vectors.

    ``elements``: parameters of a weight; of an activation how many a sample has (on average, where that differs).
    """

    mean: float
    trace: float
    error: float
    elements: float
    probes: int


@dataclass(frozen=True)
class Traces:
    """By name, of weights and of activations; ``converged``: whether all errors came within the tolerance."""

    weights: dict[str, Trace]
    activations: dict[str, Trace]
    converged: bool


@contextmanager
def twice_differentiable():
    """Where a loss can be differentiated twice, whatever the caller's mode; attention in steps that have derivatives.

    Raises IntqError for what torch cannot differentiate twice.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if not any(part in str(error) for part in CANNOT):
            raise
        reason = str(error).splitlines()[0]
        raise IntqError(
            f"the loss cannot be differentiated twice: {reason}; put another operation in its place"
        ) from error


@dataclass(frozen=True)
class Gradient:
    """A loss's gradient on one batch, which can be differentiated again: of the weights, then of the activations."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def product(self, vectors: Sequence[Tensor], keep: bool = False) -> tuple[Tensor, ...]:
        return products(self.gradients, self.tensors, vectors, keep)


def gradient(loss: Loss, batch: Batch, activations: bool = True, twice: bool = True) -> Gradient:
    """The gradient by the weights and, in the order in which they are read, by the perturbations of activations.

    Nothing is added to an activation: the derivative by what is added is that by the activation where it is read.
    ``twice``: keep the graph that :func:`products` needs. Raises IntqError where the loss is not one finite number.
    """
    weights = {name: _leaf(weight) for name, weight in loss.weights.items()}
    seen: dict[str, Tensor] = {}

    def perturb(name: str, x: Tensor) -> Tensor:
        if name in seen:
            raise IntqError(f"the loss perturbs {name!r} twice: it must name every activation once")
        seen[name] = x.view_as(x) if x.requires_grad else _leaf(x)
        return seen[name]

    with twice_differentiable():
        value = loss.of(weights, batch, perturb if activations else unperturbed)
        if value.numel() != 1 or not bool(torch.isfinite(value).all()):
            found = value.detach().flatten()[:3].tolist()
            raise IntqError(f"the loss must be one finite number, found {found}: check the data and the loss")
        tensors = (*weights.values(), *seen.values())
        if not tensors:
            raise IntqError("the loss has neither weights nor perturbed activations to differentiate it by")
        made = torch.autograd.grad(value.reshape(()), tensors, create_graph=twice, allow_unused=True)
    gradients = tuple(torch.zeros_like(t) if g is None else g for t, g in zip(tensors, made, strict=True))
    return Gradient((*weights, *seen), tensors, gradients)


def _leaf(x: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return (x.clone() if x.is_inference() else x).detach().requires_grad_()


def products(
    gradients: Sequence[Tensor], tensors: Sequence[Tensor], vectors: Sequence[Tensor], keep: bool = False
) -> tuple[Tensor, ...]:
    """H v of gradients that were made with ``create_graph=True``; ``keep`` their graph for another product."""
    graphs = [i for i, g in enumerate(gradients) if g.requires_grad]  # others do not depend on any of the tensors
    if not graphs:
        return tuple(torch.zeros_like(t) for t in tensors)
    outputs, along = [gradients[i] for i in graphs], [vectors[i] for i in graphs]
    with twice_differentiable():
        return torch.autograd.grad(
            outputs, tensors, along, retain_graph=keep, allow_unused=True, materialize_grads=True
        )


def signs(like: Tensor, random: torch.Generator) -> Tensor:
    """Independent signs, +1 or -1 with equal chance, in a tensor's shape and type: a random bit each."""
    octets = torch.randint(256, (-(-like.numel() // 8),), dtype=torch.uint8, device=like.device, generator=random)
    bits = octets >> torch.arange(8, dtype=torch.uint8, device=like.device)[:, None] & 1
    ones = bits.view(torch.int8).mul_(2).sub_(1)
    return ones.view(-1)[: like.numel()].to(like.dtype).view(like.shape)


def generator(device: torch.device, *seeds: int) -> torch.Generator:
    """A generator of its own for each sequence of seeds."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


def diagonal(gradients: Sequence[Tensor], tensors: Sequence[Tensor], random: torch.Generator) -> tuple[Tensor, ...]:
    """v * (H v) for random signs v, whose mean is the diagonal of H: AdaHessian's estimate before it is averaged.

    ``gradients``: of the tensors, made with ``create_graph=True``. Raises IntqError where they were not.
    """
    if not any(g.requires_grad for g in gradients):
        raise IntqError("the gradients have no graph to differentiate: make them with backward(create_graph=True)")
    vectors = [signs(t, random) for t in tensors]
    return tuple(v * h for v, h in zip(vectors, products(gradients, tensors, vectors), strict=True))


def traces(
    loss: Loss,
    batches: Sequence[Batch],
    *,
    activations: bool = True,
    tolerance: float = 0.1,
    most: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Traces:
    """The trace of each layer's block of the Hessian of the mean loss over all batches, for weights and activations.

    Of an activation it is the mean over samples of the trace of the sample's own block, so that an error of mean square
    s in each of its elements adds ``trace * s / 2`` to the mean loss, as one in a weight does.

    Each batch is probed by vectors of its own, ``AT_ONCE`` at a time and up to ``most``, until the standard error of
    every trace is within ``tolerance`` of it, or of a hundredth of the largest trace of its kind if that is more: a
    trace near zero or below is wanted no better than the large ones are known. The standard error is that of the
    probes, for the data given. The same seed, batches and device give the same traces. Several processes
    (:mod:`intq.processes`) share the batches, and each gets the whole result.
    ``progress(done, total)`` counts probes of batches; it may end early.
    Raises IntqError for a loss that is not finite or cannot be differentiated twice.
    """
    if most < 2:
        raise IntqError(f"a standard error takes two probes of each batch or more, got most = {most}")

    def made(batch: Batch) -> Gradient:
        return gradient(loss, batch, activations)

    rows, scales = counts(batches)[:, None], _balanced(made, batches, seed)
    kinds = slice(len(loss.weights)), slice(len(loss.weights), None)
    total, done, blocks = most * len(share(batches)), 0, []

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for first in range(0, most, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, most))
        block, elements = _probe(made, batches, len(loss.weights), scales, numbers, seed, step)
        blocks.append(block)
        table = torch.cat(blocks)
        probes = len(table)
        trace, size = ((x * rows).sum(0) / rows.sum() for x in (table.mean(0), elements))
        error = ((table.var(0) * rows**2).sum(0) / probes).sqrt() / rows.sum()
        converged = all(_within(trace[kind], error[kind], tolerance) for kind in kinds)
        if converged and (probes - 1) * len(batches) >= ENOUGH:
            break
    found = [
        Trace(t / e, t, s, e, probes * len(batches))
        for t, s, e in zip(trace.tolist(), error.tolist(), size.tolist(), strict=True)
    ]
    return Traces(*(dict(zip(scales.names[kind], found[kind], strict=True)) for kind in kinds), converged)


def _within(trace: Tensor, error: Tensor, tolerance: float) -> bool:
    size = trace.abs()
    return not len(trace) or bool((error <= tolerance * size.clamp_min(NEGLIGIBLE * float(size.max()))).all())


@dataclass(frozen=True)
class _Scales:
    """s, a number for each tensor."""

    names: tuple[str, ...]
    values: tuple[float, ...]

    def vectors(self, point: Gradient, *seeds: int) -> list[Tensor]:
        """v = s r."""
        if point.names != self.names:
            apart = next(a for a, b in zip_longest(point.names, self.names) if a != b)
            raise IntqError(f"the loss perturbs {apart!r} of one batch and not of another: all must go the same way")
        random = generator(point.tensors[0].device, *seeds)
        return [signs(t, random).mul_(s) for t, s in zip(point.tensors, self.values, strict=True)]


def _balanced(made: Callable[[Batch], Gradient], batches: Sequence[Batch], seed: int) -> _Scales:
    """Scales for which all s_i |(H v)_i| are about 1, by the first batches; the same in every process."""
    scales = None
    for i in range(BALANCINGS):
        point = made(batches[i % len(batches)])
        scales = scales or _Scales(point.names, (1.0,) * len(point.names))
        lengths = [float(inner(h, h)) ** 0.5 for h in point.product(scales.vectors(point, seed, BALANCE, i))]
        balanced = torch.tensor(
            [(s / n) ** 0.5 if 0 < n < math.inf else s for s, n in zip(scales.values, lengths, strict=True)],
            dtype=torch.float64,
        )
        scales = _Scales(point.names, tuple(from_first(balanced).tolist()))
    return scales


def _probe(
    made: Callable[[Batch], Gradient],
    batches: Sequence[Batch],
    weights: int,
    scales: _Scales,
    numbers: range,
    seed: int,
    step: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """(probes, batches, tensors): r . H v / s of each batch; and (batches, tensors): the elements that a sample has.

    A perturbation has the elements of all samples, each of which has its share in the mean loss: r . H v / s is the
    mean over samples of what belongs to each.
    """
    table = torch.zeros((len(numbers), len(batches), len(scales.names)), dtype=torch.float64)
    elements = torch.zeros(table.shape[1:], dtype=torch.float64)
    for place, batch in share(batches):
        point, rows = made(batch), samples(batch)
        elements[place] = torch.tensor([t.numel() / (1 if i < weights else rows) for i, t in enumerate(point.tensors)])
        for i, number in enumerate(numbers):
            vectors = scales.vectors(point, seed, PROBE, number, place)
            found = point.product(vectors, keep=number != numbers[-1])
            traced = [inner(v, h) / s**2 for v, h, s in zip(vectors, found, scales.values, strict=True)]
            table[i, place] = torch.stack(traced).cpu()
            step()
    table = summed(table)
    if not torch.isfinite(table).all():
        bad = scales.names[int((~torch.isfinite(table)).any(0).any(0).nonzero()[0])]
        raise IntqError(f"{bad}: the loss's second derivative is NaN or infinite on this data: check the data")
    return table, summed(elements)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product of two tensors, in float64."""
    return torch.dot(a.flatten(), b.flatten()).double()


def filter_traces(
    loss: Loss,
    batches: Sequence[Batch],
    *,
    probes: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """{weight: (outputs, taps), float64}: the layers' traces as :func:`traces` has them, of each filter's taps apart.

    A weight (outputs, inputs, taps, ...) has the diagonal's sum over the inputs for every output and tap, a matrix one
    tap. The sum of all is the layer's trace. Each batch is probed so many times, by vectors of its own.
    ``progress(done, total)`` counts probes of batches. Several processes share the batches.
    """

    def made(batch: Batch) -> Gradient:
        return gradient(loss, batch, activations=False)

    rows, scales = counts(batches).tolist(), _balanced(made, batches, seed)
    mine, done = share(batches), 0
    totals = [torch.zeros(len(w), w[0, 0].numel(), dtype=torch.float64) for w in loss.weights.values()]
    for place, batch in mine:
        point = made(batch)
        for number in range(probes):
            vectors = scales.vectors(point, seed, PROBE, number, place)
            found = point.product(vectors, keep=number < probes - 1)
            for total, v, h, s in zip(totals, vectors, found, scales.values, strict=True):
                diagonal = (v * h).flatten(2) if v.ndim > 2 else (v * h)[..., None]
                total += diagonal.sum(1, dtype=torch.float64).cpu() * (rows[place] / s**2)
            done += 1
            if progress is not None:
                progress(done, probes * len(mine))
    return {name: summed(total) / (probes * sum(rows)) for name, total in zip(loss.weights, totals, strict=True)}
