"""The registry of integer operations. To add one: write it in the file of its kind and list it there in ``OPS``."""

from __future__ import annotations

from intq.ops import attention, contract, embedding, frames, log_mel, move, pointwise, rows
from intq.ops.op import LOOPS, Op, Sample

OPS: dict[str, Op] = {
    op.name: op
    for module in (contract, pointwise, rows, embedding, attention, log_mel, frames, move)
    for op in module.OPS
}

__all__ = ["LOOPS", "OPS", "Op", "Sample"]
