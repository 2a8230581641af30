"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.staging import require_space, staged


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_block_becomes_the_output(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as stage:
        (stage / "a").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "x"
    assert leftovers(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("failure", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failed_block_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)), staged(tmp_path / "out") as stage:
        (stage / "a").write_text("x")
        raise failure
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [(errno.ENOSPC, "disk-full", Exit.RESOURCES), (errno.EACCES, "output-unwritable", Exit.ENVIRONMENT)],
)
def test_errors_of_the_disk_are_explained(tmp_path: Path, number: int, code: str, status: Exit) -> None:
    with pytest.raises(OnnxGptError) as caught, staged(tmp_path / "out") as stage:
        raise OSError(number, "said the disk", str(stage / "model.onnx"))
    assert (caught.value.code, caught.value.exit) == (code, status)
    assert leftovers(tmp_path) == []


def test_an_error_of_reading_the_source_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "gone", "/elsewhere/model.safetensors")
    assert leftovers(tmp_path) == []


def test_an_existing_output_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(OnnxGptError) as caught, staged(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert caught.value.exit == Exit.EXISTS
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_an_output_that_appears_meanwhile_wins(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught, staged(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert caught.value.exit == Exit.EXISTS
    assert leftovers(tmp_path) == ["out"]


def test_more_than_the_disk_holds_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        require_space(tmp_path / "not" / "yet" / "there", 1 << 60)
    assert caught.value.exit == Exit.RESOURCES
