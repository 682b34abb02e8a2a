"""TVM's passes for CUDA kernels: those that make host and device code of them, and no others.

Kernels place their barriers themselves; TVM's pass that finds where they are missing takes a warp's for the block's.
Simplifying, unrolling and sharing of subexpressions are nvcc's work: TVM's passes take up to a minute for a kernel.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

NAME = "intq-cuda"


def _pipeline():
    passes = tvm.transform.Sequential(
        [
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
    )
    return passes, _host, _device


def _host():
    return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])


def _device():
    return tirx.transform.LowerIntrin()


compilation_pipeline.register_tir_pipeline(NAME, _pipeline)
