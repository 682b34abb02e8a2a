"""What the labels of a CTC network spell: characters, pieces of words (SentencePiece), Hugging Face's with a "|".

A vocabulary is the text that each label adds to a transcript; the blank's and those of special tokens are empty. So
the transcript is the texts of the labels, one after the other, and what a vocabulary was read from is forgotten.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intq.errors import IntqError
from intq.pretrained import first_line

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE = "\u2581"  # SentencePiece writes a space so
DELIMITER = "|"  # and Hugging Face's CTC tokenizers so


@dataclass(frozen=True)
class Labels:
    """texts: what each label spells, " " between words. blank: the index of CTC's "nothing new" (Graves et al., 2006).

    A byte that is no character by itself is a surrogate, as Python's "surrogateescape" has it: a character may be
    spelled by several labels.
    """

    texts: tuple[str, ...]
    blank: int

    def __post_init__(self) -> None:
        if not 0 <= self.blank < len(self.texts):
            raise IntqError(
                f"the blank is label {self.blank}, but the network has {len(self.texts)} labels (0 to "
                f"{len(self.texts) - 1})"
            )
        if self.texts[self.blank]:
            raise IntqError(f"the blank, label {self.blank}, spells {self.texts[self.blank]!r}: expected nothing")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def alphabet(self) -> frozenset[str]:
        """The characters that transcripts can hold, but for the space."""
        return frozenset("".join(self.texts)) - {" "}

    def text(self, labels: Sequence[int]) -> str:
        """The transcript that labels spell (those that `intq.speech.decode` finds), one space between words."""
        spelled = "".join(self.texts[label] for label in labels)
        whole = spelled.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return " ".join(whole.split())

    def spelled(self, text: str) -> list[int]:
        """Labels that spell a transcript, the longest that fits first; what none spells is left out."""
        pieces = {piece: label for label, piece in reversed(list(enumerate(self.texts))) if piece}
        longest = max(map(len, pieces))
        left = f" {text}" if any(piece[0] == " " and len(piece) > 1 for piece in pieces) else text
        found = []
        while left:
            size = next((n for n in range(min(longest, len(left)), 0, -1) if left[:n] in pieces), 0)
            if size:
                found.append(pieces[left[:size]])
            left = left[max(size, 1) :]
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"texts": list(self.texts), "blank": self.blank}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Labels:
        return Labels(tuple(value["texts"]), value["blank"])


def characters(alphabet: Sequence[str], blank: int | None = None) -> Labels:
    """NeMo's list of characters, " " among them; the blank comes behind them unless it is said to be one of them."""
    return _with_blank(list(alphabet), blank)


def sentencepiece(model: bytes, blank: int | None = None) -> Labels:
    """The pieces of a SentencePiece model, given by its file's content; the blank comes behind them.

    Raises IntqError for what is no such model.
    """
    processor, texts = _processor(model), []
    for index in range(processor.get_piece_size()):
        piece = processor.id_to_piece(index)
        if processor.is_control(index) or processor.is_unused(index):
            texts.append("")
        elif processor.is_unknown(index):
            texts.append(processor.decode([index]))  # " ⁇ ", or what the model was trained to write
        elif processor.is_byte(index):
            texts.append(bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape"))  # <0x41>
        else:
            texts.append(piece.replace(SPACE, " "))
    return _with_blank(texts, blank)


def piece_names(model: bytes) -> list[str]:
    """The pieces of a SentencePiece model as it calls them, in the order of their ids. Raises as `sentencepiece`."""
    processor = _processor(model)
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _processor(model: bytes) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, TypeError) as error:
        raise IntqError(f"the tokenizer is no SentencePiece model ({first_line(error)})") from None
    return processor


def hugging_face(
    vocabulary: Mapping[str, int],
    pad: str = "<pad>",
    special: Sequence[str] = ("<s>", "</s>", "<unk>"),
    delimiter: str = DELIMITER,
    lower: bool = False,
) -> Labels:
    """The vocabulary of a Wav2Vec2CTCTokenizer, {token: label}: `pad` is the blank, other special tokens spell nothing.

    lower: as the tokenizer's do_lower_case. Raises IntqError when the labels are not 0, 1, 2, ... or there is no `pad`.
    """
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise IntqError(f"the vocabulary's {len(tokens)} labels are not the numbers 0 to {len(tokens) - 1}")
    if pad not in vocabulary:
        raise IntqError(f"the vocabulary has no {pad!r}, which is CTC's blank; it has {_some(tokens)}")
    silent = {pad, *special}
    texts = ["" if token in silent else " " if token == delimiter else token for token in tokens]
    return Labels(tuple(text.lower() if lower else text for text in texts), vocabulary[pad])


def normalized(text: str) -> str:
    """A transcript as LibriSpeech writes them, in lower case: letters, digits and apostrophes, one space between words.

    Everything else ends a word: "Well-known, isn’t it?" is "well known isn't it".
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    kept = (c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return " ".join("".join(kept).split())


def _with_blank(texts: list[str], blank: int | None) -> Labels:
    if blank is None or blank == len(texts):
        return Labels((*texts, ""), len(texts))
    if not 0 <= blank < len(texts):
        raise IntqError(f"the blank is label {blank}, but the vocabulary has labels 0 to {len(texts) - 1}")
    return Labels((*texts[:blank], "", *texts[blank + 1 :]), blank)


def _some(tokens: Sequence[str]) -> str:
    return ", ".join(map(repr, tokens[:8])) + (", ..." if len(tokens) > 8 else "")
