"""Models of the Hub, with the download replaced: what is asked for, and what its failures become."""

from __future__ import annotations

import errno
import fnmatch
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from exporter.errors import Exit, OnnxGptError
from exporter.sources import hub, load


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file({"model.norm.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[tuple[str, dict[str, Any]]]:
    """Let snapshot_download return or raise, and note how it is called."""
    calls = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append((name, options))
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize(
    ("uri", "name", "revision"),
    [("hf:org/name", "org/name", None), ("hf:gpt2", "gpt2", None), ("hf:org/name@v1.0", "org/name", "v1.0")],
)
def test_a_snapshot_is_opened_as_a_directory(
    monkeypatch: pytest.MonkeyPatch, snapshot: Path, uri: str, name: str, revision: str | None
) -> None:
    calls = answer(monkeypatch, snapshot)
    checkpoint = load(uri)
    assert checkpoint.uri == uri
    assert list(checkpoint.weights) == ["model.norm.weight"]
    ((asked, options),) = calls
    assert (asked, options["revision"]) == (name, revision)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", False),
        ("modeling_custom.py", False),
        ("consolidated.safetensors", False),
        ("onnx/model.onnx", False),
        ("original/params.json", False),
    ],
)
def test_only_data_is_fetched(
    monkeypatch: pytest.MonkeyPatch, snapshot: Path, name: str, wanted: bool
) -> None:
    ((_, options),) = (answer(monkeypatch, snapshot), load("hf:org/name"))[0]
    assert any(fnmatch.fnmatch(name, pattern) for pattern in options["allow_patterns"]) == wanted


RESPONSE = Mock(headers={}, status_code=403)


@pytest.mark.parametrize(
    ("failure", "code", "exit"),
    [
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "hub-missing", Exit.REJECTED),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "hub-missing", Exit.REJECTED),
        (errors.GatedRepoError("403", response=RESPONSE), "hub-gated", Exit.REJECTED),
        (errors.HFValidationError("bad name"), "hub-name", Exit.REJECTED),
        (errors.LocalEntryNotFoundError("no connection\nand no cache"), "network", Exit.NETWORK),
        (errors.OfflineModeIsEnabled("offline"), "network", Exit.NETWORK),
        (errors.HfHubHTTPError("500", response=RESPONSE), "network", Exit.NETWORK),
        (TimeoutError(), "network", Exit.NETWORK),
        (ConnectionResetError("reset"), "network", Exit.NETWORK),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_failure_has_a_code_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, code: str, exit: Exit
) -> None:
    answer(monkeypatch, failure)
    with pytest.raises(OnnxGptError) as caught:
        load("hf:org/name@main")
    assert (caught.value.code, caught.value.exit) == (code, exit)
    assert "org/name" in str(caught.value) and "and no cache" not in str(caught.value)


def test_a_full_disk_is_not_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        load("hf:org/name")


def test_offline_the_cache_answers_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OnnxGptError) as caught:
        hub.load("hf:org/name")
    assert caught.value.exit == Exit.NETWORK
    repository = tmp_path / "models--org--name"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs" / "1").write_text("{}")
    save_file({"a": np.ones(3, np.float32)}, repository / "blobs" / "2")
    (folder / "config.json").symlink_to("../../blobs/1")
    (folder / "model.safetensors").symlink_to("../../blobs/2")
    assert list(hub.load("hf:org/name").weights) == ["a"]
