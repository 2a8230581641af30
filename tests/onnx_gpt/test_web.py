"""The web target without a browser: its files, its graphs' contract, and padding on the left, for every family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.families import families
from onnx_gpt.bundle.decoder_facts import DecoderFacts
from onnx_gpt.bundle.targets import BundleFacts, chosen
from onnx_gpt.bundle.targets.web import files
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.metrics import divergence, log_softmax

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 120, (1, 12))
DECODER = DecoderFacts(
    layers=3, heads=4, kv_heads=2, head_dim=16, hidden_size=64, vocab_size=131, context_length=64
)


@pytest.fixture(scope="module", params=sorted(families()))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models of a family's tiny decoder that onnxruntime runs on a CPU."""
    out = tmp_path_factory.mktemp("web") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load", lambda uri: tiny(request.param, 0))
        onnx_gpt.optimize(request.param, out, target="web:fp32+q8+q4", parity=False, verify=False)
    return out


def models(bundle: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((bundle / "onnx").glob("*.onnx"))}


def test_quantized_models_are_near_the_float_one(bundle: Path) -> None:
    logits = {name: log_softmax(Candidate(path).logits(TOKENS)[0]) for name, path in models(bundle).items()}
    assert divergence(logits["model_quantized"], logits["model"]).mean() < 0.01
    assert divergence(logits["model_q4"], logits["model"]).mean() < 0.6


def test_a_row_that_is_padded_on_the_left_goes_on_as_if_it_were_alone(bundle: Path) -> None:
    for name, path in models(bundle).items():
        candidate = Candidate(path)
        padded = np.concatenate([np.zeros((1, 4), np.int64), TOKENS[:, :8]], axis=1)
        mask = np.ones((2, 12), np.int64)
        mask[0, :4] = 0
        both, past = candidate.run(np.concatenate([padded, TOKENS]), mask)
        step, more = np.array([[7], [7]]), np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        last, _ = candidate.run(step, more, past)
        for row, tokens in ((0, TOKENS[:, :8]), (1, TOKENS)):
            alone, seen = candidate.run(tokens)
            after, _ = candidate.run(step[:1], past=seen)
            limit = 1e-9 if name == "model" else 1e-3
            ours = np.concatenate([both[row, -tokens.shape[1] :], last[row]])
            theirs = np.concatenate([alone[0], after[0]])
            assert divergence(log_softmax(ours), log_softmax(theirs)).max() < limit, name
        assert np.isfinite(both).all(), "rows that see nothing but padding stay finite"


def test_the_graphs_keep_what_transformers_js_reads(bundle: Path) -> None:
    for name, path in models(bundle).items():
        graph = onnx.load(path, load_external_data=False).graph
        inputs = {value.name: value for value in graph.input}
        assert "num_logits_to_keep" in inputs
        assert all(tensor.name not in inputs for tensor in graph.initializer), "no input has a default"
        for key in (key for key in inputs if key.startswith("past_key_values")):
            dims = inputs[key].type.tensor_type.shape.dim
            assert dims[0].dim_param == "batch_size" and dims[1].dim_value > 0 and dims[3].dim_value > 0
        ops = {node.op_type for node in graph.node}
        if name == "model_quantized":
            assert not ops & {"MatMulNBits", "GatherBlockQuantized", "GroupQueryAttention"}
            assert "MatMulIntegerToFloat" in ops
        else:
            assert "FusedMatMul" not in ops
        if name == "model_q4":
            assert not ops & {"MatMul", "Gemm"}, "no table is there as floats too"


def test_the_configuration_names_every_file_of_weights(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text("utf-8"))
    counted = config["transformers.js_config"]["use_external_data_format"]
    assert counted == {path.name: 1 for path in models(bundle).values()}
    for name in counted:
        assert (bundle / "onnx" / f"{name}_data").stat().st_size < 2e9
    assert json.loads((bundle / "generation_config.json").read_text("utf-8"))["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("kind", "written", "key"),
    [
        ("exaone", "exaone", "num_layers"),  # transformers 5 writes num_hidden_layers for it
        ("internlm3", "llama", "num_hidden_layers"),
        ("onnx_gpt_variant", "llama", "num_hidden_layers"),
    ],
)
def test_the_number_of_layers_is_where_transformers_js_looks(kind: str, written: str, key: str) -> None:
    made = files(BundleFacts(DECODER, {"model_type": kind, "num_hidden_layers": 3}, {}))
    config = json.loads(made["config.json"])
    assert (config["model_type"], config[key]) == (written, 3)


def test_the_chat_template_goes_into_the_tokenizers_configuration() -> None:
    given = {"chat_template.jinja": b"{{ messages }}", "tokenizer_config.json": b'{"eos_token": "x"}'}
    made = files(BundleFacts(DECODER, {"model_type": "llama"}, given))
    assert json.loads(made["tokenizer_config.json"]) == {"eos_token": "x", "chat_template": "{{ messages }}"}
    assert "chat_template.jinja" not in made


def test_no_file_speaks_of_a_tokenizer_that_is_not_there() -> None:
    made = files(BundleFacts(DECODER, {"model_type": "llama"}, {}))
    assert made.keys() == {"config.json", "generation_config.json"}


def test_the_default_is_every_model() -> None:
    assert [model.path for model in chosen("web").models] == [
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "onnx/model_q4.onnx",
        "onnx/model_q4f16.onnx",
    ]
