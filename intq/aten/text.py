"""Transformers: embeddings, LayerNorm, attention, the mean over tokens; and what token ids alone determine.

Mask, positions and segments are integers computed from the ids. They are not taken operation by operation: capture
keeps them as :class:`Derived` and here it is found out, by trying sample ids, which of the few known forms they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from intq.aten.build import Unsupported, parameter, takes

SAMPLE_ROWS, SAMPLE_TOKENS = 5, 7
SAMPLE_RECORDINGS = (2**14, 20001)  # samples


@dataclass(frozen=True)
class Derived:
    """A tensor that the token ids alone determine: ``of(ids)``, ids int64 (n, tokens); or the number of samples alone:
    ``of(samples)``, samples (n, t)."""

    of: Callable[[Tensor], Tensor]


def _samples(build, *special: int) -> Tensor:
    """Random ids with the special ones among them, the last token of a row too."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, build.vocabulary, (SAMPLE_ROWS, SAMPLE_TOKENS), generator=generator)
    for i, value in enumerate(special):
        ids[i % SAMPLE_ROWS, i % SAMPLE_TOKENS] = value
        ids[(i + 1) % SAMPLE_ROWS, SAMPLE_TOKENS - 2 :] = value
    return ids


def _kept(mask: Tensor) -> Tensor:
    """Which keys a mask keeps: True, or 0 where it is added to the scores."""
    return mask if mask.dtype == torch.bool else mask == 0


def padding_of(build, mask: Derived, kept: Callable[[Tensor], Tensor] = _kept) -> int | None:
    """The id that a mask (n, ..., tokens) leaves out; None when it keeps all."""
    whole = torch.arange(build.vocabulary)[None]
    keeps = kept(mask.of(whole))
    if keeps.numel() != build.vocabulary:
        raise Unsupported(f"a mask of shape {tuple(keeps.shape)} for one sentence; only one value a key is taken")
    left_out = (~keeps.flatten()).nonzero().flatten().tolist()
    if len(left_out) > 1:
        raise Unsupported(f"the mask leaves out {len(left_out)} different tokens; only the padding's id may be")
    if left_out:
        ids = _samples(build, left_out[0])
        if not torch.equal(kept(mask.of(ids)).reshape(ids.shape), ids != left_out[0]):
            raise Unsupported("the mask depends on more than where the padding is; only key padding is taken")
    return left_out[0] if left_out else None


def mask_of(build, padding: int) -> str:
    """The value that is 1 where a token is not ``padding``."""
    if padding not in build.masks:
        build.masks[padding] = build.emit("mask", build.ids, shape=build.shapes[build.ids], padding=padding)
    return build.masks[padding]


def _counted(ids: Tensor, padding: int) -> Tensor:
    token = (ids != padding).long()
    return padding + token.cumsum(1) * token


def _segments(ids: Tensor, separator: int) -> Tensor:
    ends = (ids == separator).long()
    return ends.cumsum(1) - ends


def _rows(build, indices: Derived, count: int) -> dict:
    """What rows of a table of ``count`` the tokens take, as attributes of an embedding."""

    def agrees(expected: Callable[[Tensor], Tensor], *special: int) -> bool:
        ids = _samples(build, *special)
        found = indices.of(ids)
        return torch.equal(found.expand(ids.shape), expected(ids).expand(ids.shape))

    behind = _behind(build, indices)
    if not behind and agrees(torch.zeros_like):
        return {"segments": 1}
    if len(behind) == 1 and agrees(lambda ids: _segments(ids, behind[0]).clamp(max=count - 1), behind[0]):
        return {"segments": count, "separator": behind[0]}
    if agrees(lambda ids: torch.arange(ids.shape[1])[None]):
        return {"positions": "index"}
    for padding in range(min(16, build.vocabulary)):
        if agrees(lambda ids, p=padding: _counted(ids, p), padding):
            return {"positions": "counted", "padding": padding}
    raise Unsupported(
        "positions and segments must follow from the token ids: 0, 1, 2, ..., or counted from the padding's id, "
        "or the number of separators before a token"
    )


def _behind(build, indices: Derived) -> list[int]:
    """The tokens behind which a token takes another row than the first."""
    first = torch.arange(build.vocabulary)
    found = indices.of(torch.stack([first, torch.zeros_like(first)], 1))
    return found.expand(-1, 2)[:, 1].nonzero().flatten().tolist()


