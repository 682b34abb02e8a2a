"""A network's loss in the plane of its Hessian's two top eigenvectors.

    L(a, b) = l(r a v_1 + r b v_2),  -1 <= a, b <= 1,    l(u) = loss(w_f + |w_f| u_f of every filter f)

``u`` are relative changes of filters (a convolution's output channel, a matrix' row), as in Li et al. 2018,
"Visualizing the loss landscape of neural nets". They take random directions; here v are the top eigenvectors of l's
Hessian, as in Yao et al. 2020, "PyHessian", but by relative changes: so scales that were folded into a network's
weights, or moved from one layer to the next, change nothing.

Near the centre L - L(0, 0) = r^2 (lambda_1 a^2 + lambda_2 b^2) / 2. The reach ``r`` is where that parabola has risen by
:data:`RISE` in the first direction: traces speak of what lies within, while L follows the parabola.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intq.errors import IntqError
from intq.losses import Batch, Loss, Perturb, counts, unperturbed
from intq.spectrum import Eigenvalues

RISE = 2.0  # of the loss, in nats: two networks apart by as much agree on little
FLAT = 0.1  # the reach where nothing rises

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Landscape:
    """``loss[i][j]`` at ``places[j]`` along the first eigenvector and ``places[i]`` along the second.

    Places are lengths |u|: 0.1 is one filter changed by a tenth of its length, or a hundred by a hundredth each.
    """

    places: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]

    @property
    def middle(self) -> float:
        """The network's own loss."""
        half = len(self.places) // 2
        return self.loss[half][half]


def relative(loss: Loss) -> Loss:
    """The loss as a function of relative changes u of its weights' filters, at u = 0."""
    lengths = {name: _lengths(w) for name, w in loss.weights.items()}

    def of(changes: Mapping[str, Tensor], batch: Batch, perturb: Perturb) -> Tensor:
        moved = {name: w + lengths[name] * changes[name] for name, w in loss.weights.items()}
        return loss.of(moved, batch, perturb)

    return Loss({name: torch.zeros_like(w) for name, w in loss.weights.items()}, of)


def _lengths(weight: Tensor) -> Tensor:
    """The length of each filter, (filters, 1, ...)."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))


@torch.no_grad()
def landscape(
    loss: Loss, batches: Sequence[Batch], top: Eigenvalues, points: int = 15, progress: Progress | None = None
) -> Landscape:
    """The mean of a :func:`relative` loss over all batches at ``points`` by ``points`` places, an odd number: the
    network is in the middle. ``top``: the eigenvalues of the same loss.

    Raises IntqError for a Hessian with a single eigenvector, and for a loss that is not finite.
    """
    if len(top.values) < 2:
        raise IntqError("the Hessian has a single eigenvalue that is not 0, and its loss no plane to be shown in")
    if points < 3 or points % 2 == 0:
        raise IntqError(f"a landscape needs an odd number of points a side, 3 or more, got {points}")
    steepest = max(top.values[:2])
    reach = math.sqrt(2 * RISE / steepest) if steepest > 0 else FLAT
    rows, half = counts(batches), points // 2
    places = [reach * (i - half) / half for i in range(points)]  # exactly 0 in the middle
    first, second = top.vectors[:2]
    found = []
    for done, b in enumerate(places, 1):
        line = []
        for a in places:
            moved = {name: w + a * first[name] + b * second[name] for name, w in loss.weights.items()}
            each = torch.stack([loss.of(moved, batch, unperturbed).double() for batch in batches])
            line.append(float((each * rows.to(each)).sum() / rows.sum()))
        if not all(map(math.isfinite, line)):
            raise IntqError("the loss is not finite near these weights: check the data and the loss")
        found.append(tuple(line))
        if progress:
            progress(done, points)
    return Landscape(tuple(places), tuple(found))
