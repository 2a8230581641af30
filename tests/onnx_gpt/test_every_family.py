"""Every family through the whole job: fused, quantized, proven, and run by two runtimes. A new family is found here."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_runtimes import genai_greedy
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.families import families
from onnx_gpt.report import Parity

PROMPT = [5, 17, 3, 29, 11, 2, 7]


@pytest.mark.parametrize("scheme", ["none", "int8"])
@pytest.mark.parametrize("family", sorted(families()))
def test_a_family_is_optimized_proven_and_run(
    family: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "load", lambda uri: tiny(family, 0))
    out = tmp_path / "out"
    limits = onnx_gpt.Limits(
        max_kl=1e-6 if scheme == "none" else 0.05, min_top1=0.8, max_perplexity_ratio=1.1
    )
    report = onnx_gpt.optimize(family, out, quantize=scheme, target="genai", limits=limits, tokens=128)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.source.family == family
    if scheme != "none":  # with every code, and with the graph in float, as `optimize` does not look at them
        validated = onnx_gpt.validate(out, family, limits=limits, tokens=64)
        assert validated.verdict == "pass", validated.failures

    generator = onnx_gpt.Generator(out)
    ours = list(generator.generate(PROMPT, max_new_tokens=6).tokens)

    pytest.importorskip("onnxruntime_genai")
    assert genai_greedy(out, PROMPT, len(ours)) == ours
