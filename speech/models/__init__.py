"""The speech networks by name, as published: what `--random` builds at full size.

A network is a table: a front end's settings, an encoder's, and a head. To add one, add a line to ARCHITECTURES.
"""

from __future__ import annotations

from dataclasses import dataclass

from intq.errors import IntqError
from intq.frontend import FrontEnd
from intq.speech.models.conformer import ConformerEncoder, ConformerSettings
from intq.speech.models.convolutional import BlockSettings, ConvEncoder
from intq.speech.models.heads import HEADS, Head
from intq.speech.models.network import SpeechModel

LETTERS = (" ", *"abcdefghijklmnopqrstuvwxyz", "'")
VOICE = ("background", "speech")
# Speech Commands, version 2 (Warden, 2018), in NeMo's order.
_WORDS = """visual wow learn backward dog two left happy nine go up bed stop one zero tree seven on four bird right
eight no six forward house marvin sheila five off three down cat follow yes"""
COMMANDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Architecture:
    """A network by name, without weights.

    encoder: the settings of its encoder; cepstra: how many it takes in place of the front end's bands, if it does;
    labels: without CTC's blank.
    """

    name: str
    front: FrontEnd
    encoder: tuple[BlockSettings, ...] | ConformerSettings
    head: Head
    labels: tuple[str, ...]
    cepstra: int | None = None

    def build(self) -> SpeechModel:
        """The network, untrained."""
        settings = self.encoder
        conformer = isinstance(settings, ConformerSettings)
        encoder = ConformerEncoder(settings) if conformer else ConvEncoder(self.cepstra or self.front.bands, settings)
        return SpeechModel(self.front, encoder, HEADS[self.head](encoder.channels, len(self.labels)), self.cepstra)


def _front(window_ms: int, bands: int, normalize: str) -> FrontEnd:
    """At 16 kHz, one window every 10 ms."""
    rate = 16000
    return FrontEnd(rate, rate * window_ms // 1000, rate // 100, 512, bands, normalize=normalize)


# The spectrum behind NeMo's cepstral coefficients, which it leaves to torchaudio.
CEPSTRAL = FrontEnd(
    16000,
    400,
    160,
    512,
    64,
    periodic=True,
    preemphasis=0.0,
    guard=1e-6,
    normalize="none",
    padding="reflect",
    extra_frame=True,
    mel_norm=None,
    mel_scale="htk",
)

_QUARTZNET = ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))  # (filters, kernel) of each kind of block
_JASPER = ((256, 11, 0.2), (384, 13, 0.2), (512, 17, 0.2), (640, 21, 0.3), (768, 25, 0.3))  # and its dropout


def quartznet(times: int, repeat: int = 5) -> tuple[BlockSettings, ...]:
    """QuartzNet (5 * times) x repeat: 6.7, 12.8 and 18.9 million weights at times = 1, 2, 3 (the paper's table 1)."""
    middle = [
        BlockSettings(filters, kernel, repeat, residual=True, separable=True)
        for filters, kernel in _QUARTZNET
        for _ in range(times)
    ]
    return (
        BlockSettings(256, 33, stride=2, separable=True),
        *middle,
        BlockSettings(512, 87, dilation=2, separable=True),
        BlockSettings(1024, 1),
    )


def jasper(times: int, repeat: int = 5) -> tuple[BlockSettings, ...]:
    """Jasper DR (5 * times) x repeat: 333 million weights at times = 2 (the paper's tables 1 and 4)."""
    middle = [
        BlockSettings(filters, kernel, repeat, dropout=dropout, residual=True, residual_dense=True)
        for filters, kernel, dropout in _JASPER
        for _ in range(times)
    ]
    return (
        BlockSettings(256, 11, stride=2, dropout=0.2),
        *middle,
        BlockSettings(896, 29, dilation=2, dropout=0.4),
        BlockSettings(1024, 1, dropout=0.4),
    )


def matchboxnet(repeat: int, stride: int = 1, filters: int = 64) -> tuple[BlockSettings, ...]:
    """MatchboxNet 3 x repeat x filters; MarbleNet is the same table."""
    middle = [BlockSettings(filters, kernel, repeat, residual=True, separable=True) for kernel in (13, 15, 17)]
    return (
        BlockSettings(128, 11, stride=stride, separable=True),
        *middle,
        BlockSettings(128, 29, dilation=2, separable=True),
        BlockSettings(128, 1),
    )


ARCHITECTURES = {
    item.name: item
    for item in (
        *(
            Architecture(f"quartznet{5 * times}x5", _front(20, 64, "per_feature"), quartznet(times), "ctc", LETTERS)
            for times in (1, 2, 3)
        ),
        Architecture("jasper10x5", _front(20, 64, "per_feature"), jasper(2), "ctc", LETTERS),
        # A decision every 20 ms, from 80 bands as they are.
        Architecture("marblenet", _front(25, 80, "none"), matchboxnet(2, stride=2), "frames", VOICE),
        Architecture("matchboxnet", CEPSTRAL, matchboxnet(1), "classification", COMMANDS, cepstra=64),
        Architecture(
            "conformer-ctc-small",  # 13 million weights
            _front(25, 80, "per_feature"),
            ConformerSettings(80, channels=176, layers=16, heads=4),
            "ctc",
            LETTERS,
        ),
        Architecture(
            "hama",  # 1.9 million weights: phonemes of many languages (intq.speech.packages has its weights and labels)
            FrontEnd(
                16000,
                400,
                160,
                400,
                80,
                low_hz=40.0,
                high_hz=7600.0,
                periodic=True,
                preemphasis=0.0,
                guard=1e-10,
                guard_kind="clamp",
                normalize="none",
                padding="reflect",
                mel_corners="bins",
                extra_frame=True,
            ),
            ConformerSettings(80, 144, 4, 4, subsampling="conv1d", factor=2, positions=False, scaled=False),
            "ctc",
            tuple(map(str, range(190))),
        ),
    )
}


def architecture(name: str) -> Architecture:
    """The architecture called `name`; IntqError when there is none."""
    if name not in ARCHITECTURES:
        raise IntqError(f"no architecture is called {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
