"""Getting an image into the form that a kernel reads: padded, or its windows one after another."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.cpu.build import copy, i64, parallel, serial


def pad_image(target, x, image, pad_value, source, padding, base=0) -> None:
    """Image number ``image`` of x (h, w, c), each pixel around it ``pad_value`` (c,), to ``target[base]`` and on.

    The result is (h + top + bottom, w + left + right, c).
    """
    (h, w, c), (top, left, bottom, right) = source, padding
    width = (w + left + right) * c

    def fill(at, pixels: int) -> None:
        if pixels:
            with serial(pixels) as i:
                copy(target, at + i * c, pad_value, i64(0), c)

    with parallel(h + top + bottom, barrier=True) as y:
        at = T.Bind(base + y * width)
        with T.If(tirx.all(y >= top, y < top + h)):
            with T.Then():
                fill(at, left)
                copy(target, at + left * c, x, (image * h + y - top) * (w * c), w * c)
                fill(at + (left + w) * c, right)
            with T.Else():
                fill(at, w + left + right)


def window_rows(target, source, at, plan, group) -> None:
    """Copy the window of every output pixel, tap after tap, to its row of ``target``.

    ``source``: the padded image, beginning at ``at``. Rows lie ``plan.pitch`` apart; what a row has beyond ``plan.k``
    is not written: its weights are zero.
    """
    (oh, ow), (kh, kw), (sh, sw), (dh, dw) = plan.output, plan.kernel, plan.stride, plan.dilation
    c, width = plan.source[2], plan.padded[1] * plan.source[2]
    joined = dw == 1 and plan.groups == 1  # a row of the window is one run of bytes
    run, parts = (kw * c, 1) if joined else (plan.ci, kw)
    with parallel(oh, barrier=True) as y, serial(ow) as x, serial(kh) as i, serial(parts) as j:
        pixel = at + (y * sh + i * dh) * width + (x * sw + j * dw) * c + group * plan.ci
        copy(target, (y * ow + x) * plan.pitch + (i * parts + j) * run, source, pixel, run)
