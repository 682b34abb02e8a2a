"""Checkpoints: a trained speech network with its front end's settings, its labels and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from intq.errors import IntqError
from intq.frontend import FrontEnd
from intq.pretrained import fill
from intq.speech import assets, huggingface, nemo, sections
from intq.speech.labels import Labels, characters, sentencepiece
from intq.speech.models import ARCHITECTURES, architecture
from intq.speech.models.conformer import ConformerEncoder
from intq.speech.models.heads import Head
from intq.speech.models.network import SpeechModel
from intq.speech.packages import PACKAGED, Offset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A trained speech network in evaluation mode, with all that its audio input and its answer need.

    model: float32 samples (n, t) in [-1, 1) to logits: of head "ctc" (n, frames, labels + 1), of "frames" (n, frames,
        labels), of "classification" (n, labels). It has `rate`, `seconds` and `frames` as
        :class:`intq.speech.models.network.SpeechModel` has. labels: the name of each, without CTC's blank.
    front: its front end's settings, None where the network reads samples as they are. name: for people; source: the
        absolute path or a hub id, "" for random weights.
    tokenizer: the file of a SentencePiece model whose pieces the labels are, or None. spelled: what the labels spell
        and which is the blank, where that is neither characters nor pieces with the blank behind them.
    """

    model: nn.Module
    name: str
    source: str
    front: FrontEnd | None
    labels: tuple[str, ...]
    head: Head
    tokenizer: bytes | None = None
    spelled: Labels | None = None

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.model.rate

    @property
    def attends(self) -> bool:
        """Whether it is a Conformer: attention behind a front end."""
        return self.front is not None and isinstance(self.model.encoder, ConformerEncoder)

    @property
    def longest(self) -> int:
        """Samples of a recording that go through the network at a time."""
        return round(self.model.seconds * self.model.rate)

    def spelling(self) -> Labels:
        """What a CTC network's labels spell."""
        if self.spelled is not None:
            return self.spelled
        return sentencepiece(self.tokenizer) if self.tokenizer else characters(self.labels)


def load(source: str | Path) -> Checkpoint:
    """The network in `source`.

    source: a `.nemo` archive, a folder of its files, weights with their YAML of the same name beside them, the name of
    weights that a package ships ("marblenet", "hama"), a folder written by save_pretrained, or a hub id.

    Raises IntqError when it is none of them, is unsafe or damaged, describes another kind of model, or has weights that
    are missing, left over, of another shape, NaN or infinite.
    """
    path = Path(source).expanduser()
    if not path.exists() and str(source) in PACKAGED:
        return _packaged(str(source))
    if huggingface.is_checkpoint(str(source)):
        return of_samples(*huggingface.load(str(source)))
    if not path.exists():
        if str(source) in ARCHITECTURES or str(source) in huggingface.ARCHITECTURES:
            raise IntqError(
                f"{source} is an architecture without weights here: give a checkpoint, or --random for random weights"
            )
        raise IntqError(f"there is no file or folder {source}: expected a .nemo checkpoint or one of Hugging Face")
    path = path.resolve()
    found = nemo.read(path)
    try:
        front, cepstra = sections.front_end(found.config)
        encoder = sections.encoder(found.config["encoder"])
        head, decoder, labels = sections.head(found.config, encoder.channels, found.tokenizer)
    except IntqError as error:
        raise IntqError(f"{source}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # settings of the wrong types
        raise IntqError(f"{source}: its configuration is not as NeMo writes it ({error!r})") from error
    features = cepstra or front.bands
    if features != encoder.bands:
        raise IntqError(f"{source}: the front end gives {features} features, the encoder takes {encoder.bands}")
    if found.config["crop_or_pad_augment"]:
        log.warning("%s: NeMo cuts or fills every recording to one length; here it is taken as it is", source)
    model = SpeechModel(front, encoder, decoder, cepstra)
    _fill(model, found.state, str(source))
    return Checkpoint(model, path.stem, str(path), front, labels, head, found.tokenizer)


def of_samples(model: huggingface.FromSamples, labels: Labels, name: str, source: str) -> Checkpoint:
    """A CTC network of Hugging Face as a checkpoint."""
    names = tuple(text or f"<{index}>" for index, text in enumerate(labels.texts) if index != labels.blank)
    return Checkpoint(model, name, source, None, names, "ctc", spelled=labels)


def _packaged(name: str) -> Checkpoint:
    path = assets.asset(name)
    found = PACKAGED[name](path)
    known = replace(architecture(name), front=found.front, labels=found.labels)
    model = known.build()
    for place, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm1d) and f"{place}.running_mean" not in found.state:
            model.set_submodule(place, Offset(module.num_features))
    _fill(model, found.state, name)
    return Checkpoint(model, name, str(path), known.front, known.labels, known.head)


def _fill(model: SpeechModel, state: Mapping[str, Tensor], source: str) -> None:
    """The weights of encoder and head; the front end has none, and the cosines of cepstral coefficients are known."""
    fixed = {key: value for key, value in model.state_dict().items() if not key.startswith(nemo.NETWORK)}
    fill(model, {**state, **fixed}, source, type(model.encoder).__name__)
