"""Recipes as files: nothing is lost there and back, nothing unknown is taken, flags go first, bytes come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cyclopts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

import onnx_gpt
from exporter import sources
from onnx_gpt.cli import app
from onnx_gpt.commands._settings import LIMITS
from onnx_gpt.optimizing.pipeline import run
from onnx_gpt.progress import Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.recipe_file import FILE, read, recipe_of, toml_text, types

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
ROLES = st.sampled_from(["attention.v", "layers.0-2+7.ffn.down", "*", "table"])
MIXED = st.lists(
    st.tuples(ROLES, st.sampled_from(["8", "8/64", "float"])), max_size=3, unique_by=lambda pair: pair[0]
)
LIMIT = st.none() | st.floats(1e-6, 10)
SHARE = st.none() | st.floats(0, 1)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    common: dict[str, Any] = {
        "context_length": draw(st.none() | st.integers(1, 1 << 20)),
        "parity": draw(st.booleans()),
        "verify": draw(st.booleans()),
        "passes": draw(st.none() | st.just("fold, attention, clean")),
        "targets": draw(st.sampled_from([("ort",), ("ort", "genai")])),
    }
    if common["parity"]:
        limits = onnx_gpt.Limits(max_kl=draw(LIMIT), min_top1=draw(SHARE), max_perplexity_ratio=draw(LIMIT))
        common |= {
            "limits": None if limits == onnx_gpt.Limits() else limits,
            "text": draw(st.none() | TEXT.map(Path)),
            "tokens": draw(st.none() | st.integers(1, 1 << 30)),
        }
    if draw(st.booleans()):
        return Recipe(quantize=draw(st.sampled_from(["none", "keep"])), **common)
    return Recipe(
        quantize=draw(st.sampled_from(["int4", "int8"])),
        block_size=draw(st.sampled_from([None, 16, 128])),
        table_bits=draw(st.sampled_from([None, 4, 8])),
        calibration=draw(st.none() | TEXT.map(Path)),
        calibration_windows=draw(st.none() | st.integers(1, 999)),
        method="gptq",
        mixed=",".join(f"{role}={grid}" for role, grid in draw(MIXED)),
        **common,
    )


@settings(deadline=None, max_examples=60)
@given(recipes())
def test_a_recipe_is_what_its_file_says(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    file = tmp_path_factory.mktemp("recipe") / FILE
    for one in (recipe, recipe.resolved()):
        file.write_text(toml_text(one), "utf-8")
        assert recipe_of({}, file) == one
    assert recipe.resolved().resolved() == recipe.resolved()


def test_what_is_unknown_or_of_another_type_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text(
        'quantise = "int4"\nblock_size = "32"\nkv_cache = "half"\n[limits]\nmax_kl = true\n', "utf-8"
    )
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        read(file)
    assert caught.value.code == "recipe-invalid"
    found = "\n".join(caught.value.details)
    assert "did you mean quantize?" in found
    for name in ("block_size", "kv_cache", "limits.max_kl"):
        assert f"{name}: input should be" in found


@pytest.mark.parametrize("content", [b"quantize = ", b"\xff\xfe", None])
def test_what_is_no_toml_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / FILE
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        read(file)
    assert caught.value.code == "recipe-unreadable"


def test_settings_go_before_a_files_own(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text('quantize = "int4"\nblock_size = 64\n[limits]\nmax_kl = 0.1\nmin_top1 = 0.5\n', "utf-8")
    found = recipe_of({"block_size": 32, "limits": {"max_kl": 0.2}, "target": "ort, genai"}, file)
    assert (found.quantize, found.block_size, found.targets) == ("int4", 32, ("ort", "genai"))
    assert found.limits == onnx_gpt.Limits(max_kl=0.2, min_top1=0.5)


def test_python_refuses_a_setting_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", quantise="int4")
    assert caught.value.code == "recipe-invalid"
    assert not any(tmp_path.iterdir())


def test_every_setting_is_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    app()(["optimize", "--help"], exit_on_error=False, result_action="return_value")
    shown = capsys.readouterr().out
    for name in [*(types().keys() - {"targets", "limits"}), *LIMITS, "target"]:
        assert f"--{name.replace('_', '-')} " in shown
    assert "choices: none, int8" in shown
    with pytest.raises(cyclopts.CycloptsError):
        app()(["optimize", "x", "-o", "y", "--no-such", "1"], exit_on_error=False, print_error=False)


def test_a_bundles_recipe_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", lambda uri: tiny(uri, 0))
    options = {
        "quantize": "int4",
        "mixed": "table=8/16,layers.1.attention.v=float,ffn.down=8",
        "parity": False,
    }
    onnx_gpt.optimize("llama", tmp_path / "one", verify=False, **options)
    recipe = tmp_path / "one" / FILE
    onnx_gpt.optimize("llama", tmp_path / "again", recipe=recipe)
    for name in ("model.onnx", "model.onnx.data", FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    report = run("llama", tmp_path / "other", recipe_of({"mixed": ""}, recipe), Silent())
    assert report.files["model.onnx.data"] != (tmp_path / "one" / "model.onnx.data").stat().st_size
