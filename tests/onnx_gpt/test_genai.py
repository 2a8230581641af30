"""The genai bundle in its real runtime: it loads, and says what our own runner says."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 32, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0))[len(ids) :] == list(ours.tokens)
    assert tokenizer.decode(list(ours.tokens)) == ours.text
