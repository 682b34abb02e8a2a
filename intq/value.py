"""What is known of an integer tensor: shape, storage, bounds that hold for every input, and its real-valued meaning."""

from __future__ import annotations

from dataclasses import dataclass

from intq import dims
from intq.errors import IntqError

DTYPE_RANGE = {
    "uint8": (0, 2**8 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
}

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
    """A tensor whose real value is ``scale * (q - zero_point)``, ``low <= q <= high`` proven.

    ``shape``: channel last; a dimension given by a name ("n", the batch; "s", the tokens or samples) is symbolic, or
    follows from one that is ("(s+160)//320", the frames: :mod:`intq.dims`). ``scale`` and
    ``zero_point`` are for people and for the straight-through gradient and never touch data; only a network's input may
    have them per channel (an image's mean and standard deviation). ``longest``: of a network's input, the largest size
    that a symbolic dimension other than the batch may have; 0 for any.
    """

    name: str
    shape: Shape
    dtype: str
    low: int
    high: int
    scale: float | tuple[float, ...] = 1.0
    zero_point: int | float | tuple[float, ...] = 0
    longest: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_RANGE:
            raise IntqError(f"{self.name}: dtype must be one of {', '.join(DTYPE_RANGE)}, got {self.dtype!r}")
        least, most = DTYPE_RANGE[self.dtype]
        if not least <= self.low <= self.high <= most:
            raise IntqError(
                f"{self.name}: bounds must lie in {self.dtype}'s [{least}, {most}], got [{self.low}, {self.high}]"
            )

    @property
    def channels(self) -> int:
        return int(self.shape[-1])

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}] in [{self.low}, {self.high}]"


def bind_shape(shape: Shape, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape with every symbolic dimension replaced by its size."""
    return tuple(dims.size(d, sizes) for d in shape)


def check_inputs(declared: tuple[Value, ...], arrays) -> None:
    """Raise IntqError unless the arrays have the declared dtypes, shapes and, where narrower, bounds."""
    if len(arrays) != len(declared):
        raise IntqError(f"expected {len(declared)} inputs, got {len(arrays)}")
    for value, array in zip(declared, arrays, strict=True):
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype != value.dtype:
            raise IntqError(f"input {value.name}: expected {value.dtype}, got {dtype}")
        fits = len(array.shape) == len(value.shape) and all(
            isinstance(d, str) or d == s for d, s in zip(value.shape, array.shape, strict=True)
        )
        if not fits or 0 in array.shape[1:]:
            wanted = ", ".join(map(str, value.shape))
            raise IntqError(f"input {value.name}: expected shape ({wanted}), got {tuple(array.shape)}")
        for dimension, size in zip(value.shape[1:], array.shape[1:], strict=True):
            if isinstance(dimension, str) and 0 < value.longest < size:
                raise IntqError(
                    f"input {value.name}: at most {value.longest} along {dimension!r} are possible, got {size}; "
                    "shorten or truncate it"
                )
        if (value.low, value.high) != DTYPE_RANGE[value.dtype] and 0 not in array.shape:
            low, high = int(array.min()), int(array.max())
            if low < value.low or high > value.high:
                raise IntqError(
                    f"input {value.name}: its integers must lie in [{value.low}, {value.high}], found [{low}, {high}]"
                )
