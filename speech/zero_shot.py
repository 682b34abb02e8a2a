"""Recordings to calibrate a trained recogniser on where there are none: voices without words, changed to fit it.

The descent changes the samples themselves, through the front end, so that what calibrates is what a recording can be
(Kim et al. 2021, "Q-ASR", section 3.2, changes the features).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from intq.speech.synthetic import random_audio
from intq.zero_shot import Made, made_for

MOST, SECONDS = 32, 4  # recordings, and how long each is


def recordings_for(
    model: nn.Module,
    rate: int,
    samples: int,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Made:
    """int16 recordings, (1, t) each, to calibrate a trained network on, made without data: `samples` or MOST."""
    start = torch.from_numpy(random_audio(min(samples, MOST), SECONDS * rate, rate, seed))
    made = made_for(model, start, "voices without words", limits=(-1.0, 1.0 - 2.0**-15), progress=progress)
    recordings = (made.samples * 32768).round().to(torch.int16).numpy()
    return replace(made, samples=list(np.split(recordings, len(recordings))))
