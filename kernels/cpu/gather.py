"""Getting an image into the form that a kernel reads: padded, or its windows one after another."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.build import i64
from intq.kernels.cpu.build import copy, parallel, serial


def pad_image(target, x, image, pad_value, source, padding, base=0) -> None:
    """Image number ``image`` of x (h, w, c), each pixel around it ``pad_value`` (c,), to ``target[base]`` and on.

    The result is (h + top + bottom, w + left + right, c).
    """
    (h, w, c), (top, left, bottom, right) = source, padding
    width = left + w + right
    with parallel(h + top + bottom, barrier=True) as y:
        at = T.Bind(base + y * (width * c))
        if not top + bottom:
            _row(target, at, x, image * h + y, pad_value, (w, c), (left, right))
            return
        with T.If(tirx.all(y >= top, y < top + h)):
            with T.Then():
                _row(target, at, x, image * h + (y - top), pad_value, (w, c), (left, right))
            with T.Else():
                _pixels(target, at, pad_value, width, c)


def pad_frame(target, to, x, sample, frame, source, padding, mask, pad_value) -> None:
    """Row ``frame`` of image number ``sample`` of x, with what pads its sides, to ``target[to]`` and on.

    ``source``: (h, w, c). Padding alone where the image has no such row, or the mask leaves it out.
    """
    (h, w, c), (_, left, _, right) = source, padding

    def take() -> None:
        _row(target, to, x, sample * h + frame, pad_value, (w, c), (left, right))

    def leave() -> None:
        _pixels(target, to, pad_value, left + w + right, c)

    with T.If(tirx.all(frame >= 0, frame < h)):
        with T.Then():
            if mask is None:
                take()
            else:
                with T.If(mask[sample * h + frame] != 0):
                    with T.Then():
                        take()
                    with T.Else():
                        leave()
        with T.Else():
            leave()


def _row(target, to, x, number, pad_value, size: tuple[int, int], sides: tuple[int, int]) -> None:
    """Row ``number`` of x, (w, c) each, with so many pixels of padding at its left and right."""
    (w, c), (left, right) = size, sides
    _pixels(target, to, pad_value, left, c)
    copy(target, T.Bind(to + left * c), x, T.Bind(number * (w * c)), w * c)
    _pixels(target, to + (left + w) * c, pad_value, right, c)


def _pixels(target, to, pad_value, count: int, c: int) -> None:
    """``count`` pixels of padding."""
    if count == 1:
        copy(target, to, pad_value, i64(0), c)
    elif count:
        with serial(count) as i:
            copy(target, T.Bind(to + i * c), pad_value, i64(0), c)


def window_rows(target, source, at, plan, group) -> None:
    """Copy the window of every output pixel to its row of ``target``; rows lie ``plan.pitch`` apart.

    ``source``: the padded image, beginning at ``at``. What a row has beyond ``plan.k`` meets weights of zero.
    """
    oh, ow = plan.output
    with parallel(oh, barrier=True) as y, serial(ow) as x:
        window(target, T.Bind((y * ow + x) * plan.pitch), source, at, plan, group, y, x)


def window(target, to, source, at, plan, group, y, x) -> None:
    """Copy the window of output pixel (y, x) to ``target[to]`` and on, tap after tap."""
    (kh, kw), (sh, sw), (dh, dw) = plan.kernel, plan.stride, plan.dilation
    c, width, run = plan.source[2], plan.padded[1] * plan.source[2], plan.copy_run
    parts = kw * plan.ci // run
    corner = T.Bind(at + y * (sh * width) + x * (sw * c) + group * plan.ci)
    with serial(kh) as i, serial(parts) as j:
        place, pixel = to + (i * parts + j) * run, corner + i * (dh * width) + j * (dw * c)
        copy(target, T.Bind(place), source, T.Bind(pixel), max(run, plan.copy_width) if plan.overshoots else run)
