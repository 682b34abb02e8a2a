"""From an image to the integer pixels that a network eats: decode, orient, convert, resize, crop.

Needs NumPy and Pillow alone, because deployed networks use it. The mean and the standard deviation are carried here
but never applied to the pixels on the way to an integer network: the quantizer folds them into the first convolution.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from intq.errors import IntqError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """How a checkpoint wants its images.

    resize: the length of the shorter side (the other follows), or (height, width), or None to leave the size.
    crop: (height, width) of the middle that is kept (black where the image is smaller), or None to keep all.
    interpolation: one of INTERPOLATIONS.
    mean, std: one per channel, in units of pixel / 255: the network's float input is (pixel / 255 - mean) / std.
    Three channels are RGB, one is luminance.
    """

    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] | None = (224, 224)
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.resize is not None and not (_is_size(self.resize) or _is_pair(self.resize)):
            raise IntqError(f"preprocessing: resize is a length, (height, width) or None, not {self.resize!r}")
        if self.crop is not None and not _is_pair(self.crop):
            raise IntqError(f"preprocessing: crop is (height, width) or None, not {self.crop!r}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise IntqError(f"preprocessing: interpolation {self.interpolation!r} is none of {known}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise IntqError(
                f"preprocessing: mean and std have a value for each of 1 or 3 channels, not {self.mean} and {self.std}"
            )
        if not np.all(np.isfinite([*self.mean, *self.std])) or min(self.std) <= 0:
            raise IntqError(f"preprocessing: mean must be finite and std positive; found {self.mean} and {self.std}")

    @property
    def channels(self) -> int:
        """3 (RGB) or 1 (luminance)."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the pixels, or None when it is the image's own."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def pixels(self, image) -> np.ndarray:
        """The uint8 pixels (height, width, channels) of an image: a path, bytes, a Pillow image or a uint8 array.

        Files and Pillow images are turned upright as their EXIF orientation says and converted to the channels
        wanted; an array must be (height, width, channels) already, or (height, width) for luminance.

        Raises IntqError when the file does not decode or the array has another type or number of channels.
        """
        picture = _from_array(image, self.channels) if isinstance(image, np.ndarray) else _decode(image, self.channels)
        picture = self._crop(self._resize(picture))
        return np.asarray(picture).reshape(picture.height, picture.width, self.channels)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """(pixel / 255 - mean) / std as float32, channel last: the input of the float network that was quantized."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` is its inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Preprocess":
        """The preprocessing that `to_dict` wrote. Raises IntqError for a missing, unknown or ill-typed entry."""
        fields = set(cls.__dataclass_fields__)
        if not isinstance(values, Mapping) or set(values) != fields:
            found = sorted(values) if isinstance(values, Mapping) else values
            raise IntqError(f"preprocessing: expected the entries {sorted(fields)}, found {found}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        for key in ("mean", "std"):
            entry = values[key]
            if not isinstance(entry, tuple) or not all(_is_number(number) for number in entry):
                raise IntqError(f"preprocessing: {key} is a list of numbers, not {entry!r}")
        return cls(**values)

    def _resize(self, picture: Image.Image) -> Image.Image:
        if self.resize is None:
            return picture
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            # The shorter side becomes `resize`; the longer keeps the ratio, rounded down.
            short, long = sorted(picture.size)
            long = int(self.resize * long / short)
            width, height = (self.resize, long) if picture.width <= picture.height else (long, self.resize)
        if picture.size == (width, height):
            return picture
        return picture.resize((width, height), INTERPOLATIONS[self.interpolation])

    def _crop(self, picture: Image.Image) -> Image.Image:
        if self.crop is None:
            return picture
        height, width = self.crop
        top, left = (picture.height - height) // 2, (picture.width - width) // 2
        return picture.crop((left, top, left + width, top + height))


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_pair(value) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_size, value))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_array(array: np.ndarray, channels: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise IntqError(f"an image array holds uint8 pixels, not {array.dtype}: scale it to 0..255 and convert it")
    found = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or found != channels or 0 in array.shape:
        raise IntqError(
            f"the network takes pixels (height, width, {channels}); the image array has the shape {array.shape}"
        )
    return Image.fromarray(array.reshape(array.shape[:2]) if channels == 1 else array)


def _decode(source, channels: int) -> Image.Image:
    """The image in `source`, upright, in mode RGB or L."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the image"
    if isinstance(source, str | os.PathLike) and not Path(source).is_file():
        raise IntqError(f"there is no image file {name}")
    try:
        if isinstance(source, Image.Image):
            return _convert(source, channels)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return _convert(picture, channels)
    except Exception as error:  # a decoder fed with garbage may raise anything
        raise IntqError(f"{name} does not decode as an image ({error or type(error).__name__})") from error


def _convert(picture: Image.Image, channels: int) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit luminance: keep the high byte, where Pillow would clip
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    # Transparency is dropped, not blended: this is what the networks saw in training.
    return picture.convert("RGB" if channels == 3 else "L")
