"""The genai bundle in its real runtime: it loads, and says what our own runner says."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_runtimes import genai_greedy

import onnx_gpt

og = pytest.importorskip("onnxruntime_genai")


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_genai_loads_the_bundle_and_agrees(scheme: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    onnx_gpt.optimize("sample:tiny", bundle, quantize=scheme, target="genai", parity=False)
    prompt = "The class statement defines"
    ours = onnx_gpt.Generator(bundle).generate(prompt, max_new_tokens=32)

    model = og.Model(str(bundle))
    tokenizer = og.Tokenizer(model)
    ids = list(tokenizer.encode(prompt))
    assert ids == onnx_gpt.Generator(bundle).encode(prompt)
    assert genai_greedy(bundle, ids, 32) == list(ours.tokens)
    assert tokenizer.decode(list(ours.tokens)) == ours.text