@takes("embedding")
def _embedding(build, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    table = parameter(weight, "weight")
    shape = (*build.shapes[build.ids], table.shape[1]) if build.ids else None
    if indices == build.ids:
        return build.emit("embedding", build.ids, shape=shape, parameters={"word": table})
    if not isinstance(indices, Derived):
        raise Unsupported("its indices must be the token ids or follow from them")
    attrs = _rows(build, indices, len(table))
    if "positions" in attrs:
        return build.emit("embedding", build.ids, shape=shape, parameters={"position": table}, **attrs)
    table = table[: attrs.pop("segments")]
    return build.emit("embedding", build.ids, shape=shape, parameters={"segment": table}, **attrs)


@takes("layer_norm")
def _layer_norm(build, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=False):
    size = build.shapes[input][-1]
    if list(normalized_shape) != [size]:
        raise Unsupported(f"only the last axis, {size}, may be normalised, got {list(normalized_shape)}")
    parameters = {
        "weight": torch.ones(size) if weight is None else parameter(weight, "weight"),
        "bias": torch.zeros(size) if bias is None else parameter(bias, "bias"),
    }
    return build.emit("layer_norm", input, parameters=parameters, epsilon=float(eps))


@takes("scaled_dot_product_attention")
def _attention(build, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if is_causal or enable_gqa or dropout_p:
        raise Unsupported("causal masks, grouped queries and dropout are not taken; only an encoder's attention is")
    shape = build.shapes[query]
    if len(shape) != 4 or not shape == build.shapes[key] == build.shapes[value]:
        raise Unsupported(f"q, k and v must have one shape (batch, head, token, channel), got {shape}")
    inputs, attrs = [query, key, value], {}
    if isinstance(attn_mask, str) and build.nodes[attn_mask].op == "relative":
        inputs, attrs = [*inputs, attn_mask], {"biased": True}
    elif isinstance(attn_mask, Derived) and build.recordings:
        _expect_all(attn_mask)
    elif isinstance(attn_mask, Derived):
        padding = padding_of(build, attn_mask)
        inputs += [] if padding is None else [mask_of(build, padding)]
    elif isinstance(attn_mask, Tensor):
        if not _kept(attn_mask).all():
            raise Unsupported("a constant mask that leaves keys out is not taken")
    elif attn_mask is not None:
        raise Unsupported(
            "a mask or bias computed from the values is not taken, but for intq.operators' relative_scores"
        )
    scale = shape[-1] ** -0.5 if scale is None else float(scale)
    return build.emit("attention", *inputs, scale=scale, heads=shape[1], **attrs)


def _expect_all(mask: Derived) -> None:
    """Of recordings the integer network knows which frames each has: the float network must keep all."""
    if not all(_kept(mask.of(torch.zeros(2, samples))).all() for samples in SAMPLE_RECORDINGS):
        raise Unsupported("a mask that leaves frames out is not taken; call the network without lengths")


@takes("relative_scores")
def _relative_scores(build, q, table, scale):
    return build.emit("relative", q, scale=float(scale), parameters={"table": parameter(table, "table")})


def masked(build, x: str, mask: Derived) -> str:
    """x * mask, of (n, tokens, channels) and (n, tokens, 1): the first step of a mean over tokens."""
    padding = padding_of(build, mask, lambda m: m != 0)
    if len(build.shapes[x]) != 3 or padding is None:
        raise Unsupported("a product with what the ids determine must be with the padding's mask, (n, tokens, 1)")
    return build.emit("masked", x, mask_of(build, padding), shape=build.shapes[x])


def token_sum(build, x: str) -> str:
    """The sum over tokens of :func:`masked`: what a division by the mask's own sum makes a mean."""
    node = build.nodes.get(x)
    if node is None or node.op != "masked":
        raise Unsupported("a sum over tokens is taken of x * mask alone, as part of their mean")
    n, _, channels = node.shape
    return build.emit("token_sum", *node.inputs, shape=(n, channels))


def token_mean(build, total: str, count: Derived) -> str:
    """:func:`token_sum` divided by the number of tokens."""
    node = build.nodes.get(total)
    if node is not None and node.op == "token_sum":
        padding = build.nodes[node.inputs[1]].attrs["padding"]
        ids = _samples(build, padding)
        ids[:, 0] = (padding + 1) % build.vocabulary
        if torch.equal(count.of(ids).reshape(-1).double(), (ids != padding).sum(1).double()):
            return build.emit("mean_tokens", *node.inputs, shape=node.shape)
    raise Unsupported("a division by what the ids determine must be that of a sum over tokens by their number")
