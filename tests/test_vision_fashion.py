"""scripts/train_fashion and scripts/accuracy_mixed from idx files to the tables, on images learned in a second."""

import gzip
import json
import os
import subprocess

import numpy as np
import pytest

from intq.vision.checkpoint import load


def write(path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def cache(tmp_path):
    """A cache whose Fashion-MNIST is stripes: the class is their distance."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 640), ("t10k", 60)):
        labels = np.arange(count) % 10
        stripes = 127 * np.sin(np.arange(28)[None] * (labels[:, None] + 1) / 4)
        images = 128 + np.repeat(stripes[:, :, None], 28, 2) + generator.normal(0, 8, (count, 28, 28))
        write(folder / f"{split}-images-idx3-ubyte.gz", images.clip(0, 255))
        write(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return tmp_path


@pytest.mark.parametrize("name", ["small_resnet", "small_squeezenext", "small_inception"])
def test_trains_once_and_compares(name, cache, root):
    command = [root / "scripts" / "train_fashion", "--models", name, "--epochs", "1"]
    command += ["--samples", "16", "--threads", "1", "--json"]
    environment = {**os.environ, "INTQ_CACHE": str(cache)}
    results = []
    for _ in range(2):
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        results.append(json.loads(run.stdout))
        assert ("epoch 1 of 1" in run.stderr) == (len(results) == 1)
    (row,) = results[0]
    assert results[1] == [row]
    assert (row["model"], row["examples"]) == (name, 60)
    assert row["difference"] == pytest.approx(100 * (row["int8"] - row["float"]))
    (trained,) = (cache / "fashion-models").iterdir()
    assert load(trained).input_size == (28, 28)


def test_mixed_precision_is_measured_once(cache, root):
    command = [root / "scripts" / "accuracy_mixed", "--networks", "small_resnet", "--samples", "16", "--threads", "1"]
    command += ["--rounding", "nearest", "--epochs", "0.2", "--sensitivity", "fisher", "--trials", "4", "--json"]
    environment = {**os.environ, "INTQ_CACHE": str(cache)}

    def table(*options: str) -> list[dict]:
        run = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    best, tried = table("--compare", "--methods", "ilp", "evolution")
    assert (best["method"], best["sensitivity"], best["evaluations"]) == ("ilp", "fisher", 0)
    assert tried["method"] == "evolution" and 1 <= tried["evaluations"] <= 4
    for row in (best, tried):
        assert row["bops"] <= 0.5 and row["examples"] == 60
    answers = {path: path.read_bytes() for path in (cache / "mixed").glob("*.json")}
    assert answers and not list((cache / "mixed").glob("*.training"))
    (row,) = table("--rows", "mixed+DIST")
    assert (row["row"], row["difference"], row["bops"]) == ("mixed+DIST", best["tuned"], best["bops"])
    assert row["difference"] == pytest.approx(100 * (row["top1"] - row["float"]), abs=1e-3)
    assert {path: path.read_bytes() for path in (cache / "mixed").glob("*.json")} == answers
