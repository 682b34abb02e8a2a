"""A network's loss in the plane of its Hessian's two top eigenvectors.

    L(a, b) = l(w + r a v_1 + r b v_2),  -1 <= a, b <= 1

``v`` are of length 1, so near the centre L - L(0, 0) = r^2 (lambda_1 a^2 + lambda_2 b^2) / 2. The reach ``r`` is where
that parabola has risen by :data:`RISE` in the first direction: what lies within is what the traces speak of, and where
L leaves the parabola they no longer do. It is told as a share of |w|, by which networks compare. (Li et al. 2018,
"Visualizing the loss landscape of neural nets", take random directions and scale each filter's part of them; an
eigenvector scaled so would be none. Yao et al. 2020, "PyHessian", take eigenvectors, as here.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from intq.errors import IntqError
from intq.hessian import inner
from intq.losses import Batch, Loss, counts, unperturbed
from intq.spectrum import Eigenvalues

RISE = 2.0  # of the loss, in nats: two networks apart by as much agree on little
FLAT = 0.1  # the reach as a share of |w| where nothing rises

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Landscape:
    """``loss[i][j]`` at ``a = shares[j]`` along the first eigenvector and ``b = shares[i]`` along the second.

    ``shares``: of the weights' length |w|; ``curvatures``: the eigenvalues.
    """

    shares: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    curvatures: tuple[float, float]


@torch.no_grad()
def landscape(
    loss: Loss, batches: Sequence[Batch], top: Eigenvalues, points: int = 15, progress: Progress | None = None
) -> Landscape:
    """The mean loss over all batches at ``points`` by ``points`` places, an odd number: the network is in the middle.

    Raises IntqError for a Hessian with a single eigenvector, and for a loss that is not finite.
    """
    if len(top.values) < 2:
        raise IntqError("the Hessian has a single eigenvalue that is not 0, and its loss no plane to be shown in")
    if points < 3 or points % 2 == 0:
        raise IntqError(f"a landscape needs an odd number of points a side, 3 or more, got {points}")
    length = math.sqrt(sum(float(inner(w, w)) for w in loss.weights.values()))
    steepest = max(top.values[:2])
    reach = math.sqrt(2 * RISE / steepest) if steepest > 0 else FLAT * length
    rows, places = counts(batches), torch.linspace(-reach, reach, points, dtype=torch.float64).tolist()
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
    return Landscape(tuple(x / length for x in places), tuple(found), (top.values[0], top.values[1]))
