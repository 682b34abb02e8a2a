"""Eigenvalues of a loss's Hessian, and their density, by Lanczos' method with full reorthogonalisation.

    H Q = Q T + beta_m q_m+1 e_m',  Q'Q = 1,  T tridiagonal: alpha on its diagonal, beta beside it

T's eigenvalues theta (Ritz values) approach the ends of H's spectrum first, far sooner than power iteration does from
the same products; y = Q s is the eigenvector, and |beta_m s_m| its residual |H y - theta y|. For the density each
random start gives Gauss' quadrature of the spectrum (Golub and Welsch 1969), nodes theta_k and weights the squares of
the first components of T's eigenvectors:

    phi(t) = (1 / starts) sum_starts sum_k weight_k gaussian(t - theta_k; sigma)

(stochastic Lanczos quadrature: Lin, Saad and Yang 2016; Ubaru, Chen and Saad 2017; Yao et al. 2020, "PyHessian").
Here H is that of the mean loss over all batches with respect to the weights of ``loss``, which :meth:`Loss.only`
narrows to a layer's. The vectors, as many as there are steps, are kept: 100 MB each for ResNet-50.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intq.errors import IntqError
from intq.hessian import generator, gradient, inner, signs
from intq.losses import Batch, Loss, counts
from intq.processes import share, summed

EXHAUSTED = 1e-6  # of the largest coefficient so far: a new vector shorter than that is rounding
EDGE = 4  # deviations of the Gaussian by which a density's grid reaches beyond the outermost Ritz values

Progress = Callable[[int, int], None]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Eigenvalues:
    """The largest in magnitude, in that order; ``residuals`` |H y - value y|, which bound their errors.

    ``vectors``: of length 1, by the names of the weights.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    products: int
    vectors: tuple[dict[str, Tensor], ...]


@dataclass(frozen=True)
class Density:
    """``density`` at the points of ``grid`` (its integral is 1); ``nodes`` and ``weights`` of each start's quadrature.

    ``size``: the number of eigenvalues. The mean of an eigenvalue's function f is the mean over starts of
    ``sum(weight * f(node))``; times ``size`` it is the trace of f(H).
    """

    grid: tuple[float, ...]
    density: tuple[float, ...]
    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    size: int

    def trace(self, function: Callable[[float], float] = lambda value: value) -> float:
        """The estimate of trace f(H)."""
        rules = [zip(nodes, weights, strict=True) for nodes, weights in zip(self.nodes, self.weights, strict=True)]
        return self.size * sum(w * function(t) for rule in rules for t, w in rule) / len(rules)


def hessian_product(loss: Loss, batches: Sequence[Batch]) -> Product:
    """v -> H v, flat vectors over all weights, H of the mean loss over all batches; processes share the batches."""
    rows, mine = counts(batches), share(batches)

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for place, batch in mine:
            point = gradient(loss, batch, activations=False)
            made = point.product([v.to(t) for v, t in zip(_parts(vector, point.tensors), point.tensors, strict=True)])
            total += torch.cat([h.flatten() for h in made]).mul_(float(rows[place] / rows.sum()))
        return summed(total)

    return product


def _parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(t.shape) for part, t in zip(vector.split([t.numel() for t in like]), like, strict=True)]


