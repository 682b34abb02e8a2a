"""BatchNorm's statistics, settled on data before they are folded into the layers and frozen (HAWQ-V3, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from intq.errors import IntqError
from intq.frames import FULL_SCALE


def settled(
    model: nn.Module,
    samples: Iterable,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A copy of the model whose BatchNorms have the mean and variance of the samples, each batch counting alike.

    ``samples``, ``mean``, ``std``: as :func:`intq.quantize.quantize` takes them. The model itself is not changed.
    Raises IntqError when it has no BatchNorm that keeps statistics, or a batch is a single value per channel.
    """
    model = copy.deepcopy(model).eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise IntqError("the network has no BatchNorm whose statistics could be settled: leave that out")
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in samples:
            try:
                model(_real(torch.as_tensor(batch), mean, std))
            except ValueError as error:  # torch: more than one value per channel is needed
                raise IntqError(f"BatchNorm cannot settle on such a batch ({error}); take larger ones") from None
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


def _real(batch: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """What the model takes of what calibrates: normalised images, samples in [-1, 1)."""
    if batch.dtype == torch.uint8:
        channels = batch.shape[-1]
        shift, scale = (
            np.asarray(v, np.float32) if v is not None else np.full(channels, d, np.float32)
            for v, d in ((mean, 0.0), (std, 1.0))
        )
        return ((batch / 255 - torch.from_numpy(shift)) / torch.from_numpy(scale)).permute(0, 3, 1, 2)
    return batch.float() / FULL_SCALE if batch.dtype == torch.int16 else batch
