"""Windows over images and frames, each channel for itself: depthwise convolutions and pooling. Without tensor cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.cuda.build import i32, kernel, quotient, registers, remainder, store
from intq.kernels.cuda.contract import Epilogue
from intq.kernels.cuda.dialect import CudaDialect
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.plan import Plan
from intq.kernels.cuda.sweep import each


@dataclass(frozen=True)
class Window:
    """(kh, kw), its steps, (top, left, bottom, right) of padding, distances of its taps; all of (h, w)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)


def depthwise(name: str, plan: Plan, finish: Epilogue, tensors: Mapping[str, tuple]) -> tirx.PrimFunc:
    """The kernel (x, [residual], [mask], weight, constants, [curve], [pad_value], out); ``tensors`` as a contraction's.

    Output channel c reads input channel ``c // (co / groups)``.
    """
    window = Window(plan.kernel, plan.stride, plan.padding, plan.dilation)
    dtypes = [tensors[name][1] for name in ("residual", "out") if name in tensors]
    width = width_of(plan.co, "uint8", *dtypes) if plan.columns == 1 else 1

    def finished(buffers, place, total, channel, pixel, taps):
        sums = _zeros(width)

        def tap(number, values: Vector):
            weights = Elements(buffers["weight"], plan.k * plan.co, width).load(number * plan.co + channel)
            for i, (x, w) in enumerate(zip(values.parts, weights.parts, strict=True)):
                store(sums, sums[i] + x * w, i)

        taps(quotient(channel, plan.columns), tap)
        operands = [Vector(tuple(T.Bind(sums[i]) for i in range(width)), "int32")]
        if "residual" in buffers:
            operands.append(Elements(buffers["residual"], total, width).load(place))
        constants = finish.constants.load(buffers["constants"], [channel + i for i in range(width)])
        return finish.apply(tuple(operands), constants, buffers.get("curve"))

    return _over_windows(name, window, tensors, width, finished)


def avg_pool(name: str, body: Callable, attrs: Mapping, constants: Constants, tensors: Mapping) -> tirx.PrimFunc:
    """The kernel (x, constants, [pad_value], out)."""
    width = width_of(tensors["out"][0][-1], tensors["x"][1], tensors["out"][1])

    def finished(buffers, place, total, channel, pixel, taps):
        sums = _zeros(width)

        def tap(number, values: Vector):
            for i, x in enumerate(values.parts):
                store(sums, sums[i] + x, i)

        taps(channel, tap)
        operand = Vector(tuple(T.Bind(sums[i]) for i in range(width)), "int32")
        return body(CudaDialect, (operand,), constants.load(buffers["constants"], [pixel] * width), attrs)

    return _over_windows(name, _window(attrs), tensors, width, finished)


def max_pool(name: str, body: Callable, attrs: Mapping, tensors: Mapping) -> tirx.PrimFunc:
    """The kernel (x, [pad_value], out)."""
    width = width_of(tensors["out"][0][-1], tensors["x"][1], tensors["out"][1])

    def finished(buffers, place, total, channel, pixel, taps):
        most = registers(width, "int32")
        for i in range(width):
            store(most, i32(-(2**31)), i)

        def tap(number, values: Vector):
            for i, x in enumerate(values.parts):
                store(most, tirx.max(most[i], x), i)

        taps(channel, tap)
        return body(CudaDialect, (Vector(tuple(T.Bind(most[i]) for i in range(width)), "int32"),), {}, attrs)

    return _over_windows(name, _window(attrs), tensors, width, finished)


def _window(attrs: Mapping) -> Window:
    return Window(*(tuple(attrs[key]) for key in ("kernel", "stride", "padding")))


def _zeros(width: int):
    sums = registers(width, "int32")
    for i in range(width):
        store(sums, i32(0), i)
    return sums


def _over_windows(name: str, window: Window, tensors: Mapping, width: int, finished: Callable) -> tirx.PrimFunc:
    """A kernel with a thread for every ``width`` channels of an output pixel.

    ``finished(buffers, place, total, channel, pixel, taps)`` gives the output's elements from ``place`` on; pixels are
    counted in an image, ``total`` is the output's size. ``taps(channel, tap)`` calls ``tap(number, values)`` for every
    tap of the window with the input's channels from ``channel`` on, which are the padding's outside of the image.
    Frames, of shape (n, frames, channels), are the rows of an image of one column.
    """
    x, out = tensors["x"][0], tensors["out"][0]
    names = tuple(dict.fromkeys(d for d in (*x, *out) if isinstance(d, str)))

    def write(*given):
        sizes, buffers = dict(zip(names, given, strict=False)), dict(zip(tensors, given[len(names) :], strict=True))
        n, h, *w, c = (sizes.get(d, d) for d in x)
        _, oh, *ow, co = (sizes.get(d, d) for d in out)
        (w,), (ow,) = w or (1,), ow or (1,)
        total = n * (oh * ow * co)

        def element(sample, at):
            channel = T.Bind(remainder(at, co // width) * width)
            pixel = T.Bind(quotient(at, co // width))
            top = T.Bind(quotient(pixel, ow) * window.stride[0] - window.padding[0])
            left = T.Bind(remainder(pixel, ow) * window.stride[1] - window.padding[1])

            def taps(source, tap):
                source = T.Bind(source)
                with T.serial(i32(0), i32(window.kernel[0])) as i, T.serial(i32(0), i32(window.kernel[1])) as j:
                    y, x_ = T.Bind(top + i * window.dilation[0]), T.Bind(left + j * window.dilation[1])
                    inside = tirx.all(y >= 0, y < h, x_ >= 0, x_ < w)
                    if "mask" in buffers:
                        kept = tirx.if_then_else(inside, buffers["mask"][sample * h + y], tirx.const(0, "uint8"))
                        inside = T.Bind(kept.astype("int32")) > 0
                    values = registers(width, "int32")
                    padded = "pad_value" in buffers
                    with T.If(inside if padded else tirx.const(True, "bool")):
                        with T.Then():
                            place = T.Bind(((sample * h + y) * w + x_) * c + source)
                            _keep(values, Elements(buffers["x"], n * (h * w * c), width).load(place))
                        if padded:
                            with T.Else():
                                _keep(values, Elements(buffers["pad_value"], c, width).load(source))
                    tap(i * window.kernel[1] + j, Vector(tuple(values[k] for k in range(width)), "int32"))

            place = T.Bind(sample * (oh * ow * co) + pixel * co + channel)
            Elements(buffers["out"], total, width).store(place, finished(buffers, place, total, channel, pixel, taps))

        each(n, oh * ow * (co // width), element)

    return kernel(name, list(tensors.values()), write, names)


def _keep(memory, x: Vector) -> None:
    for i, part in enumerate(x.parts):
        store(memory, part, i)
