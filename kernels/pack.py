"""Constants in the order in which the kernels of an instruction set or of a GPU read them. Without TVM."""

from __future__ import annotations

import numpy as np

from intq.graph import Node
from intq.kernels.cpu import pack as cpu
from intq.kernels.cuda import pack as cuda
from intq.kernels.library import is_gpu
from intq.value import Value


def arrays(node: Node, inputs: tuple[Value, ...], isa: str) -> list[np.ndarray]:
    """What a node's kernel takes after its inputs, in order. ``isa``: what the library's description says."""
    room = cuda if is_gpu(isa) else cpu
    return room.arrays(node, inputs, isa)
