"""`module:`: the user's own nn.Module is exported, proven and run."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from exporter.sources.module import logits_in
from onnx_gpt.report import Parity

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def beside_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


@pytest.mark.parametrize("factory", ["fused", "written_out"])
def test_a_module_becomes_a_bundle_that_is_the_module(factory: str, tmp_path: Path) -> None:
    report = onnx_gpt.optimize(f"module:my_decoder:{factory}", tmp_path / "out", tokens=256)
    assert isinstance(report.parity, Parity)
    assert report.parity.verdict == "pass" and report.parity.mean_kl < 1e-9
    assert report.graph.ops["com.microsoft::GroupQueryAttention"] == 2
    assert "random tokens" in report.parity.text, (
        "a module has no tokenizer, and the report says what was used"
    )
    import my_decoder

    tokens = np.arange(5, 16)
    expected = getattr(my_decoder, factory)().eval()(torch.from_numpy(tokens)[None])[0].detach().numpy()
    generator = onnx_gpt.Generator(tmp_path / "out")
    assert np.abs(generator.prefill(tokens.tolist(), every=True) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("uri", "status", "word"),
    [
        ("module:my_decoder", Exit.REJECTED, "names no factory"),
        ("module:my_decoder:missing", Exit.REJECTED, "missing"),
        ("module:no_such_module:fused", Exit.REJECTED, "no_such_module"),
        ("module:my_decoder:NOT_CALLABLE", Exit.REJECTED, "not callable"),
        ("module:my_decoder:untraceable", Exit.UNSUPPORTED, "torch.onnx.export"),
        ("module:my_decoder:broken", Exit.REJECTED, "the factory's own mistake"),
        ("module:my_decoder:ends", Exit.REJECTED, "usage: train.py"),
        ("module:my_decoder:number", Exit.REJECTED, "gave a int"),
        ("module:my_decoder:unloaded", Exit.REJECTED, "without weights"),
        ("module:my_broken_module:fused", Exit.REJECTED, "ZeroDivisionError: at import"),
        ("module:../elsewhere:fused", Exit.REJECTED, "relative import"),
        ("module:my_decoder:LastOnly", Exit.REJECTED, "not logits of every token"),
        ("module:my_decoder:Noisy", Exit.REJECTED, "other logits when it is called again"),
        ("module:my_decoder:Masked", Exit.REJECTED, "argument: 'mask'"),
        ("module:my_decoder:Flat", Exit.REJECTED, "no logits [B, S, V]"),
    ],
)
def test_a_module_that_cannot_be_used_is_explained(uri: str, status: Exit, word: str, tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize(uri, tmp_path / "out")
    assert caught.value.exit == status
    assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_module_gets_a_cache_and_can_be_quantized(tmp_path: Path) -> None:
    report = onnx_gpt.optimize("module:my_decoder:fused", tmp_path / "out", quantize="int8", tokens=256)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert {"decode", "batch"} <= report.parity.checks.keys()
    assert report.graph.ops["com.microsoft::GroupQueryAttention"] == 2
    assert report.graph.ops["com.microsoft::MatMulNBits"] == 9  # four in each of two layers, and the head


def test_a_module_as_a_training_script_leaves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """(logits, loss), half weights, a context shorter than a window of text; what it prints is no result."""
    report = onnx_gpt.optimize("module:my_decoder:Training", tmp_path / "out", tokens=64)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.parity.mean_kl < 1e-9
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 32
    assert capsys.readouterr().out == ""


def test_a_graph_that_reads_no_mask_takes_none(tmp_path: Path) -> None:
    """And an untrained head, whose logits are all one number, is no division by zero."""
    report = onnx_gpt.optimize("module:my_decoder:Bigram", tmp_path / "out", tokens=64)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.parity.checks["left_padding"].verdict == "not run"
    inputs = [value.name for value in onnx.load(tmp_path / "out" / "model.onnx").graph.input]
    assert inputs == ["input_ids", "num_logits_to_keep"]


def test_logits_are_found_in_what_a_forward_gives() -> None:
    logits, loss, cache = torch.zeros(2, 7, 5), torch.tensor(1.0), torch.zeros(2, 3, 7, 8)
    given = [
        logits,
        (logits, loss),
        [loss, logits],
        (cache, logits),
        {"hidden": torch.zeros(2, 7, 3), "logits": logits},
        {"loss": loss, "scores": logits},
        types.SimpleNamespace(loss=None, logits=logits),
    ]
    assert all(logits_in(output) is logits for output in given)
    for nothing in (None, loss, (), {}, {"logits": loss}, "text", torch.zeros(2, 7, 5, dtype=torch.int64)):
        assert logits_in(nothing) is None
