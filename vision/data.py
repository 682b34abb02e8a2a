"""Data sets as a network sees them: uint8 pixels in batches, labels as the network's own classes, read lazily."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from intq.errors import IntqError
from intq.vision.labels import class_indices, has_background
from intq.vision.layouts import HELD_OUT, TRAIN, Source, from_datasets, from_path
from intq.vision.preprocess import Preprocess


@dataclass(frozen=True)
class Dataset:
    """Images of a source, cut to the network's input, in the order of `indices`.

    labels: for each image of the source the network's class (int64), or None when they are unknown.
    """

    source: Source
    preprocess: Preprocess
    labels: np.ndarray | None
    indices: np.ndarray

    @property
    def name(self) -> str:
        """Where the images come from."""
        return self.source.name

    @property
    def labelled(self) -> bool:
        """Are the classes known?"""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, count: int, seed: int = 0) -> "Dataset":
        """`count` of the images at random (all when there are fewer), in the order of the source."""
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return replace(self, indices=self.indices[np.sort(chosen)])

    def pixels(self, index: int) -> np.ndarray:
        """The image at `index`: uint8 (height, width, channels)."""
        return self.preprocess.pixels(self.source.read(int(self.indices[index])))

    def batches(self, size: int = 32) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """(pixels uint8 (n, height, width, channels), classes int64 (n,) or None) of up to `size` images each."""
        for start in range(0, len(self), size):
            chosen = range(start, min(start + size, len(self)))
            images = [self.pixels(index) for index in chosen]
            shapes = {image.shape for image in images}
            if len(shapes) > 1:
                raise IntqError(
                    f"{self.name}: the images differ in size ({', '.join(map(str, sorted(shapes)[:2]))}) and the "
                    "checkpoint's preprocessing neither crops nor resizes: make them one size"
                )
            yield np.stack(images), self.labels[self.indices[list(chosen)]] if self.labelled else None


def open_dataset(
    spec: str | Path, preprocess: Preprocess, labels: Sequence[str] = (), split: str = "test", labelled: bool = True
) -> Dataset:
    """The data set that `spec` names, for a network with this preprocessing and these labels.

    spec: a path to images, to one folder of images for each class, to the files of CIFAR or MNIST, or the name of a
    data set of the library `datasets`; with ":train", ":validation" or any other split behind it if need be.
    labels: what the network calls its classes; a class folder's name is looked up there, then among ImageNet's
    synsets; numbers stand for themselves; otherwise the position among the sorted names counts.
    split: "train" or "test", where the data set has both; whichever it has where it has one. labelled=False: the
    images alone are wanted (calibration).

    Raises IntqError when nothing readable is there, when the split behind ":" is not, and when labelled images have
    classes that the network lacks.
    """
    path = Path(spec).expanduser()
    name = str(spec)
    splits = (*TRAIN, *HELD_OUT) if split == "train" else (*HELD_OUT, *TRAIN)
    if not path.exists() and ":" in name:
        name, asked = name.rsplit(":", 1)
        path = Path(name).expanduser()
        splits = ("test", "t10k") if asked == "test" else (asked,)
    if path.exists():
        source = from_path(path, splits)
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise IntqError(f"there is no file or folder {name or 'of an empty name'}")
    else:
        source = from_datasets(name, splits)
    if not source.count:
        raise IntqError(f"{source.name} holds no images")
    classes = _network_classes(source, labels) if labelled else None
    return Dataset(source, preprocess, classes, np.arange(source.count))


def _network_classes(source: Source, labels: Sequence[str]) -> np.ndarray | None:
    """The source's labels as classes of the network whose labels are given."""
    if source.labels is None:
        return None
    if source.classes:
        order = class_indices(source.classes, labels)
        if order is None:
            raise IntqError(
                f"{source.name} has {len(source.classes)} classes ({', '.join(source.classes[:3])}, ...) that are not "
                f"among the network's {len(labels)} ({', '.join(labels[:3])}, ...): name the folders by the network's "
                "labels or by ImageNet's synsets, or add a class_index.json"
            )
        found = np.array(order, np.int64)[source.labels]
    else:
        found = source.labels + int(has_background(labels))
    if found.min() < 0 or (labels and found.max() >= len(labels)):
        worst = found.min() if found.min() < 0 else found.max()
        raise IntqError(
            f"{source.name} has the label {worst}, but the network has {len(labels)} classes: these are not its data "
            f"(or not the split with labels; another is asked for by '{source.name}:{HELD_OUT[0]}')"
        )
    return found


def random_crops(images: Iterable, count: int, seed: int = 0, size: tuple[int, int] = (224, 224)) -> np.ndarray:
    """uint8 crops (count, height, width, 3) of natural photos: a quarter to all of the area, sides 3:4 to 4:3.

    images: paths, Pillow images or uint8 arrays (height, width, 3). Every other crop is mirrored. A fixed seed gives
    the same crops; they serve to compare two networks where few photos are at hand, and to calibrate.
    """
    photos = [Preprocess(None, None).pixels(image) for image in images]
    if not photos:
        raise IntqError("random crops need at least one image")
    generator = np.random.default_rng(seed)
    crops = np.empty((count, *size, 3), np.uint8)
    for index in range(count):
        photo = Image.fromarray(photos[generator.integers(len(photos))])
        area = photo.width * photo.height * generator.uniform(0.25, 1.0)
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        width = min(photo.width, max(1, round((area * ratio) ** 0.5)))
        height = min(photo.height, max(1, round((area / ratio) ** 0.5)))
        left = int(generator.integers(photo.width - width + 1))
        top = int(generator.integers(photo.height - height + 1))
        box = (left, top, left + width, top + height)
        crop = photo.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
        crops[index] = np.asarray(crop)[:, :: -1 if index % 2 else 1]
    return crops
