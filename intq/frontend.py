"""Speech features: from samples to the normalised log-mel spectrum that a network reads, in real numbers and integers.

    p[i]     = x[i] - preemphasis x[i - 1]            p[0] = x[0]; x = int16 / 32768
    X[f, k]  = sum_j window[j] p[f hop + j - fft / 2] exp(-2 pi i j k / fft)
    m[f, b]  = log(sum_k filters[b, k] |X[f, k]|**2 + guard)
    y[f, b]  = (m[f, b] - mean_f m) / (std_f m + 1e-5)

These are the features of NVIDIA NeMo's models (QuartzNet, Citrinet, Conformer). Beyond the ends of p are zeros, or p is
reflected there as far as it reaches. A row of a batch is what it is alone: what lies beyond its length is ignored,
and frames that it alone would not have are those of silence, log(guard), or 0 once normalised.

In real numbers the spectrum and the normalisation are an operator each, ``torch.ops.intq.log_mel`` and
``torch.ops.intq.normalize_frames``, which torch.export keeps whole; :class:`LogMel` is the module of both. In integers
they are the operations ``log_mel`` (:mod:`intq.ops.log_mel`), whose constants :func:`log_mel_node_parts` makes, and
``frame_mask`` and ``normalize_frames`` (:mod:`intq.ops.frames`).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from intq import dims
from intq.errors import IntqError
from intq.operators import differentiable
from intq.ops.log_mel import FFT_RULE, GUARDS, PADDINGS, is_fft_size, log_mel_parts

LOG_MEL_SCALE = 2.0**-10  # of the integers that stand for logarithms: they reach from -32 to 32
STD_EPSILON = 1e-5  # added to the deviation
WINDOWS = {  # of t in [0, 1]
    "hann": lambda t: 0.5 - 0.5 * np.cos(2 * np.pi * t),
    "hamming": lambda t: 0.54 - 0.46 * np.cos(2 * np.pi * t),
    "blackman": lambda t: 0.42 - 0.5 * np.cos(2 * np.pi * t) + 0.08 * np.cos(4 * np.pi * t),
    "rectangular": np.ones_like,
}


@dataclass(frozen=True)
class FrontEnd:
    """The features of a network.

    ``sample_rate``, ``low_hz``, ``high_hz`` (default: half the sample rate) in Hz; ``window``, ``hop``, ``fft`` in
    samples, the window in the middle of ``fft`` points. ``guard`` is added to a band's power before its logarithm, or
    is the least that it may be ("clamp"). ``padding``: what lies beyond the ends, "constant" (zeros) or "reflect".
    ``extra_frame``: t samples make ``t // hop + 1`` frames, or ``t // hop``. (NeMo's early releases reflect and have
    the extra frame, later ones have zeros and count without.) ``mel_norm``: "slaney" (each band's area is 1) or None
    (its peak is 1). ``mel_corners``: bands end at frequencies in "hz", or at "bins", the next ones below.
    ``periodic``: the window is one period, not symmetric.
    Raises IntqError naming the field that cannot be.
    """

    sample_rate: int
    window: int
    hop: int
    fft: int
    bands: int
    low_hz: float = 0.0
    high_hz: float | None = None
    window_kind: str = "hann"
    periodic: bool = False
    preemphasis: float = 0.97
    guard: float = 2.0**-24
    guard_kind: str = "add"
    normalize: str = "per_feature"
    padding: str = "constant"
    extra_frame: bool = False
    mel_norm: str | None = "slaney"
    mel_scale: str = "slaney"
    mel_corners: str = "hz"
    magnitude_power: float = 2.0

    def __post_init__(self) -> None:
        highest = self.sample_rate / 2
        for name, holds, expected in [
            ("sample_rate", self.sample_rate > 0, "a positive number of samples a second"),
            ("fft", is_fft_size(self.fft), FFT_RULE),
            ("window", 2 < self.window <= self.fft, f"3 to fft = {self.fft} samples"),
            ("hop", self.hop > 0, "a positive number of samples"),
            ("bands", self.bands > 0, "a positive number"),
            ("low_hz", 0 <= self.low_hz < highest, f"a frequency below {highest} Hz"),
            (
                "high_hz",
                self.high_hz is None or self.low_hz < self.high_hz <= highest,
                f"a frequency above low_hz = {self.low_hz} and up to {highest} Hz",
            ),
            ("window_kind", self.window_kind in WINDOWS, f"one of {', '.join(WINDOWS)}"),
            ("preemphasis", 0 <= self.preemphasis <= 1, "a number from 0 to 1"),
            ("guard", 0 < self.guard <= 1, "a positive power of 1 at most"),
            ("guard_kind", self.guard_kind in GUARDS, " or ".join(GUARDS)),
            ("normalize", self.normalize in ("per_feature", "none"), "per_feature or none"),
            ("padding", self.padding in PADDINGS, " or ".join(PADDINGS)),
            ("mel_norm", self.mel_norm in ("slaney", None), "slaney or None"),
            ("mel_scale", self.mel_scale in ("slaney", "htk"), "slaney or htk"),
            ("mel_corners", self.mel_corners in ("hz", "bins"), "hz or bins"),
            ("magnitude_power", self.magnitude_power == 2, "2, the power spectrum"),
        ]:
            if not holds:
                raise IntqError(f"front end: {name} must be {expected}, found {getattr(self, name)!r}")
        empty = np.flatnonzero(_filters(self).sum(1) == 0)
        if len(empty):
            raise IntqError(
                f"front end: bands must leave each band a frequency, but band {empty[0]} of {self.bands} has none; "
                "use fewer bands or a larger fft"
            )

    def frames(self, samples: dims.Dim = "s") -> dims.Dim:
        """How many frames so many samples make: a number, or the size (:mod:`intq.dims`) of a symbolic one."""
        return dims.floor_divided(samples, self.hop * self.extra_frame, self.hop)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> FrontEnd:
        """The front end that :meth:`to_json` wrote. Raises IntqError for other text."""
        try:
            settings = json.loads(text)
        except ValueError as error:
            raise IntqError(f"front end: expected JSON, found {text[:40]!r} ({error})") from None
        known = {field.name for field in fields(FrontEnd)}
        if not isinstance(settings, dict) or not settings.keys() <= known:
            unknown = sorted(settings.keys() - known) if isinstance(settings, dict) else text[:40]
            raise IntqError(f"front end: expected the fields {', '.join(sorted(known))}, found {unknown}")
        try:
            return FrontEnd(**settings)
        except TypeError as error:
            raise IntqError(f"front end: a field is missing or of another type ({error})") from None


def window_of(front: FrontEnd) -> np.ndarray:
    """(fft,) float64: the window, symmetric or periodic, in the middle of zeros."""
    steps = front.window if front.periodic else front.window - 1
    shape = WINDOWS[front.window_kind](np.arange(front.window) / steps)
    before = (front.fft - front.window) // 2
    return np.pad(shape, (before, front.fft - front.window - before))


def mel_filters(front: FrontEnd) -> np.ndarray:
    """(bands, fft / 2 + 1) float64: triangles over frequency whose corners are equally far apart in mel.

    The slaney scale is that of Slaney's Auditory Toolbox (1998): linear up to 1000 Hz, three mel for 200 Hz, then 27
    mel for a factor of 6.4; HTK's is 2595 log10(1 + f / 700). Corners at bins are floor((fft + 1) f / sample_rate),
    and each at least one behind the one before.
    """
    return _filters(front).copy()


@cache
def _filters(front: FrontEnd) -> np.ndarray:
    to_mel, to_hz = (_to_htk, _from_htk) if front.mel_scale == "htk" else (_to_slaney, _from_slaney)
    high = front.sample_rate / 2 if front.high_hz is None else front.high_hz
    corners = to_hz(np.linspace(to_mel(front.low_hz), to_mel(high), front.bands + 2))
    left, middle, right = (corners[i : i + front.bands, None] for i in range(3))
    area = 2 / (right - left)
    frequency = np.arange(front.fft // 2 + 1) * (front.sample_rate / front.fft)
    if front.mel_corners == "bins":
        frequency = np.arange(front.fft // 2 + 1)
        left, middle, right = (np.floor((front.fft + 1) / front.sample_rate * c) for c in (left, middle, right))
        middle = np.maximum(middle, left + 1)
        right = np.maximum(right, middle + 1)
    rise, fall = (frequency - left) / (middle - left), (right - frequency) / (right - middle)
    filters = np.maximum(0, np.minimum(rise, fall))
    return filters * area if front.mel_norm == "slaney" else filters


_KNEE_HZ, _LINEAR, _LOG = 1000.0, 3 / 200, 27 / math.log(6.4)


def _to_slaney(hz):
    return np.where(hz < _KNEE_HZ, hz * _LINEAR, _KNEE_HZ * _LINEAR + np.log(np.maximum(hz, 1e-9) / _KNEE_HZ) * _LOG)


def _from_slaney(mel):
    knee = _KNEE_HZ * _LINEAR
    return np.where(mel < knee, mel / _LINEAR, _KNEE_HZ * np.exp((mel - knee) / _LOG))


def _to_htk(hz):
    return 2595 * np.log10(1 + hz / 700)


def _from_htk(mel):
    return 700 * (10 ** (mel / 2595) - 1)


def log_mel_node_parts(front: FrontEnd, scale: float = LOG_MEL_SCALE) -> tuple[dict, dict, float]:
    """(attributes, constants, scale) of the ``log_mel`` node: int16 samples and lengths -> int16 (n, frames, bands).

    With the usual scale the result reaches from -32 to 32. Raises IntqError for a guard too small for the integers.
    """
    attrs, constants = log_mel_parts(
        window_of(front),
        mel_filters(front),
        front.preemphasis,
        front.guard,
        scale,
        hop=front.hop,
        padding=front.padding,
        extra_frame=front.extra_frame,
        guard_kind=front.guard_kind,
    )
    return attrs, constants, scale


# ---- in real numbers -------------------------------------------------------------------------------------------


@torch.library.custom_op("intq::log_mel", mutates_args=())
def log_mel(samples: Tensor, settings: str, lengths: Tensor | None = None) -> Tensor:
    """Samples (n, t) in [-1, 1) -> logarithms of the bands' powers (n, frames, bands).

    ``settings``: a FrontEnd's JSON; ``lengths`` (n,): how many samples of each row there are, all by default.
    """
    front = FrontEnd.from_json(settings)
    count, half = front.frames(samples.shape[1]), front.fft // 2
    if count == 0 or len(samples) == 0:
        return samples.new_empty((len(samples), count, front.bands))
    window, filters = (torch.from_numpy(a).to(samples) for a in (window_of(front), mel_filters(front)))
    ends = torch.full_like(samples[:, :1], samples.shape[1], dtype=torch.int64)
    if lengths is not None:
        ends = lengths.to(ends)[:, None].clamp(max=samples.shape[1])
    p = torch.cat([samples[:, :1], samples[:, 1:] - front.preemphasis * samples[:, :-1]], 1)
    place = torch.arange(-half, samples.shape[1] + half, device=samples.device).expand(len(samples), -1)
    if front.padding == "reflect":
        place = torch.where(place < 0, -place, torch.where(place >= ends, 2 * (ends - 1) - place, place))
    inside = (place >= 0) & (place < ends)
    padded = torch.where(inside, p.gather(1, torch.where(inside, place, 0)), 0)
    spectrum = torch.fft.rfft(padded.unfold(1, front.fft, front.hop)[:, :count] * window)
    power = torch.view_as_real(spectrum).square().sum(-1) @ filters.T
    power = torch.where(valid_frames(front, ends[:, 0], count)[..., None], power, 0)
    return torch.log(power + front.guard if front.guard_kind == "add" else power.clamp(min=front.guard))


@log_mel.register_fake
def _(samples: Tensor, settings: str, lengths: Tensor | None = None) -> Tensor:
    front = FrontEnd.from_json(settings)
    frames = samples.shape[1] // front.hop + front.extra_frame
    return samples.new_empty((samples.shape[0], frames, front.bands))


@torch.library.custom_op("intq::normalize_frames", mutates_args=())
def normalize_frames(
    x: Tensor, epsilon: float, correction: int, mask: Tensor | None = None, inside: float = 0.0
) -> Tensor:
    """(x - mean) / (sqrt(variance + inside) + epsilon) over the frames of x (n, frames, channels), channel by channel.

    ``mask`` (n, frames), bool: the frames that count, the others become 0; all by default. The sum of squares is
    divided by the number of frames less ``correction``; of a single frame the deviation is 0, and so is the result.
    """
    mask = torch.ones_like(x[..., :1], dtype=torch.bool) if mask is None else mask[..., None]
    count = mask.sum(1, keepdim=True)
    mean = torch.where(mask, x, 0).sum(1, keepdim=True) / count.clamp(min=1)
    apart = torch.where(mask, x - mean, 0)
    variance = apart.square().sum(1, keepdim=True) / (count - correction).clamp(min=1)
    return apart / ((variance + inside).sqrt() + epsilon)


@normalize_frames.register_fake
def _(x: Tensor, epsilon: float, correction: int, mask: Tensor | None = None, inside: float = 0.0) -> Tensor:
    return torch.empty_like(x)


for _operator in (log_mel, normalize_frames):
    differentiable(_operator)


def valid_frames(front: FrontEnd, lengths: Tensor, frames: int) -> Tensor:
    """(n, frames) bool: the frames that rows of so many samples have."""
    own = lengths // front.hop + front.extra_frame
    return torch.arange(frames, device=lengths.device) < own[:, None]


class LogMel(nn.Module):
    """Samples (n, t) in [-1, 1) -> features (n, bands, frames), normalised if the front end says so.

    ``lengths`` (n,): how many samples of each row there are, in training; the features beyond are 0.
    """

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        self.front = front
        self.settings = front.to_json()

    def frames(self, samples):
        """How many frames so many samples make, a number or a tensor of them."""
        return (samples + self.front.hop * self.front.extra_frame) // self.front.hop

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = torch.ops.intq.log_mel(samples, self.settings, lengths)
        mask = None if lengths is None else valid_frames(self.front, lengths, x.shape[1])
        if self.front.normalize == "per_feature":
            x = torch.ops.intq.normalize_frames(x, STD_EPSILON, 1, mask)
        elif mask is not None:
            x = torch.where(mask[..., None], x, 0)
        return x.transpose(1, 2)