@dataclass
class _Lanczos:
    """The tridiagonal T and the basis Q, a row a vector, as they grow."""

    product: Product
    basis: list[Tensor]
    alpha: list[float]
    beta: list[float]

    def step(self) -> bool:
        """One product more; False where the space is exhausted: then T's eigenvalues are H's."""
        w = self.product(self.basis[-1])
        self.alpha.append(float(inner(self.basis[-1], w)))
        for _ in range(2):  # once leaves what rounding makes of the cancelled part: "twice is enough" (Kahan)
            for q in self.basis:
                w.sub_(q, alpha=float(inner(q, w)))
        length = float(inner(w, w)) ** 0.5
        if not math.isfinite(length):
            raise IntqError("the Hessian's product with a vector is NaN or infinite: check the data and the loss")
        self.beta.append(length)
        largest = max(map(abs, (*self.alpha, *self.beta[:-1])))
        if len(self.basis) == w.numel() or length <= EXHAUSTED * largest:
            return False
        self.basis.append(w.div_(length))
        return True

    def ritz(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of T, ascending, and its eigenvectors, a column each."""
        alpha, beta = (torch.tensor(x, dtype=torch.float64) for x in (self.alpha, self.beta[:-1]))
        return torch.linalg.eigh(torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1))


def _started(loss: Loss, batches: Sequence[Batch], *seeds: int) -> _Lanczos:
    if not loss.weights:
        raise IntqError("the loss has no weights, and its Hessian no eigenvalues")
    first = next(iter(loss.weights.values()))
    size = sum(weight.numel() for weight in loss.weights.values())
    like = torch.empty(size, dtype=first.dtype, device=first.device)
    start = signs(like, generator(like.device, *seeds)).div_(math.sqrt(size))
    return _Lanczos(hessian_product(loss, batches), [start], [], [])


def eigenvalues(
    loss: Loss,
    batches: Sequence[Batch],
    count: int = 2,
    *,
    tolerance: float = 1e-3,
    most: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenvalues:
    """The ``count`` eigenvalues of largest magnitude and their vectors, after at most ``most`` products.

    It ends when all residuals are within ``tolerance`` of their eigenvalue. An eigenvalue that occurs several times
    counts once, as a random start has one direction in its space. There are fewer than ``count`` where the space is
    exhausted before. Raises IntqError for a loss that is not finite or cannot be differentiated twice.
    """
    lanczos = _started(loss, batches, seed)
    for done in range(most):
        more = lanczos.step()
        if progress is not None:
            progress(done + 1, most)
        theta, s = lanczos.ritz()
        order = theta.abs().argsort(descending=True)[:count]
        residuals = lanczos.beta[-1] * s[-1, order].abs() if more else torch.zeros_like(theta[order])
        if not more or (len(order) == count and bool((residuals <= tolerance * theta[order].abs()).all())):
            break
    vectors = []
    for k in order.tolist():
        y = sum(q * float(c) for q, c in zip(lanczos.basis, s[:, k], strict=False))
        parts = _parts(y / inner(y, y).sqrt().to(y), list(loss.weights.values()))
        vectors.append(dict(zip(loss.weights, parts, strict=True)))
    return Eigenvalues(tuple(theta[order].tolist()), tuple(residuals.tolist()), done + 1, tuple(vectors))


def density(
    loss: Loss,
    batches: Sequence[Batch],
    *,
    starts: int = 2,
    steps: int = 40,
    points: int = 512,
    sigma: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Density:
    """The density of the Hessian's eigenvalues, from ``starts`` random vectors and ``steps`` products of each.

    ``sigma``: the Gaussian's deviation, by default a hundredth of the spectrum's width.
    """
    rules = []
    for start in range(starts):
        lanczos = _started(loss, batches, seed, start)
        for step in range(steps):
            more = lanczos.step()
            if progress is not None:
                progress(start * steps + step + 1, starts * steps)
            if not more:
                break
        theta, s = lanczos.ritz()
        rules.append((theta, s[0].square()))
    low, high = min(float(t[0]) for t, _ in rules), max(float(t[-1]) for t, _ in rules)
    sigma = sigma or (high - low or abs(high) or 1.0) / 100
    grid = torch.linspace(low - EDGE * sigma, high + EDGE * sigma, points, dtype=torch.float64)
    bells = sum((torch.exp(-(((grid[:, None] - t) / sigma) ** 2) / 2) * w).sum(1) for t, w in rules)
    return Density(
        tuple(grid.tolist()),
        tuple((bells / (len(rules) * sigma * math.sqrt(2 * math.pi))).tolist()),
        tuple(tuple(t.tolist()) for t, _ in rules),
        tuple(tuple(w.tolist()) for _, w in rules),
        sum(weight.numel() for weight in loss.weights.values()),
    )
