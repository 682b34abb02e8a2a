"""From token ids to vectors: the sum of a word's, its position's and its segment's row.

    y[n, s] = scale_w[id] * word[id] + position[p(n, s)] + segment[g(n, s)]        (Devlin et al. 2019, figure 2)

Positions and segments are integers that the ids alone determine:

    p = s                                                                     positions "index"
    p = padding + k for the k-th token (1, 2, ...) that is not padding, else padding      positions "counted" (RoBERTa)
    g = min(segments - 1, separators strictly before the token)
"""

from __future__ import annotations

import numpy as np

from intq.fixedpoint import rescale
from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.value import Shape, Value

POSITIONS = ("index", "counted")
NO_TOKEN = -1  # as ``separator``: every token is in the first segment


def _embedding(L, operands, constants: Constants, attrs: Attrs):
    """Rows of the tables, and the multiplier of the word's row, summed with one rounding."""
    word, word_multiplier, position, segment = operands
    terms = [
        (word, word_multiplier),
        (position, constants["position_multiplier"]),
        (segment, constants["segment_multiplier"]),
    ]
    return rescale(L, terms, constants["offset"], constants["shift"], attrs["low"], attrs["high"])


def first_position(attrs: Attrs) -> int:
    """The position of the first token of a sentence."""
    return attrs["padding"] + 1 if attrs["positions"] == "counted" else 0


def _shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    expect(len(inputs) == 1, f"takes the token ids, got {len(inputs)} inputs")
    (ids,) = inputs
    expect(len(ids.shape) == 2 and ids.dtype == "int32", f"token ids must be int32 (n, tokens), got {ids}")
    expect(attrs["positions"] in POSITIONS, f"positions must be one of {', '.join(POSITIONS)}")
    word, position = constants["word"], constants["position"]
    channels = word.shape[-1]
    for name in ("word", "position", "segment"):
        found = constants[name].shape
        expect(len(found) == 2 and found[1] == channels, f"{name} must be a table of {channels} columns, got {found}")
        expect(found[0] > 0, f"{name} must have a row at least")
    expect(constants["word_multiplier"].shape == word.shape[:1], "word_multiplier must hold one value per word")
    expect(ids.low >= 0 and ids.high < len(word), f"ids in [{ids.low}, {ids.high}], but {len(word)} words")
    tokens = ids.shape[1] if isinstance(ids.shape[1], int) else ids.longest
    room = len(position) - first_position(attrs)
    expect(0 < tokens <= room, f"there are positions for {room} tokens, the input may have {tokens}")
    return (*ids.shape, channels)


def _samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for positions, segments, separator, channels in [("counted", 1, NO_TOKEN, 48), ("index", 2, 3, 37)]:
        shift = 30
        constants = {
            "word": rng.integers(-127, 128, (50, channels)).astype(np.int8),
            "word_multiplier": rng.integers(2**33 // 32, 2**31, 50).astype(np.int32),
            "position": rng.integers(-3000, 3000, (40, channels)).astype(np.int16),
            "position_multiplier": rng.integers(2**30, 2**31, ()).astype(np.int32),
            "segment": rng.integers(-3000, 3000, (segments, channels)).astype(np.int16),
            "segment_multiplier": rng.integers(2**30, 2**31, ()).astype(np.int32),
            "offset": np.int64(1 << (shift - 1)).reshape(()),
            "shift": np.int32(shift).reshape(()),
        }
        attrs = {"positions": positions, "padding": 1, "separator": separator, "low": -(2**15), "high": 2**15 - 1}
        ids = Value("ids", ("n", "s"), "int32", 0, 49, longest=38)
        samples.append(Sample((ids,), attrs, constants, "int16"))
    return samples


OPS = (
    Op(
        "embedding",
        "embedding",
        _embedding,
        _shape,
        _samples,
        attrs=frozenset({"positions", "padding", "separator", "low", "high"}),
        constants=frozenset(
            {
                "word",
                "word_multiplier",
                "position",
                "position_multiplier",
                "segment",
                "segment_multiplier",
                "offset",
                "shift",
            }
        ),
    ),
)
