"""`.nemo` archives: tar files, packed or not, of a configuration, weights and a tokenizer. Read without extracting.

An archive comes from anywhere. Its members are read into memory: no path in it decides where a file goes, links and
devices are refused, and sizes are checked before a byte is read.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from intq.errors import IntqError

MOST_MEMBERS = 1000
LARGEST = 4 << 30  # bytes of all the members together, unpacked


def read(path: Path) -> dict[str, bytes]:
    """{path inside: content} of the archive's files.

    Raises IntqError when it is no tar archive or is damaged, or holds a member that leads out of it, is no regular
    file, comes twice, or makes it absurdly large.
    """
    files: dict[str, bytes] = {}
    left = LARGEST
    try:
        with tarfile.open(path) as archive:
            for count, member in enumerate(archive):
                name = _checked(member, path)
                left -= member.size
                if count >= MOST_MEMBERS or left < 0:
                    raise IntqError(
                        f"{path} is absurdly large: expected at most {MOST_MEMBERS} files of together at most "
                        f"{LARGEST >> 30} GiB"
                    )
                if member.isdir():
                    continue
                if name in files:
                    raise IntqError(f"{path} holds {name} twice: it was not written by NeMo; nothing was taken from it")
                files[name] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0]
        raise IntqError(
            f"{path} is not a whole .nemo archive: expected a tar file, packed or not ({reason})"
        ) from error
    return files


def _checked(member: tarfile.TarInfo, path: Path) -> str:
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\\" in member.name:
        raise IntqError(f"{path} holds a file at the unsafe path {member.name!r}; nothing was taken from it")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise IntqError(f"{path} holds {member.name!r}, a link or a device; expected files alone; nothing was taken")
    return str(place)


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """An archive of these files at `path`, whole or not at all. The same files give the same bytes."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
