"""Files as digests, and SHA256SUMS: the list that ``sha256sum -c`` checks where there is no Python."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
READERS = 2
"""Threads that read and hash; hashing leaves the interpreter's lock."""

_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal. A link is not followed.

    Raises:
        OSError: where it cannot be read, or is a link.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path.name} is not a regular file")
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of files of a folder, sorted."""
    ordered = sorted(names)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(ordered, pool.map(lambda name: sha256_of(folder / name), ordered), strict=True))


def names_below(folder: Path) -> list[str]:
    """What lies in a folder and is no folder, links and devices too, as paths with slashes; follows no link."""
    folders = [""]
    found: list[str] = []
    while folders:
        at = folders.pop()
        with os.scandir(folder / at) as entries:
            for entry in entries:
                below = folders if entry.is_dir(follow_symlinks=False) else found
                below.append(f"{at}/{entry.name}" if at else entry.name)
    return sorted(found)


def checksums_text(digests: Mapping[str, str]) -> str:
    """SHA256SUMS of files, as coreutils writes it."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def parse_checksums(data: bytes) -> dict[str, str] | None:
    """The digests in a SHA256SUMS that `checksums_text` wrote; None for anything else, be it a byte away."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    found = {match[2]: match[1] for match in lines if match is not None}
    return found if checksums_text(found) == text else None
