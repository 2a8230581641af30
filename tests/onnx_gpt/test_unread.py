"""Settings that a job would not read are usage errors that name them, wherever they come from; others stay quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.cli import main
from onnx_gpt.distilling.recipe import DistillRecipe
from onnx_gpt.parity.text import evaluation_tokens
from onnx_gpt.pruning.recipe import PruneRecipe
from onnx_gpt.recipe import Recipe
from onnx_gpt.recipe_file import recipe_of, toml_text

NO_PARITY: dict[str, Any] = {"parity": False}
TEXT = Path("a.txt")
UNREAD: list[tuple[dict[str, Any], str]] = [
    (NO_PARITY | {"tokens": 2048}, "tokens is given, and parity is not run"),
    (NO_PARITY | {"text": TEXT}, "text is given"),
    (
        NO_PARITY | {"limits": onnx_gpt.Limits(max_kl=1.0, min_top1=0.5), "tokens": 9},
        "max_kl, min_top1 and tokens are given",
    ),
    ({"calibration": TEXT}, "calibration is given"),
    (
        {"quantize": "keep", "calibration": TEXT, "calibration_windows": 3},
        "calibration and calibration_windows",
    ),
    ({"quantize": "int4", "method": "rtn", "calibration_windows": 3}, "calibration_windows is given"),
    ({"quantize": "dynamic8", "calibration": TEXT}, "calibration is given"),
    ({"block_size": 32, "table_bits": 8, "mixed": "ffn.down=8"}, "block_size, table_bits and mixed"),
    ({"method": "rtn"}, "method is given"),
    ({"quantize": "fp16", "method": "rtn"}, "method is given"),
    ({"targets": ("web",), "block_size": 32}, "block_size is given, and every model"),
    ({"targets": ("web:q8",), "method": "gptq"}, "method is given"),
    ({"targets": ("web:fp32+q8",), "calibration": TEXT}, "calibration is given"),
]
READ: list[dict[str, Any]] = [
    NO_PARITY,
    NO_PARITY | {"limits": onnx_gpt.Limits()},
    {"tokens": 9, "text": TEXT, "limits": onnx_gpt.Limits(max_kl=1.0)},
    {"kv_cache": "int8", "calibration": TEXT},
    {"quantize": "fp16", "calibration_windows": 2},
    {"quantize": "w8a8", "method": "rtn", "calibration": TEXT},
    {"targets": ("web:q8+q4",), "method": "gptq", "calibration": TEXT},
    {"targets": ("web:q8", "ort"), "quantize": "int8", "block_size": 64},
]


@pytest.mark.parametrize(("settings", "said"), UNREAD, ids=str)
def test_what_a_job_does_not_read_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        Recipe(**settings)
    assert (caught.value.code, caught.value.exit) == ("setting-unread", Exit.USAGE)
    assert said in caught.value.cause


@pytest.mark.parametrize("settings", READ, ids=str)
def test_what_a_job_reads_is_taken(settings: dict[str, Any]) -> None:
    Recipe(**settings)


def test_python_recipes_and_the_command_line_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "r.toml", tmp_path / "out"
    file.write_text("parity = false\ntokens = 2048\n[limits]\nmax_kl = 1.0\n")
    flags = [["--recipe", str(file)], ["--no-parity", "--max-kl", "1", "--tokens", "2048"]]
    said = []
    for own in flags:
        with pytest.raises(SystemExit) as ended:
            main(["optimize", "sample:tiny", "-o", str(out), *own])
        assert ended.value.code == Exit.USAGE
        said.append(capsys.readouterr().err)
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", out, parity=False, limits={"max_kl": 1.0}, tokens=2048)
    assert said == [f"error {caught.value}\n"] * 2
    assert "max_kl and tokens are given, and parity is not run" in said[0]
    assert not out.exists()


def test_a_bundles_recipe_can_be_made_again_without_parity(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(toml_text(Recipe().resolved()))
    assert recipe_of({"parity": False}, tmp_path / "r.toml") == Recipe(parity=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparsity": 0.5, "method": "magnitude", "allocate": "uniform", "calibration": TEXT}, "calibration"),
        ({"pattern": "2:4", "method": "magnitude", "windows": 8}, "windows"),
        (
            {"structured": "ffn=0.5", "method": "magnitude", "allocate": "uniform", "calibration": TEXT},
            "calibration",
        ),
        ({"structured": "layers=2", "allocate": "searched"}, "allocate"),
        ({"structured": "heads=0.5", "allocate": "searched"}, "allocate"),
        ({"structured": "vocab=used", "calibration": TEXT, "method": "fitted"}, "method"),
    ],
    ids=str,
)
def test_what_pruning_does_not_read_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        PruneRecipe(**settings)
    assert (caught.value.code, caught.value.exit) == ("setting-unread", Exit.USAGE)
    assert f"{said} is given" in caught.value.cause


def test_a_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(OnnxGptError, match="temperature is given"):
        DistillRecipe(mix=1.0, temperature=2.0)
    DistillRecipe(mix=0.9, temperature=2.0)


def test_a_folder_of_measurements_without_a_probe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match="work is given"):
        onnx_gpt.plan("sample:tiny", device="cpu-avx2", work=tmp_path)


def test_text_that_no_tokenizer_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 500)
    with pytest.raises(OnnxGptError, match="tokenizer-missing"):
        evaluation_tokens(None, 100, tokens=64, window=16, path=tmp_path / "a.txt")
    assert "random" in evaluation_tokens(None, 100, tokens=64, window=16).origin


@pytest.mark.parametrize(
    ("mixed", "said"),
    [("ffn.down=8,ffn.down=4", "twice"), ("ffn.*=8,layers.0.ffn.down=4", "the first that fits")],
)
def test_an_exception_that_nothing_is_left_for_is_refused(mixed: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match=said) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", quantize="int4", mixed=mixed, parity=False)
    assert (caught.value.code, caught.value.exit) == ("scheme-invalid", Exit.USAGE)
    assert list(tmp_path.iterdir()) == []
