"""The ways that labelled and unlabelled images lie on disk (or in a `datasets` data set), each as a Source."""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from intq.errors import IntqError
from intq.vision.formats import files_of, is_cifar, read_cifar, read_idx

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
# What data sets call their two splits, the best first. ImageNet's "test" has no labels: validation comes before it.
HELD_OUT, TRAIN = ("validation", "valid", "val", "test", "t10k"), ("train", "training")


@dataclass(frozen=True)
class Source:
    """Images in an order, read one by one when asked for.

    read: index to a path, a Pillow image, or whatever Preprocess.pixels takes. labels (n,): an index into `classes`,
    or where those are empty the number of the class itself; None where nothing is known.
    """

    name: str
    count: int
    read: Callable[[int], object]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def from_path(path: Path, splits: Sequence[str]) -> Source:
    """The images at a path, in whichever layout it holds, and of them the first of `splits` that is there.

    Raises IntqError, which lists the layouts, when it is none of them, and when none of the splits is there.
    """
    for layout in (_cifar, _idx, _saved_datasets, _images):
        source = layout(path, splits)
        if source is not None:
            return source
    raise IntqError(
        f"{path} holds no images that intq can read: expected image files, one folder of them for each class, the "
        "files of CIFAR-10, CIFAR-100 (pickled or binary) or MNIST (idx), or a data set written by save_to_disk"
    )


def pick_split(available: Sequence[str], splits: Sequence[str], name: str) -> str:
    """The first of `splits` that is available. IntqError, which says what there is, when none is."""
    found = next((split for split in splits if split in available), None)
    if found is None:
        raise IntqError(f"{name} has the splits {', '.join(available)}, and none of them is {' or '.join(splits)}")
    return found


def _arrays(name: str, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...] = ()) -> Source:
    return Source(name, len(images), lambda index: Image.fromarray(images[index]), labels, classes)


def _cifar(path: Path, splits: Sequence[str]) -> Source | None:
    if path.is_dir():
        inside = [path / name for name in ("cifar-10-batches-py", "cifar-100-python", "cifar-10-batches-bin")]
        inside += [path / "cifar-100-binary", *sorted(path.glob("cifar-*.tar.gz"))]
        places = [path, *(place for place in inside if place.exists())]
    else:
        places = [path] if path.name.endswith((".tar.gz", ".tgz", ".tar")) else []
    for place in places:
        files = files_of(place)
        if is_cifar(files):
            return _arrays(str(path), *read_cifar(files, pick_split(("train", "test"), splits, str(path)), str(place)))
    return None


def _idx(path: Path, splits: Sequence[str]) -> Source | None:
    """The idx files of MNIST and its kin, or one of them; also where torchvision puts them (FashionMNIST/raw)."""
    pattern = re.compile(r"(.+)[-.](images|labels)[-.]idx[13][-.]ubyte(\.gz)?")
    if path.is_file() and not pattern.fullmatch(path.name):
        return None
    folders = [path, path / "raw", *sorted(path.glob("*/raw"))] if path.is_dir() else [path.parent]
    found: dict[str, dict[str, Path]] = {}
    for file in (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())):
        match = pattern.fullmatch(file.name)
        if match:
            found.setdefault(match[1], {}).setdefault(match[2], file)
    found = {prefix: files for prefix, files in found.items() if "images" in files}
    if not found:
        return None
    prefix = pattern.fullmatch(path.name)[1] if path.is_file() else pick_split(list(found), splits, str(path))
    if prefix not in found:
        return None
    images = read_idx(found[prefix]["images"])
    if images.ndim != 3 or not images.size:
        raise IntqError(f"{found[prefix]['images']}: expected images (n, height, width), found {images.shape}")
    labels = None
    if "labels" in found[prefix]:
        labels = read_idx(found[prefix]["labels"]).astype(np.int64)
        if labels.shape != images.shape[:1]:
            raise IntqError(f"{found[prefix]['labels']}: {labels.shape} labels for {len(images)} images")
    return _arrays(str(path), images, labels)


def _images(path: Path, splits: Sequence[str]) -> Source | None:
    """One image; a flat folder of images; or one folder of images for each class, maybe under a folder by split."""
    if path.is_file():
        return _listed(path, [path]) if path.suffix.lower() in EXTENSIONS else None
    here, folders = _entries(path)
    if here:
        return _listed(path, here)
    names = [folder.name for folder in folders]
    if set(names) & {*HELD_OUT, *TRAIN}:
        return _images(path / pick_split(names, splits, str(path)), splits)
    files, labels = [], []
    for index, folder in enumerate(folders):
        for parent, _, inside in sorted(os.walk(folder, followlinks=True)):
            chosen = sorted(name for name in inside if _is_image(name))
            files += [Path(parent, name) for name in chosen]
            labels += [index] * len(chosen)
    if not files:
        return None
    classes = tuple(names)
    order = _class_order(path)
    labels = np.array(labels, np.int64)
    if order and all(name in order for name in classes):
        return Source(str(path), len(files), files.__getitem__, np.array([order[name] for name in classes])[labels])
    return Source(str(path), len(files), files.__getitem__, labels, classes)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images and the folders in a folder, sorted by name."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [entry for entry in entries if entry.is_file() and _is_image(entry.name)], [
        entry for entry in entries if entry.is_dir()
    ]


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _class_order(folder: Path) -> dict[str, int] | None:
    """Folder name to class from a class-index file: JSON {"0": ["n01440764", "tench"]} or one name a line."""
    for place in (folder, folder.parent):
        for name in ("class_index.json", "imagenet_class_index.json"):
            if (place / name).is_file():
                try:
                    entries = json.loads((place / name).read_text(encoding="utf-8"))
                    return {(value if isinstance(value, str) else value[0]): int(key) for key, value in entries.items()}
                except (ValueError, AttributeError, TypeError, IndexError) as error:
                    raise IntqError(
                        f'{place / name}: expected {{"0": ["n01440764", "tench"], ...}}, class to folder ({error})'
                    ) from error
        for name in ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt", "classes.txt"):
            if (place / name).is_file():
                lines = [line.split() for line in (place / name).read_text(encoding="utf-8").splitlines()]
                return {line[0]: index for index, line in enumerate(filter(None, lines))}
    return None


