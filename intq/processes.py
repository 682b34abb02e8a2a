"""Several processes that share a computation: each takes its part.

They are started by `accelerate launch`, or by `torchrun` (on CPUs, of which `accelerate launch` starts one process).
Without a launcher there is one process, and neither accelerate nor torch.distributed is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from intq.errors import IntqError

T = TypeVar("T")


def state():
    """accelerate's PartialState, which joins the processes at the first call; None for a process that is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError:
        raise IntqError("several processes need the package accelerate: pip install 'intq[accelerate]'") from None
    # without this word, processes on CPUs are joined and yet each is told that it is alone
    joined = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    return joined if joined.num_processes > 1 else None


def place() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    joined = state()
    return (0, 1) if joined is None else (joined.process_index, joined.num_processes)


@contextmanager
def first_does():
    """A block that processes pass after the first one: what this makes is there for the others."""
    joined = state()
    if joined is not None and not joined.is_main_process:
        joined.wait_for_everyone()
    yield
    if joined is not None and joined.is_main_process:
        joined.wait_for_everyone()


def share(items: Sequence[T]) -> list[tuple[int, T]]:
    """This process's part of the items, each with its place among all: every n-th of n processes.

    Raises IntqError where there are fewer items than processes.
    """
    index, count = place()
    if len(items) < count:
        raise IntqError(
            f"{count} processes cannot share {len(items)} batches: take smaller batches (intq.losses.split) or fewer "
            "processes"
        )
    return list(enumerate(items))[index::count]


def summed(x: Tensor) -> Tensor:
    """The sum of the processes' tensors, which all of them get."""
    return _exchanged(x, torch.distributed.all_reduce)


def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The means over the processes of each tensor, exchanged all at once."""
    count = place()[1]
    if count == 1:
        return list(tensors)
    whole = summed(torch.cat([x.flatten() for x in tensors])) / count
    parts = whole.split([x.numel() for x in tensors])
    return [part.reshape(x.shape) for part, x in zip(parts, tensors, strict=True)]


def from_first(x: Tensor) -> Tensor:
    """The first process's tensor, which all of them get."""
    return _exchanged(x, lambda moved: torch.distributed.broadcast(moved, 0))


def _exchanged(x: Tensor, exchange: Callable[[Tensor], object]) -> Tensor:
    """After an exchange in place, for which tensors must lie on the processes' devices."""
    joined = state()
    if joined is None:
        return x
    moved = x.to(joined.device, copy=True)
    exchange(moved)
    return moved.to(x.device)
