"""Names with brackets, which are markup to the library that prints; folders that are not there; prompts from a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tiny_decoders import save_bundle

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.staging import write_file
from onnx_gpt.bundle.targets import targets
from onnx_gpt.cli import main
from onnx_gpt.commands._show import print_table


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["[/b]", "[red]x", ":smile:", "sp ace", "new\nline", "ü😀"])
def test_an_output_may_be_called_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status("optimize", "sample:tiny", f"--out={name}", "--no-parity") == 0
    assert (tmp_path / name / "model.onnx").is_file()
    out, err = capsys.readouterr()
    assert all(part in out and part in err for part in name.split("\n"))


def test_tables_print_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("[b]", "x"), [("[/b]", ":tada:")], "[i]title")
    out = capsys.readouterr().out
    assert all(part in out for part in ("[b]", "[/b]", ":tada:", "[i]title"))


def test_a_small_file_of_results_gets_its_folder(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b.svg", "x")
    assert (tmp_path / "a" / "b.svg").read_text() == "x"
    with pytest.raises(OnnxGptError) as caught:
        write_file(tmp_path / "a" / "b.svg" / "c", "x")
    assert (caught.value.code, caught.value.exit) == ("output-unwritable", Exit.ENVIRONMENT)


class Piped:
    """stdin with bytes in it."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_a_prompt_comes_from_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = save_bundle(tmp_path)
    expected = onnx_gpt.Generator(bundle, threads=1).generate("Once\nupon", max_new_tokens=4).text
    ask = ("run", str(bundle), "--prompt", "-", "--max-new-tokens", "4", "--threads", "1")
    monkeypatch.setattr("sys.stdin", Piped(b"Once\nupon\n"))
    assert status(*ask) == 0
    assert capsys.readouterr().out == f"{expected}\n"
    monkeypatch.setattr("sys.stdin", Piped(b"\xff\xfe"))
    assert status(*ask) == Exit.REJECTED
    assert "prompt-not-text" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Piped(b""))
    assert status(*ask) == Exit.REJECTED
    assert status("run", str(bundle), "--prompt", "-5 + 3", "--stop", "-", "--threads", "1") == 0


def test_help_names_every_target(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert status("optimize", "--help") == 0
    told = capsys.readouterr().out
    assert all(f"{name}" in told for name in targets())
