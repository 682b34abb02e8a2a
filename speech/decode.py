"""From a CTC network's scores to text: the best label of each frame, or a search with a language model.

Greedy decoding computes with integers and is part of what intq promises. The search does not: it is a choice made
after the network has answered, in floating point, by a library of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from intq.errors import IntqError
from intq.speech.labels import Labels

Decode = Callable[[np.ndarray], str]  # scores int32 (frames, labels) of one recording -> its transcript


def best_labels(scores: np.ndarray, blank: int) -> np.ndarray:
    """The labels of the best path (Graves et al., 2006): each frame's best, equal neighbours merged, blanks dropped.

    scores: integers (frames, labels) of one recording. Of equal scores the lowest label is the best. int64 (m,).
    """
    best = scores.argmax(axis=-1)
    first = np.ones(len(best), bool)
    first[1:] = best[1:] != best[:-1]
    return best[first & (best != blank)]


def greedy(scores: np.ndarray, labels: Labels) -> str:
    """The transcript that the best path spells. scores: integers (frames, labels)."""
    _check(scores, labels)
    return labels.text(best_labels(scores, labels.blank).tolist())


def beam_search(
    labels: Labels,
    scale: float,
    language_model: Path | None = None,
    width: int = 100,
    alpha: float = 0.5,
    beta: float = 1.5,
) -> Decode:
    """A decoder that searches the `width` best prefixes, weighed by an n-gram language model (Hannun et al., 2014).

        log P(labels | scores) + alpha * log P(words) + beta * (number of words)

    language_model: of KenLM, an ARPA or binary file over words spelled as the labels spell them; None searches without.
    scale: a score's real value; log P is the log-softmax of scale * scores, in floating point. What comes out depends
    on the library's version, not on the integer network alone.

    The library is ctc-beam-decoder, which does what pyctcdecode does: that one's last release refuses NumPy 2. Raises
    IntqError when it is not installed, for a missing language model, and for labels that it cannot search.
    """
    try:
        from ctc_beam_decoder import build_ctcdecoder
    except ModuleNotFoundError:
        raise IntqError(
            "searching with a language model needs ctc-beam-decoder, which is not installed: pip install 'intq[beam]'"
        ) from None
    if language_model is not None and not Path(language_model).is_file():
        raise IntqError(f"there is no language model {language_model}: expected a KenLM file (arpa or binary)")
    kept = [i for i, text in enumerate(labels.texts) if text or i == labels.blank]  # special tokens are not searched
    texts = [labels.texts[i] for i in kept]
    if any("\udc80" <= c <= "\udcff" for text in texts for c in text):
        raise IntqError("labels that spell single bytes cannot be searched: decode without a language model")
    pieces = any(len(text) > 1 and text.startswith(" ") for text in texts)
    spelled = [text.replace(" ", "\u2581") if pieces else text for text in texts]
    path = None if language_model is None else str(language_model)
    decoder = build_ctcdecoder(spelled, kenlm_model_path=path, alpha=alpha, beta=beta)

    def decode(scores: np.ndarray) -> str:
        _check(scores, labels)
        real = scale * scores[:, kept].astype(np.float64)
        real -= real.max(axis=1, keepdims=True)
        real -= np.log(np.exp(real).sum(axis=1, keepdims=True))
        return " ".join(decoder.decode(real, beam_width=width).split())

    return decode


def _check(scores: np.ndarray, labels: Labels) -> None:
    if scores.ndim != 2 or scores.shape[1] != len(labels):
        raise IntqError(
            f"the network's answer has the shape {scores.shape}, but it has {len(labels)} labels: expected "
            f"(frames, {len(labels)})"
        )
