"""`module:`: the user's own nn.Module is exported, proven and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
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
