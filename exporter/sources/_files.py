"""A checkpoint's files, which anyone may have written: none outside its folder, bounded size, strict JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from exporter.errors import OnnxGptError, rejected

JSON_LIMIT = 32 << 20
"""Bytes of a JSON document that we parse. The largest index files on the Hub are below 10 MB."""


def inside(folder: Path, name: str) -> Path:
    """The path of a file of the folder that is given by a bare name, links resolved.

    A link may lead elsewhere inside the folder. It may also lead to the ``blobs`` of a Hugging Face cache,
    whose ``snapshots/REVISION`` folders hold nothing but such links. Any other link could put a private file
    of this machine into a bundle that is then published.

    Raises:
        OnnxGptError: ``path-escapes`` for a name that is a path and for a link that leaves the folder;
            ``file-irregular`` for a directory, pipe or device; ``file-unreadable``.
    """
    if not name or not name.isprintable() or Path(name).name != name or "\\" in name or name == "..":
        raise rejected(
            "path-escapes",
            f"{str(folder)!r} refers to {name!r}, which is not the bare name of a file",
            "put every weight file into the checkpoint's folder and name it there",
        )
    try:
        home, path = folder.resolve(), (folder / name).resolve()
        irregular = path.exists() and not path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle
        raise unreadable(folder / name, error) from error
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(path.is_relative_to(allowed) for allowed in homes):
        raise rejected(
            "path-escapes",
            f"{str(folder / name)!r} is a link to {str(path)!r}, outside the checkpoint's folder",
            "replace the link by the file that it leads to",
        )
    if irregular:
        raise rejected(
            "file-irregular", f"{str(folder / name)!r} is not a regular file", "put the file itself there"
        )
    return path


def has(folder: Path, name: str) -> bool:
    """Whether the folder holds a file, or a link that claims to be one."""
    return os.path.lexists(folder / name)


def read_bytes(folder: Path, name: str, limit: int) -> bytes:
    """A whole file of the folder, at most ``limit`` bytes of it.

    Raises:
        OnnxGptError: ``file-unreadable``, ``file-too-large``, or what `inside` raises.
    """
    path = inside(folder, name)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > limit:
        raise rejected(
            "file-too-large",
            f"{str(path)!r} is larger than {limit >> 20} MiB",
            "check that this is the file it is named after",
        )
    return data


def unreadable(path: Path, error: OSError | RuntimeError) -> OnnxGptError:
    """The error for a file that the system does not give."""
    reason = getattr(error, "strerror", None) or error
    return rejected("file-unreadable", f"{str(path)!r:.400} cannot be read: {reason}", "check the file")


def parse_json_object(data: bytes, what: str, code: str) -> dict[str, Any]:
    """A JSON object in UTF-8, without NaN, without a key given twice.

    Args:
        what: names the document in an error.
        code: the error's code.

    Raises:
        OnnxGptError: ``code``.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
        return value

    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
        # an escape can spell half a surrogate pair, which no terminal or file can then hold
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise rejected(code, f"{what} is nested too deeply", "write the file again") from error
    except ValueError as error:  # not UTF-8, not JSON, an integer of thousands of digits
        raise rejected(code, f"{what} is not valid JSON: {error}", "write the file again") from error
    if not isinstance(value, dict):
        raise rejected(
            code, f"{what} holds no JSON object but a {type(value).__name__}", "write the file again"
        )
    return value