def _listed(folder: Path, files: list[Path]) -> Source:
    """A flat list of files, with labels from a file beside them or from their names where these carry them."""
    labels, classes = (_truth(folder, files) if folder.is_dir() else None) or (_labels_in_names(files), ())
    return Source(str(folder), len(files), files.__getitem__, labels, classes)


def _labels_in_names(files: list[Path]) -> np.ndarray | None:
    """The last number of names like imagenet_00_243.jpg, when all are alike: <name>_<index>_<label>."""
    matches = [re.fullmatch(r"(.+)_\d+_(\d{1,4})", file.stem) for file in files]
    if not all(matches) or len({match[1] for match in matches}) != 1:
        return None
    return np.array([int(match[2]) for match in matches], np.int64)


def _truth(folder: Path, files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Labels from a list beside the images: "name label" lines (Caffe, Kaggle), or ILSVRC's development kit."""
    places = [folder, folder.parent]
    for name in ("val.txt", "labels.txt", "LOC_val_solution.csv", "labels.csv"):
        for path in (place / name for place in places):
            if path.is_file():
                return _label_list(path, files)
    kits = [*places, *(kit / "data" for place in places for kit in sorted(place.glob("ILSVRC2012_devkit*")))]
    for kit in kits:
        if (kit / "ILSVRC2012_validation_ground_truth.txt").is_file() and (kit / "meta.mat").is_file():
            return _development_kit(kit, files)
    return None


def _label_list(path: Path, files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for line in csv.reader(file) for row in [" ".join(line).split()] if len(row) >= 2]
    known = {Path(row[0]).stem: row[1] for row in rows}
    missing = [file.name for file in files if file.stem not in known]
    if missing:
        raise IntqError(f"{path}: has no line '{missing[0]} label' ({len(missing)} of {len(files)} images lack one)")
    found = [known[file.stem] for file in files]
    if all(label.isascii() and label.isdecimal() for label in found):
        return np.array(list(map(int, found)), np.int64), ()
    classes = tuple(sorted(set(found)))
    return np.array([classes.index(label) for label in found], np.int64), classes


def _development_kit(kit: Path, files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """ILSVRC2012's ground truth: line i is the kit's own number for image i's synset; meta.mat translates it."""
    from scipy.io import loadmat

    try:
        numbers = [int(line) for line in (kit / "ILSVRC2012_validation_ground_truth.txt").read_text().split()]
        synsets = loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        found = [names[numbers[int(file.stem.rsplit("_", 1)[-1]) - 1]] for file in files]
    except (ValueError, KeyError, IndexError, OSError, TypeError) as error:
        raise IntqError(f"{kit}: the ground truth or meta.mat does not fit these images ({error!r})") from error
    classes = tuple(sorted(set(found)))
    return np.array([classes.index(name) for name in found], np.int64), classes


def _saved_datasets(path: Path, splits: Sequence[str]) -> Source | None:
    """A data set that the library `datasets` wrote: save_to_disk's folder, or a folder of parquet files."""
    if not path.is_dir():
        return None
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if not saved and not list(path.glob("*.parquet")) and not list(path.glob("data/*.parquet")):
        return None
    return from_datasets(str(path), splits, saved)


def from_datasets(name: str, splits: Sequence[str], saved: bool = False) -> Source:
    """A data set of the library `datasets`, by its name on the Hugging Face hub or by its folder."""
    import datasets
    from huggingface_hub import HfApi

    local = Path(name).is_dir()
    try:
        if saved:
            data = datasets.load_from_disk(name)
            if isinstance(data, datasets.DatasetDict):
                data = data[pick_split(list(data), splits, name)]
        else:
            # Ask the hub first: where it is out of reach the library would retry for half a minute.
            if not (local or Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir()):
                HfApi().repo_info(name, repo_type="dataset", timeout=20)
            builder = datasets.load_dataset_builder(name)
            available = list(builder.info.splits or datasets.get_dataset_split_names(name))
            data = datasets.load_dataset(name, split=pick_split(available, splits, name))
    except IntqError:
        raise
    except Exception as error:  # the library raises its own, its HTTP client's and the system's errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if local:
            raise IntqError(
                f"{name} looks like a data set of the library datasets but does not load ({reason})"
            ) from error
        raise IntqError(
            f"{name} is no file or folder here and could not be loaded as a data set of the Hugging Face hub: check "
            f"the name and the connection, or give a local folder ({reason})"
        ) from error
    images = [column for column, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise IntqError(f"{name}: no column holds images; the columns are {dict(data.features)}")
    classes = [column for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)]
    # CIFAR-100 has coarse_label beside fine_label.
    column = next((column for column in ("label", "labels", "fine_label") if column in data.features), None)
    column = column if column else classes[0] if classes else None
    if column is None:
        return Source(name, len(data), lambda index: data[index][images[0]])
    labels = np.array(data[column], np.int64) if len(data) else np.zeros(0, np.int64)
    names = tuple(data.features[column].names) if column in classes else ()
    return Source(name, len(data), lambda index: data[index][images[0]], labels, names)
