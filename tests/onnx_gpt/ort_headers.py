"""Headers of onnxruntime's C API. Its wheels have the library and no headers (microsoft/onnxruntime issue 18840).

They are in the release archives, in NuGet's package, and in an npm package for Unity, MIT as well, which is what can
be had here with a plain package manager: 150 MB, of which 1 MB is kept in the user's cache. Its API is older than the
library's, which is compatible with it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

import pytest

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
HEADER = "onnxruntime_c_api.h"


@functools.cache
def headers() -> Path:
    """A folder with the header; ONNXRUNTIME_INCLUDE names one. Skips the test where it cannot be had."""
    given = os.environ.get("ONNXRUNTIME_INCLUDE")
    if given:
        return Path(given)
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnx-gpt" / "onnxruntime-headers"
    )
    if not (cache / HEADER).exists():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(cache)
    return cache


def _fetch(cache: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not here, and ONNXRUNTIME_INCLUDE names no headers")
    done = subprocess.run(
        [npm, "pack", PACKAGE], cwd=cache, capture_output=True, text=True, check=False, timeout=300
    )
    archives = list(cache.glob("*.tgz"))
    if done.returncode or not archives:
        pytest.skip(f"headers cannot be had: {done.stderr[-200:]}")
    with tarfile.open(archives[0], "r|gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix == ".h" and path.parts[-2:-1] == ("Headers",):
                content = archive.extractfile(member)
                if content is not None:
                    (cache / path.name).write_bytes(content.read())
    archives[0].unlink()
