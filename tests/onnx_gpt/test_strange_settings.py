"""Recipes, budgets and small files as no program of ours writes them: nested, endless, marked, from another tool."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_decoders import save_bundle

import onnx_gpt
from calibration.search.units import options_of
from exporter.errors import Exit, OnnxGptError
from exporter.sources.sample import cache_folder
from onnx_gpt.bundle.reading import read_bundle, require_readable
from onnx_gpt.comparing import _parent
from onnx_gpt.distilling.recipe import DistillRecipe
from onnx_gpt.generation.generator import Generator
from onnx_gpt.generation.sampling import Sampling, distribution
from onnx_gpt.lineage import lineage_of
from onnx_gpt.parity.told import told_beside
from onnx_gpt.planning.device import device_of
from onnx_gpt.pruning.recipe import PruneRecipe
from onnx_gpt.recipe_file import read
from onnx_gpt.searching.budget import parse_budget

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [f"tokens = {DEEP}", f"tokens = {'9' * 5000}", "tokens = 1\0"])
def test_a_recipe_that_python_cannot_hold_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(OnnxGptError, match="recipe-unreadable"):
        read(tmp_path / "r.toml")


def test_a_recipe_may_begin_with_a_mark_of_its_byte_order(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('quantize = "int8"', "utf-8-sig")
    assert read(tmp_path / "r.toml") == {"quantize": "int8"}


@pytest.mark.parametrize(
    ("text", "word"),
    [("limits = {maxkl = 0.1}", "did you mean limits.max_kl"), ("block_sise = 3", "did you mean block_size")],
)
def test_a_name_with_a_slip_is_guessed(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(OnnxGptError, match=word):
        read(tmp_path / "r.toml")


@pytest.mark.parametrize("text", ["decode=1e400", "size=1e400MB", "kl=0", "size=90", "size=90MB,size=80MB"])
def test_a_budget_that_is_no_number_is_none(text: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        parse_budget(text)
    assert (caught.value.code, caught.value.exit) == ("budget-invalid", Exit.USAGE)


def test_json_that_is_nested_without_end_is_a_bad_file(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path)
    (bundle / "report.json").write_text(DEEP)
    assert lineage_of(str(bundle)) == ()
    assert _parent(str(bundle), ["first", str(bundle)]) == "first"
    with pytest.raises(OnnxGptError, match="bundle-invalid"):
        told_beside(bundle / "model.onnx")
    (bundle / "config.json").write_text(DEEP)
    with pytest.raises(OnnxGptError, match="bundle-invalid"):
        read_bundle(bundle)


def test_a_bundle_that_is_not_whole_says_what_is_missing(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path)
    model = onnx.load(bundle / "model.onnx")
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="data", size_threshold=1024)
    Generator(bundle, threads=1)
    os.truncate(bundle / "data", (bundle / "data").stat().st_size - 1)
    with pytest.raises(OnnxGptError, match="onnx-data-invalid"):
        Generator(bundle, threads=1)
    (bundle / "data").unlink()
    with pytest.raises(OnnxGptError, match="onnx-data-missing"):
        Generator(bundle, threads=1)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path)
    graph = bundle / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"logits", b"log\xffts"))
    with pytest.raises(OnnxGptError, match="onnx-invalid"):
        Generator(bundle, threads=1)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.onnx"])
def test_a_model_outside_its_folder_is_not_opened(name: str, tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")
    (bundle / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": name}}}))
    with pytest.raises(OnnxGptError, match="outside the folder"):
        read_bundle(bundle)


def test_temperatures_of_any_size_are_numbers(recwarn: pytest.WarningsRecorder) -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    for temperature, chances in ((1e300, [1 / 3] * 3), (1e-300, [0, 1, 0])):
        _, found = distribution(logits, Sampling(temperature))
        assert found == pytest.approx(chances)
    assert len(recwarn) == 0


def test_a_user_without_a_home_is_told_where_a_cache_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ONNX_GPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(OnnxGptError, match="ONNX_GPT_CACHE"):
        cache_folder()


@pytest.mark.parametrize("target", ["web:q8,web:q4", "ort,ort:model"])
def test_a_target_in_two_parts_would_be_two_bundles_in_one_folder(target: str, tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match="named twice") as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", target=target, parity=False)
    assert caught.value.exit == Exit.USAGE


def test_end_tokens_of_either_file_are_ids() -> None:
    require_readable({"eos_token_id": 5}, {"generation_config.json": b'{"eos_token_id": [5, 6]}'})
    with pytest.raises(OnnxGptError, match="config-invalid"):
        require_readable({"eos_token_id": "x"}, {"generation_config.json": b'{"eos_token_id": 5}'})


@pytest.mark.parametrize("text", [f"x = {DEEP}", f"x = {'9' * 5000}"])
def test_a_device_that_python_cannot_hold_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(OnnxGptError, match="device-invalid"):
        device_of(str(tmp_path / "d.toml"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: onnx_gpt.ranges("sample:tiny", windows=0),
        lambda: onnx_gpt.ranges("sample:tiny", windows=-1),
        lambda: DistillRecipe(batch=10**8),
        lambda: options_of(" , "),
        lambda: PruneRecipe(),
    ],
    ids=["no windows", "fewer windows", "batch", "formats", "prune nothing"],
)
def test_nothing_and_too_much_are_usage_errors(call: Callable[[], object]) -> None:
    with pytest.raises(OnnxGptError) as caught:
        call()
    assert caught.value.exit == Exit.USAGE
