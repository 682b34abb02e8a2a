"""JSON files that people keep and programs read: versioned, written whole or not at all, checked when read."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intq.errors import IntqError


def write_document(path: str | Path, kind: str, version: int, fields: Mapping[str, Any]) -> None:
    """Write {"format": kind, "version": version, ...fields}, replacing what was there only once it is complete.

    Raises IntqError when the place cannot be written.
    """
    write_text(path, json.dumps({"format": kind, "version": version, **fields}, indent=1, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file, replacing what was there only once it is complete. Raises IntqError when it cannot be written."""
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # tempfile makes it private
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise IntqError(f"{path} cannot be written: {error.strerror}") from None


def read_document(path: str | Path, kind: str, version: int) -> dict[str, Any]:
    """The fields of a file that :func:`write_document` wrote.

    Raises IntqError when there is none, it is no JSON, of another format, or of a newer version.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IntqError(f"there is no file {path}") from None
    except OSError as error:
        raise IntqError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise IntqError(f"{path} is no JSON, or damaged ({error})") from None
    if not isinstance(document, dict) or document.get("format") != kind:
        raise IntqError(f'{path} is not of the expected kind: it has no field "format": "{kind}"')
    found = document.get("version")
    if type(found) is not int or found < 1:
        raise IntqError(f"{path} has no valid version number, found {found!r}")
    if found > version:
        raise IntqError(f"{path} has format version {found}, this intq reads up to {version}; upgrade intq")
    return document


# ---- what a field must be; each raises ValueError saying what was found ------------------------------------------


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, found {_short(value)}")
    return value


def number(value: Any, what: str, least: float = -math.inf) -> float:
    """A finite number, ``least`` or more."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        fits = fits and math.isfinite(value) and value >= least
    except OverflowError:  # an integer beyond any float
        fits = False
    if not fits:
        bound = "" if least == -math.inf else f", {least:g} or more"
        raise ValueError(f"{what} must be a finite number{bound}, found {_short(value)}")
    return value


def whole(value: Any, what: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{what} must be a whole number, {least} or more, found {_short(value)}")
    return value


def table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, found {_short(value)}")
    return value


def listed(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, found {_short(value)}")
    return value


def numbers(value: Any, what: str) -> dict[str, float]:
    """{name: finite number}."""
    return {name: number(each, f"{what}[{name!r}]") for name, each in table(value, what).items()}


def _short(value: Any, most: int = 40) -> str:
    words = repr(value)
    return words if len(words) <= most else words[:most] + "..."
