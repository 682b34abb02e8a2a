"""Checkpoints: a trained speech network with its front end's settings, its labels and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from intq.errors import IntqError
from intq.pretrained import fill
from intq.speech import nemo
from intq.speech.labels import Labels, characters, sentencepiece
from intq.speech.models import ARCHITECTURES
from intq.speech.models.heads import Head
from intq.speech.models.network import SpeechModel

if TYPE_CHECKING:
    from intq.frontend import FrontEnd


@dataclass(frozen=True)
class Checkpoint:
    """A trained speech network in evaluation mode, with all that its audio input and its answer need.

    model: float32 samples (n, t) in [-1, 1) to logits: of head "ctc" (n, frames, labels + 1) with the blank last, of
        "frames" (n, frames, labels), of "classification" (n, labels). labels: the name of each, without the blank.
    front: its front end's settings. name: for people; source: the absolute path, "" for random weights.
    sample_rate: in Hz. tokenizer: the file of a SentencePiece model whose pieces the labels are, or None.
    """

    model: nn.Module
    name: str
    source: str
    front: FrontEnd
    labels: tuple[str, ...]
    head: Head
    sample_rate: int
    tokenizer: bytes | None = None

    def spelling(self) -> Labels:
        """What a CTC network's labels spell."""
        return sentencepiece(self.tokenizer) if self.tokenizer else characters(self.labels)


def load(source: str | Path) -> Checkpoint:
    """The network in `source`: a `.nemo` archive, a folder of its files, or weights with their YAML of the same name.

    Raises IntqError when it is none of them, is unsafe or damaged, describes another kind of model, or has weights that
    are missing, left over, of another shape, NaN or infinite.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if str(source) in ARCHITECTURES:
            raise IntqError(
                f"{source} is an architecture without weights here: give a checkpoint, or --random for random weights"
            )
        raise IntqError(f"there is no file or folder {source}: expected a .nemo checkpoint")
    path = path.resolve()
    found = nemo.read(path)
    try:
        settings = nemo.front_settings(
            found.config["preprocessor"], found.config["sample_rate"], found.config["nemo_version"]
        )
        encoder = nemo.encoder(found.config["encoder"])
        head, decoder, labels = nemo.head(found.config, encoder.channels, found.tokenizer)
    except IntqError as error:
        raise IntqError(f"{source}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # settings of the wrong types
        raise IntqError(f"{source}: its configuration is not as NeMo writes it ({error!r})") from error
    if settings["bands"] != encoder.bands:
        raise IntqError(f"{source}: the front end has {settings['bands']} bands, the encoder takes {encoder.bands}")
    weights = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    fill(weights, found.state, str(source), found.config["encoder"].get("_target_", "the encoder").rpartition(".")[2])
    return checkpoint(path.stem, str(path), settings, encoder, head, decoder, labels, found.tokenizer)


def checkpoint(
    name: str,
    source: str,
    settings: Mapping[str, Any],
    encoder: nn.Module,
    head: Head,
    decoder: nn.Module,
    labels: tuple[str, ...],
    tokenizer: bytes | None = None,
) -> Checkpoint:
    """Encoder and head behind the front end with these settings (keyword arguments), as one checkpoint."""
    front, features = front_end(settings)
    model = SpeechModel(features, encoder, decoder).eval().requires_grad_(False)
    return Checkpoint(model, name, source, front, labels, head, front.sample_rate, tokenizer)


def front_end(settings: Mapping[str, Any]) -> tuple[FrontEnd, nn.Module]:
    """The settings from their keyword arguments, and the module that computes by them."""
    from intq.frontend import FrontEnd, LogMel

    front = FrontEnd(**settings)
    return front, LogMel(front)
