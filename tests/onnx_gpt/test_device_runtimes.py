"""Bundles for phones, OpenVINO and Optimum, each opened by its runtime: the tokens are those of our own runner."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_runtimes import EXACT, greedy, openvino_step, ort_step, unrounded
from tiny import tiny

import onnx_gpt
from exporter.errors import OnnxGptError
from exporter.writing import write_checkpoint
from onnx_gpt.bundle.targets import mobile
from onnx_gpt.parity.candidate import Candidate

PROMPT = "The class statement defines"
COUNT = 32


def optimized(folder: Path, target: str, scheme: str) -> Path:
    bundle = folder / target
    onnx_gpt.optimize("sample:tiny", bundle, quantize=scheme, target=target, parity=False, verify=False)
    return bundle


def expected(folder: Path, scheme: str) -> tuple[list[int], list[int]]:
    """The prompt, and what our own runner says on our own target."""
    runner = onnx_gpt.Generator(optimized(folder, "ort", scheme))
    return list(runner.encode(PROMPT)), list(runner.generate(PROMPT, max_new_tokens=COUNT).tokens)


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_phones_open_ort_files_that_say_the_same(scheme: str, tmp_path: Path) -> None:
    prompt, tokens = expected(tmp_path, scheme)
    bundle = optimized(tmp_path, "mobile", scheme)
    assert not list(bundle.glob("*.onnx*"))
    for name in ("model.ort", "model.with_runtime_opt.ort"):
        assert greedy(*ort_step(bundle / name), prompt, COUNT) == tokens
    operators = (bundle / mobile.OPERATORS).read_text("utf-8")
    assert "GroupQueryAttention" in operators and str(tmp_path) not in operators
    assert ("MatMulNBits" in operators) == (scheme == "int4")


def test_an_ort_file_has_two_gigabytes_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mobile, "LARGEST", 1 << 20)
    with pytest.raises(OnnxGptError) as caught:
        optimized(tmp_path, "mobile:model", "int4")
    assert caught.value.code == "target-unsupported"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["none", "int8", "int4", "q4f16"])
def test_openvino_reads_the_graph_and_says_the_same(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = optimized(tmp_path, "openvino", scheme)
    prompt, _ = expected(tmp_path, scheme)
    ours = Candidate(unrounded(bundle / "model.onnx"))
    found = greedy(*openvino_step(bundle / "model.onnx"), prompt, COUNT)
    assert found == ours.greedy(np.array(prompt), COUNT)


def openvino_sample() -> dict[str, Any]:
    """What samples/openvino_llm.py defines."""
    return runpy.run_path(str(Path(__file__).parents[2] / "samples" / "openvino_llm.py"))


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_openvino_keeps_the_cache_itself_and_fuses_the_attention(scheme: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    bundle = optimized(tmp_path, "openvino", scheme)
    prompt, tokens = expected(tmp_path, scheme)
    model = openvino_sample()["stateful"](bundle / "model.onnx")
    assert {value.any_name for value in model.inputs} == {"input_ids", "attention_mask", "beam_idx"}
    assert [value.any_name for value in model.outputs] == ["logits"]
    compiled = openvino.Core().compile_model(model, "CPU", dict(EXACT))
    kinds = [str(node.get_rt_info()["layerType"].value) for node in compiled.get_runtime_model().get_ops()]
    assert kinds.count("ScaledDotProductAttention") == 4 and "Softmax" not in kinds
    request = compiled.create_infer_request()
    given, found = prompt, list[int]()
    while len(found) < COUNT:
        total = len(prompt) + len(found)
        feeds = {
            "input_ids": np.array([given], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "beam_idx": np.zeros(1, np.int32),
        }
        found.append(int(request.infer(feeds)["logits"][0, -1].argmax()))
        given = found[-1:]
    assert found == tokens


def test_openvino_genai_opens_what_the_sample_makes(tmp_path: Path) -> None:
    openvino_genai = pytest.importorskip("openvino_genai")
    pytest.importorskip("openvino_tokenizers")
    import openvino

    bundle = optimized(tmp_path, "openvino", "none")
    prompt, tokens = expected(tmp_path, "none")
    openvino_sample()["convert"](bundle, tmp_path / "llm")
    pipeline = openvino_genai.LLMPipeline(tmp_path / "llm", "CPU", **EXACT)
    options = {"max_new_tokens": COUNT, "do_sample": False, "apply_chat_template": False}
    found = pipeline.generate(openvino.Tensor(np.array([prompt], np.int64)), **options)
    assert list(found.tokens[0]) == tokens
    text = onnx_gpt.Generator(bundle).tokenizer.decode(tokens)
    assert pipeline.generate(PROMPT, **options) == text


@pytest.mark.parametrize("padded", ["left", "right"])
def test_openvinos_graph_pads_batches_on_either_side(padded: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = optimized(tmp_path, "openvino", "none")
    step, pasts = openvino_step(bundle / "model.onnx")
    rng = np.random.default_rng(0)
    long, short = rng.integers(0, 200, (1, 12)), rng.integers(0, 200, (1, 7))
    blank, empty = (
        np.zeros((1, 5), np.int64),
        {name: np.zeros((2, heads, 0, width), np.float32) for name, (heads, width) in pasts.items()},
    )
    parts, own = ([blank, short], slice(5, None)) if padded == "left" else ([short, blank], slice(0, 7))
    ids = np.concatenate([long, np.concatenate(parts, axis=1)])
    mask = np.ones_like(ids)
    mask[1] = 0
    mask[1, own] = 1
    both = step({"input_ids": ids, "attention_mask": mask, **empty})["logits"]
    candidate = Candidate(bundle / "model.onnx")
    np.testing.assert_allclose(both[0], candidate.logits(long)[0], atol=1e-3)
    np.testing.assert_allclose(both[1, own], candidate.logits(short)[0], atol=1e-3)


def test_optimums_graph_pads_batches_on_the_left(tmp_path: Path) -> None:
    candidate = Candidate(optimized(tmp_path, "optimum", "none") / "model.onnx")
    rng = np.random.default_rng(0)
    long, short = rng.integers(0, 200, (1, 12)), rng.integers(0, 200, (1, 7))
    padded = np.concatenate([long, np.concatenate([np.zeros((1, 5), np.int64), short], axis=1)])
    mask = np.ones_like(padded)
    mask[1, :5] = 0
    both, _ = candidate.run(padded, mask)
    np.testing.assert_allclose(both[0], candidate.logits(long)[0], atol=1e-4)
    np.testing.assert_allclose(both[1, 5:], candidate.logits(short)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("family", "variant"), [("phi3", "default"), ("qwen3", "wide_heads"), ("jais2", "own_kv_heads")]
)
def test_a_model_that_optimum_cannot_run_is_refused(family: str, variant: str, tmp_path: Path) -> None:
    """It would make a cache of another shape, or does not know the model."""
    source = tmp_path / "source"
    source.mkdir()
    write_checkpoint(source, tiny(family, variant=variant))
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize(str(source), tmp_path / "out", target="optimum", quantize="none", parity=False)
    assert caught.value.code == "target-unsupported"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
