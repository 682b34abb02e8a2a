"""Data sets: every layout gives its images and the network's own classes; damaged files give one clear error."""

import gzip
import json
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intq.errors import IntqError
from intq.vision.data import open_dataset, random_crops
from intq.vision.formats import read_idx, safe_unpickle
from intq.vision.labels import class_indices, default_labels, imagenet
from intq.vision.preprocess import Preprocess

KEEP = Preprocess(None, None)
GREY = Preprocess(None, None, "bilinear", (0.5,), (0.5,))
TEN = tuple(f"class {index}" for index in range(10))


def picture(path, value: int, size=(6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def contents(dataset) -> list[tuple[int, int | None]]:
    """(the first pixel, the class) of each image."""
    found = []
    for pixels, classes in dataset.batches(2):
        assert pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) <= 2
        found += [(int(image[0, 0, 0]), classes) for image in pixels]
        found[-len(pixels) :] = [
            (value, None if classes is None else int(classes[index]))
            for index, (value, _) in enumerate(found[-len(pixels) :])
        ]
    return found


# Layouts of image files


def test_image_folder_by_position(tmp_path):
    for index, name in enumerate(("zebra", "ant", "cat")):
        picture(tmp_path / name / "b.png", 10 * index)
        picture(tmp_path / name / "deep" / "A.BMP", 10 * index + 1)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    dataset = open_dataset(tmp_path, KEEP, ("x", "y", "z"))
    assert len(dataset) == 6 and dataset.labelled
    assert contents(dataset) == [(10, 0), (11, 0), (20, 1), (21, 1), (0, 2), (1, 2)]
    assert contents(open_dataset(tmp_path, KEEP, ("cat", "zebra, horse", "ant"))) == [
        *[(10, 2), (11, 2), (20, 0), (21, 0), (0, 1), (1, 1)]
    ]


def test_image_folder_by_synset_number_and_index_file(tmp_path):
    synsets = list(imagenet())
    picture(tmp_path / "imagenet" / "val" / synsets[7] / "a.png", 1)
    picture(tmp_path / "imagenet" / "val" / synsets[940] / "b.png", 2)
    picture(tmp_path / "imagenet" / "train" / synsets[0] / "c.png", 3)
    names = default_labels(1000)
    assert contents(open_dataset(tmp_path / "imagenet", KEEP, names)) == [(1, 7), (2, 940)]
    assert contents(open_dataset(tmp_path / "imagenet", KEEP, ("background", *names))) == [(1, 8), (2, 941)]
    assert contents(open_dataset(tmp_path / "imagenet", KEEP, names, split="train")) == [(3, 0)]
    assert contents(open_dataset(f"{tmp_path}/imagenet:train", KEEP, names)) == [(3, 0)]
    with pytest.raises(IntqError, match=r"has the splits train, val, and none of them is holdout"):
        open_dataset(f"{tmp_path}/imagenet:holdout", KEEP, names)
    for name in ("3", "7"):
        picture(tmp_path / "numbers" / name / "a.png", int(name))
    assert contents(open_dataset(tmp_path / "numbers", KEEP, TEN)) == [(3, 3), (7, 7)]
    for name in ("k1", "k2"):
        picture(tmp_path / "indexed" / name / "a.png", 1)
    with pytest.raises(IntqError, match=r"2 classes \(k1, k2, ...\) that are not among the network's 10"):
        open_dataset(tmp_path / "indexed", KEEP, TEN)
    assert not open_dataset(tmp_path / "indexed", KEEP, TEN, labelled=False).labelled
    index = tmp_path / "indexed" / "class_index.json"
    index.write_text(json.dumps({"4": ["k1", "first"], "9": ["k2", "second"]}))
    assert contents(open_dataset(tmp_path / "indexed", KEEP, TEN)) == [(1, 4), (1, 9)]
    for broken in ("[1]", "{", '{"a": ["k1"], "b": ["k2"]}', '{"1": 3}'):
        index.write_text(broken)
        with pytest.raises(IntqError, match="class_index"):
            open_dataset(tmp_path / "indexed", KEEP, TEN)
    index.unlink()
    (tmp_path / "indexed" / "synset_words.txt").write_text("k2 second\nk1 first\n")
    assert contents(open_dataset(tmp_path / "indexed", KEEP, TEN)) == [(1, 1), (1, 0)]


def test_flat_folder_and_single_image(tmp_path):
    for index, label in enumerate((5, 3, 12)):
        picture(tmp_path / "named" / f"imagenet_{index:02}_{label}.png", index)
    names = default_labels(1000)
    assert contents(open_dataset(tmp_path / "named", KEEP, names)) == [(0, 5), (1, 3), (2, 12)]
    assert contents(open_dataset(tmp_path / "named", KEEP, ("background", *names))) == [(0, 6), (1, 4), (2, 13)]
    with pytest.raises(IntqError, match="has the label 12, but the network has 10 classes"):
        open_dataset(tmp_path / "named", KEEP, TEN)
    picture(tmp_path / "photos" / "IMG_20240102_101112.png", 1)
    picture(tmp_path / "photos" / "dog.jpg", 2)
    dataset = open_dataset(tmp_path / "photos", KEEP, names)
    assert not dataset.labelled and [value for value, _ in contents(dataset)] == [1, 2]
    assert len(open_dataset(tmp_path / "photos" / "dog.jpg", KEEP)) == 1


def test_imagenet_validation_with_label_files(tmp_path):
    from scipy.io import savemat

    synsets = list(imagenet())
    images = tmp_path / "val"
    for index in range(3):
        picture(images / f"ILSVRC2012_val_{index + 1:08}.JPEG", index)
    names = default_labels(1000)
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    rows = np.array([(1, synsets[600]), (2, synsets[30])], dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    savemat(kit / "meta.mat", {"synsets": rows})
    classes = [label for _, label in contents(open_dataset(images, KEEP, names))]
    assert classes == [30, 600, 30]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    with pytest.raises(IntqError, match="does not fit these images"):
        open_dataset(images, KEEP, names)
    lines = [f"ILSVRC2012_val_{index + 1:08},{synsets[index]} 1 2 3 4\n" for index in range(3)]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    assert [label for _, label in contents(open_dataset(images, KEEP, names))] == [0, 1, 2]
    (images / "val.txt").write_text("".join(f"ILSVRC2012_val_{i + 1:08}.JPEG {65 * i}\n" for i in range(3)))
    assert [label for _, label in contents(open_dataset(images, KEEP, names))] == [0, 65, 130]
    (images / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 65\n")
    with pytest.raises(IntqError, match="2 of 3 images lack one"):
        open_dataset(images, KEEP, names)


def test_samples_and_sizes(tmp_path):
    for index in range(9):
        picture(tmp_path / f"a_{index}_{index}.png", index)
    dataset = open_dataset(tmp_path, KEEP, TEN)
    some = dataset.sample(4, seed=1)
    assert len(some) == 4 and contents(some) == contents(dataset.sample(4, seed=1)) != contents(
        dataset.sample(4, seed=2)
    )
    assert all(value == label for value, label in contents(some))
    assert contents(dataset.sample(100)) == contents(dataset)
    picture(tmp_path / "a_9_9.png", 9, size=(7, 6))
    with pytest.raises(IntqError, match="the images differ in size"):
        list(open_dataset(tmp_path, KEEP, TEN).batches(10))
    cropped = open_dataset(tmp_path, Preprocess(8, (4, 4)), TEN)
    assert next(cropped.batches(10))[0].shape == (10, 4, 4, 3)
    (tmp_path / "a_5_5.png").write_bytes(b"GIF89a")
    with pytest.raises(IntqError, match=r"a_5_5\.png does not decode"):
        list(cropped.batches(10))


def test_nothing_there(tmp_path, monkeypatch):
    with pytest.raises(IntqError, match="holds no images that intq can read: expected image files"):
        open_dataset(tmp_path, KEEP)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(IntqError, match="holds no images"):
            open_dataset(path, KEEP)
    for name in (tmp_path / "nowhere", "./nowhere", "a/b/c", ""):
        with pytest.raises(IntqError):
            open_dataset(name, KEEP)
    import huggingface_hub

    def unreachable(*_arguments, **_options):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
    with pytest.raises(IntqError, match=r"nobody/nothing .*could not be loaded.*no route to the hub"):
        open_dataset("nobody/nothing:train", KEEP)


# Labels


def test_class_indices():
    names = default_labels(1000)
    assert class_indices(["Tench", "tiger_shark"], names) == [0, 3]
    assert class_indices(["n01440764", "n01443537"], names) == [0, 1]
    assert class_indices(["n01440764", "n00000000"], names) is None
    assert class_indices(["0", "10", "2"], TEN * 2) == [0, 10, 2]
    assert class_indices(["0", "99"], TEN) is None
    assert class_indices(["a", "b"], ("x", "y")) == [0, 1]
    assert class_indices(["a", "b"], TEN) is None
    assert class_indices(["a", "b"], ()) == [0, 1]
    assert default_labels(2) == ("0", "1")
    assert len(set(imagenet())) == 1000 and list(imagenet()) == sorted(imagenet())
    assert names[243] == "bull mastiff" and names[990].startswith("buckeye")


# idx: MNIST, Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def fashion(folder, zipped: bool = True) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
    for split, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for kind, content in (("images-idx3", images[part]), ("labels-idx1", np.arange(5)[part])):
            data = idx(content)
            name = f"{split}-{kind}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(data) if zipped else data)
    return images


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist(zipped, tmp_path):
    images = fashion(tmp_path, zipped)
    (pixels, classes), *rest = open_dataset(tmp_path, GREY, TEN).batches(8)
    assert not rest and classes.tolist() == [3, 4]
    np.testing.assert_array_equal(pixels[..., 0], images[3:])
    pixels, classes = next(open_dataset(tmp_path, KEEP, TEN, split="train").batches(8))
    assert classes.tolist() == [0, 1, 2] and pixels.shape == (3, 4, 3, 3)  # luminance as RGB
    assert len(open_dataset(f"{tmp_path}:test", GREY, TEN)) == 2
    with pytest.raises(IntqError, match="has the splits t10k, train, and none of them is validation"):
        open_dataset(f"{tmp_path}:validation", GREY, TEN)
    raw = tmp_path / "torchvision" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    fashion(raw, zipped)
    assert len(open_dataset(tmp_path / "torchvision", GREY, TEN, split="train")) == 3
    one = next(tmp_path.glob("train-images*"))
    assert len(open_dataset(one, GREY, TEN)) == 3
    next(tmp_path.glob("t10k-labels*")).unlink()
    assert not open_dataset(tmp_path, GREY, TEN).labelled


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_idx(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged-idx"
    content = bytearray(idx(np.arange(24).reshape(2, 4, 3)))
    content = bytearray(gzip.compress(bytes(content), mtime=0)) if data.draw(st.booleans()) else content
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        array = read_idx(path)
    except IntqError as error:
        assert str(path) in str(error)
    else:  # a pixel changed, or a bit of the gzip header that carries nothing
        assert array.size == 24


def test_idx_sizes_must_agree(tmp_path):
    fashion(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(IntqError, match=r"\(3,\) labels for 2 images"):
        open_dataset(tmp_path, GREY, TEN)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(IntqError, match=r"expected images \(n, height, width\)"):
        open_dataset(tmp_path, GREY, TEN)


# CIFAR


def cifar(folder, classes: int, binary: bool, protocol: int = 2) -> np.ndarray:
    """CIFAR's official files with three images in each; returns the test images (3, 32, 32, 3)."""
    folder.mkdir()
    generator = np.random.default_rng(classes)
    files = {
        (10, False): [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"],
        (10, True): [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"],
        (100, False): ["train", "test"],
        (100, True): ["train.bin", "test.bin"],
    }[classes, binary]
    names = [f"name{index:02}" for index in range(classes)]
    for file in files:
        planes = generator.integers(0, 256, (3, 3, 32, 32), np.uint8)
        labels = [1, 9, 4]
        if binary:
            heads = [([0] if classes == 100 else []) + [label] for label in labels]
            rows = [bytes(head) + plane.tobytes() for head, plane in zip(heads, planes, strict=True)]
            (folder / file).write_bytes(b"".join(rows))
        else:
            key = "fine_labels" if classes == 100 else "labels"
            batch = {"data": planes.reshape(3, 3072), key: labels, "batch_label": "testing", "filenames": ["a"] * 3}
            (folder / file).write_bytes(pickle.dumps(batch, protocol))
    if binary:
        (folder / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt")).write_text("\n".join(names) + "\n")
    else:
        key = "label_names" if classes == 10 else "fine_label_names"
        (folder / ("batches.meta" if classes == 10 else "meta")).write_bytes(pickle.dumps({key: names}, protocol))
    return planes.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("binary", [False, True])
def test_cifar(classes, binary, tmp_path):
    inner = {10: "cifar-10-batches", 100: "cifar-100"}[classes] + (
        {10: "-bin", 100: "-binary"}[classes] if binary else {10: "-py", 100: "-python"}[classes]
    )
    folder = tmp_path / inner
    expected = cifar(folder, classes, binary)
    numbers = tuple(map(str, range(classes)))
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    for place in (folder, tmp_path, archive, f"{folder}:test"):
        pixels, labels = next(open_dataset(place, KEEP, numbers).batches(9))
        np.testing.assert_array_equal(pixels, expected)
        assert labels.tolist() == [1, 9, 4]
    assert len(open_dataset(folder, KEEP, numbers, split="train")) == (15 if classes == 10 else 3)
    backwards = tuple(f"name{index:02}" for index in reversed(range(classes)))
    assert open_dataset(folder, KEEP, backwards).labels.tolist() == [classes - 1 - label for label in (1, 9, 4)]


def test_cifar_of_python_2(tmp_path):
    """Python 2 wrote byte strings and numpy.core's _reconstruct, as the official archives have them."""
    data = bytes(range(256)) * 12
    state = (
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(S'u1'\nK\x00K\x01tR(K\x03S'|'\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tS'b'\ntR"
        + state
        + b"K\x00tbI00\nT\x00\x0c\x00\x00"
        + data
        + b"tb"
    )
    batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x06eu."
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(batch)
    pixels, labels = next(open_dataset(folder, KEEP, TEN).batches())
    assert labels.tolist() == [6]
    assert pixels[0, 0, :3].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_damaged_cifar(tmp_path):
    folder = tmp_path / "cifar"
    cifar(folder, 10, binary=False)
    (folder / "data_batch_3").unlink()
    with pytest.raises(IntqError, match="has the splits train, test, and none of them is val"):
        open_dataset(f"{folder}:val", KEEP, TEN)
    with pytest.raises(IntqError, match="train split lacks data_batch_3"):
        open_dataset(folder, KEEP, TEN, split="train")
    file = folder / "test_batch"
    whole = file.read_bytes()
    for cut in (1, 50, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(IntqError, match="no pickle of plain arrays"):
            open_dataset(folder, KEEP, TEN)
    good = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    for change in ({"labels": [0]}, {"labels": ["a", "b"]}, {"data": np.zeros((2, 5), np.uint8)}, {"labels": [0, 12]}):
        file.write_bytes(pickle.dumps(good | change))
        with pytest.raises(IntqError, match=r"test_batch|outside CIFAR-10"):
            open_dataset(folder, KEEP, TEN)
    archive = tmp_path / "cifar.tar.gz"
    archive.write_bytes(b"\x1f\x8b\x08\x00garbage")
    with pytest.raises(IntqError, match="no whole tar archive"):
        open_dataset(archive, KEEP, TEN)
    binary = tmp_path / "binary"
    cifar(binary, 100, binary=True)
    (binary / "test.bin").write_bytes((binary / "test.bin").read_bytes()[:-5])
    with pytest.raises(IntqError, match="no whole number of CIFAR records"):
        open_dataset(binary, KEEP)


class Evil:
    def __reduce__(self):
        return print, ("a pickle ran code",)


@pytest.mark.parametrize("value", [Evil(), np.array([Evil()], object), {"data": [Evil()]}])
def test_pickles_cannot_run_code(value, capsys):
    with pytest.raises(IntqError, match="no pickle of plain arrays"):
        safe_unpickle(pickle.dumps(value), "file")
    assert capsys.readouterr().out == ""


# The library `datasets`


@pytest.mark.parametrize("split", ["test", "train"])
def test_saved_datasets(split, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "id": datasets.Value("int32")}
    )
    parts = {}
    for offset, name in enumerate(("train", "test")):
        images = [Image.new("RGB", (6, 6), (10 * offset + index,) * 3) for index in range(3)]
        rows = {"img": images, "label": [0, 1, 1], "id": [1, 2, 3]}
        parts[name] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts[split].save_to_disk(tmp_path / "one")
    parts[split].to_parquet(tmp_path / "files" / f"{split}-00000-of-00001.parquet")
    base = 10 if split == "test" else 0
    expected = [(base, 1), (base + 1, 0), (base + 2, 0)]
    with pytest.raises(IntqError, match="has the splits train, test, and none of them is validation"):
        open_dataset(f"{tmp_path / 'both'}:validation", KEEP)
    for place in ("both", "one", "files"):
        assert contents(open_dataset(tmp_path / place, KEEP, ("dog", "cat"), split=split)) == expected
    unlabelled = parts[split].remove_columns(["label"])
    unlabelled.save_to_disk(tmp_path / "unlabelled")
    assert not open_dataset(tmp_path / "unlabelled", KEEP).labelled
    unlabelled.remove_columns(["img"]).save_to_disk(tmp_path / "no-images")
    with pytest.raises(IntqError, match="no column holds images"):
        open_dataset(tmp_path / "no-images", KEEP)
    (tmp_path / "both" / "dataset_dict.json").write_text("{")
    with pytest.raises(IntqError, match="does not load"):
        open_dataset(tmp_path / "both", KEEP)


# Crops


def test_random_crops(tmp_path):
    photos = [np.full((40, 50, 3), value, np.uint8) for value in (20, 220)]
    crops = random_crops(photos, 30, 5, (12, 16))
    assert crops.shape == (30, 12, 16, 3)
    assert set(np.unique(crops)) == {20, 220}
    np.testing.assert_array_equal(crops, random_crops(photos, 30, 5, (12, 16)))
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    slopes = np.diff(random_crops([ramp], 20, 0, (8, 8))[:, 4, :, 0].astype(int), axis=1).mean(1)
    assert (slopes[::2] > 0).all() and (slopes[1::2] < 0).all()  # every other one is mirrored
    with pytest.raises(IntqError, match="at least one image"):
        random_crops([], 3)


def test_a_few_photos_calibrate_through_random_crops_of_them(tmp_path):
    from types import SimpleNamespace

    from intq.vision import domain

    generator = np.random.default_rng(0)
    for name in range(3):
        Image.fromarray(generator.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / f"{name}.png")
    checkpoint = SimpleNamespace(preprocess=Preprocess(40, (32, 32)), input_size=(32, 32))
    middles, crops = domain.calibration(checkpoint, tmp_path, 10, seed=0)
    assert middles.shape == (3, 32, 32, 3) and crops.shape == (7, 32, 32, 3)
    (enough,) = domain.calibration(checkpoint, tmp_path, 2, seed=0)
    assert len(enough) == 2
