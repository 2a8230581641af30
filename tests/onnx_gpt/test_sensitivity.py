"""Sensitivities and budgets of tiny decoders: what is measured is kept, and what a budget says is kept too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny

import onnx_gpt
from calibration.search.measuring import Delta, Measurer
from exporter import sources
from onnx_gpt.cli import app
from onnx_gpt.recipe import Recipe
from onnx_gpt.searching import costs
from onnx_gpt.searching.allocating import allocate
from onnx_gpt.searching.budget import Budget, parse_budget

FORMATS = "4/32,4/16,4/16+v=8/16,8/32"


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token ids for tiny decoders, which have no tokenizer; kernels take as long as their weights are wide."""
    monkeypatch.setattr(sources, "load", lambda uri: tiny(uri, 0, max_position_embeddings=128))
    monkeypatch.setattr(costs, "product_seconds", lambda shape: shape[0].bits * shape[1] * shape[2] * 1e-9)
    monkeypatch.setattr(costs, "step_seconds", lambda model, context: 1e-3)
    np.save(tmp_path / "tokens.npy", np.random.default_rng(1).integers(0, 131, 9000))
    return tmp_path / "tokens.npy"


def test_a_run_that_was_stopped_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deltas = Measurer.deltas

    def stopped(self: Measurer, *arguments: Any) -> Iterator[Delta]:
        for i, delta in enumerate(deltas(self, *arguments)):
            if i == 3:
                raise KeyboardInterrupt
            yield delta

    def watched(self: Measurer, base: Any, wanted: Any, *arguments: Any) -> Iterator[Delta]:
        asked.append(sum(map(len, wanted.values())))
        return deltas(self, base, wanted, *arguments)

    options = {"options": FORMATS, "calibration": corpus, "work": tmp_path / "work"}
    asked: list[int] = []
    monkeypatch.setattr(Measurer, "deltas", stopped)
    with pytest.raises(KeyboardInterrupt):
        onnx_gpt.sensitivity("llama", **options)
    monkeypatch.setattr(Measurer, "deltas", watched)
    found = onnx_gpt.sensitivity("llama", **options)
    total = sum(map(len, found.losses.values()))
    assert (total, asked) == (2 * (4 + 3 * 3) + 3, [total - 3])
    again = onnx_gpt.sensitivity("llama", **options)
    assert asked[1:] == [0]
    assert again.json() == found.json()
    whole = onnx_gpt.sensitivity("llama", **options | {"work": tmp_path / "other"})
    assert whole.json() == found.json()
    flags = ["--options", FORMATS, "--calibration", str(corpus), "--work", str(tmp_path / "work")]
    app()(["sensitivity", "llama", *flags, "--json"], exit_on_error=False, result_action="return_value")
    assert json.loads(capsys.readouterr().out) == found.json()
    app()(["sensitivity", "llama", *flags], exit_on_error=False, result_action="return_value")
    assert "layers.1.ffn.gate_up" in capsys.readouterr().out


def test_a_size_is_kept_by_the_files_and_the_recipe_makes_them_again(corpus: Path, tmp_path: Path) -> None:
    options = {"calibration": corpus, "parity": False, "verify": False, "calibration_windows": 20}
    report = onnx_gpt.optimize(
        "llama", tmp_path / "one", budget="size=130kB", work=tmp_path / "work", **options
    )
    size = report.files["model.onnx"] + report.files["model.onnx.data"]
    assert 110_000 < size <= 130_000
    assert report.search["chosen"]["bytes"] >= size
    kls = [point["kl"] for point in report.search["frontier"]]
    assert kls == sorted(kls, reverse=True)
    onnx_gpt.optimize("llama", tmp_path / "again", recipe=tmp_path / "one" / "recipe.toml")
    for name in ("model.onnx", "model.onnx.data", "recipe.toml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_limits_bind(corpus: Path, tmp_path: Path) -> None:
    recipe = Recipe("int4", method="gptq", calibration=corpus, parity=False)

    def solve(**limits: float) -> Any:
        budget = Budget(**limits)
        return allocate("llama", budget, recipe, options=FORMATS, work=tmp_path / "work")

    near, nearer = solve(kl=0.03), solve(kl=0.01)
    assert near.measured_kl <= 0.03
    assert nearer.measured_kl <= 0.01
    assert near.chosen.size < nearer.chosen.size
    fast = solve(decode=1 / 1.1e-3)
    assert fast.chosen.step <= 1.1001e-3
    assert fast.chosen.kl > solve(size=1e9).chosen.kl
    both = solve(kl=fast.measured_kl * 1.3, decode=1 / 1.15e-3)
    assert both.measured_kl <= fast.measured_kl * 1.3
    assert both.chosen.step <= 1.1501e-3
    for limits in ({"size": 1e4}, {"kl": 1e-9}, {"decode": 1e9}):
        with pytest.raises(onnx_gpt.OnnxGptError) as caught:
            solve(**limits)
        assert caught.value.code == "budget-unmet"


def test_a_budget_and_widths_do_not_go_together(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.optimize("llama", tmp_path / "out", budget="size=1MB", block_size=32, calibration=corpus)
    assert caught.value.code == "scheme-invalid"


def test_budgets_are_read() -> None:
    assert parse_budget("size=90MB") == Budget(size=90e6)
    assert parse_budget("size=1.5GiB, kl=3e-2,decode=150") == Budget(1.5 * 2**30, 0.03, 150)


@pytest.mark.parametrize(
    "text", ["", "size", "size=", "size=90", "size=9XB", "kl=0", "kl=-1", "kl=1MB", "x=1", "kl=1,kl=2"]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        parse_budget(text)
    assert caught.value.code == "budget-invalid"
