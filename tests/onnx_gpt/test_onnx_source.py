"""The whole job on somebody else's graph: fused as our own, proven against the graph as it was, quantized, run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.cli import main
from onnx_gpt.report import Parity, Report

FOREIGN = Path(__file__).parent.parent / "graph_passes" / "foreign"
LAYERS = 2
CONTEXT = 64
GQA = "com.microsoft::GroupQueryAttention"


def optimized(name: str, out: Path, **settings: object) -> Report:
    source = str(FOREIGN / f"{name}.onnx")
    judged = {} if settings.get("parity") is False else {"tokens": 256}
    return onnx_gpt.optimize(source, out, **{"context_length": CONTEXT, **judged, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOREIGN.glob("*.onnx")))
def test_a_foreign_graph_is_fused_and_is_what_it_was(name: str, tmp_path: Path) -> None:
    report = optimized(name, tmp_path / "out")
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.parity.mean_kl < 1e-9 and "optimizations off" in report.parity.reference
    assert {"causal", "decode", "batch", "shared_cache"} <= report.parity.checks.keys()
    assert report.graph.ops[GQA] == LAYERS
    assert report.graph.nodes <= 42
    generator = onnx_gpt.Generator(tmp_path / "out")
    steps = [generator.prefill([3, 1, 4]), *(generator.step(token) for token in (1, 5, 9))]
    generator.reset()
    whole = generator.prefill([3, 1, 4, 1, 5, 9], every=True)
    assert np.abs(np.array(steps) - whole[2:]).max() < 1e-4


@pytest.mark.parametrize("name", ["optimum-llama", "optimum-gpt2-nocache"])
def test_a_foreign_graph_is_quantized_by_roles(name: str, tmp_path: Path) -> None:
    report = optimized(name, tmp_path / "out", quantize="int8", block_size=32)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.graph.ops["com.microsoft::MatMulNBits"] >= 4 * LAYERS
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("model.onnx*"))
    assert size < (FOREIGN / f"{name}.onnx").stat().st_size


def test_a_bundle_of_ours_is_a_source_too(tmp_path: Path) -> None:
    ours = optimized("optimum-llama", tmp_path / "ours", parity=False)
    again = onnx_gpt.optimize(str(tmp_path / "ours" / "model.onnx"), tmp_path / "again", tokens=256)
    assert isinstance(again.parity, Parity) and again.parity.verdict == "pass"
    assert again.graph.nodes <= ours.graph.nodes and again.graph.ops[GQA] == LAYERS
    packed = onnx_gpt.optimize(
        str(tmp_path / "ours" / "model.onnx"), tmp_path / "int8", quantize="int8", block_size=32, tokens=256
    )
    assert isinstance(packed.parity, Parity) and packed.parity.verdict == "pass"
    assert packed.graph.ops["com.microsoft::GatherBlockQuantized"] == 1  # and the head reads the same table


def test_genai_gets_its_configuration_from_the_graph(tmp_path: Path) -> None:
    optimized("optimum-llama", tmp_path / "out", target="genai", parity=False)
    model = json.loads((tmp_path / "out" / "genai_config.json").read_text("utf-8"))["model"]
    decoder = model["decoder"]
    assert (model["vocab_size"], model["context_length"]) == (61, CONTEXT)
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "hidden_size")
    assert [decoder[key] for key in sizes] == [2, 4, 2, 16, 32]


def test_the_context_is_asked_for_where_nothing_says_it(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        optimized("optimum-llama", tmp_path / "out", context_length=None)
    assert (caught.value.code, caught.value.exit) == ("context-length-unknown", Exit.USAGE)
    assert "--context-length" in str(caught.value)
    folder = tmp_path / "optimum"
    folder.mkdir()
    shutil.copyfile(FOREIGN / "optimum-llama.onnx", folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 48}))
    report = onnx_gpt.optimize(str(folder / "model.onnx"), tmp_path / "out", parity=False)
    assert report.source.family == "llama"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 48
    with pytest.raises(OnnxGptError, match="context-too-long"):
        onnx_gpt.optimize(str(folder / "model.onnx"), tmp_path / "two", context_length=49)
    learned = optimized("optimum-gpt2", tmp_path / "gpt2", context_length=None, parity=False)
    assert learned.graph.ops[GQA] == LAYERS
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    assert config["max_position_embeddings"] == CONTEXT  # the rows of its table of positions


def test_half_precision_is_judged_in_float32(tmp_path: Path) -> None:
    half = convert_float_to_float16(onnx.load(FOREIGN / "optimum-llama.onnx"), keep_io_types=True)
    onnx.save(half, tmp_path / "half.onnx")
    report = onnx_gpt.optimize(
        str(tmp_path / "half.onnx"), tmp_path / "out", context_length=CONTEXT, tokens=256
    )
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert report.parity.reference.startswith("half.onnx in float32")
    assert report.graph.ops[GQA] == LAYERS


def test_the_gate_bites(tmp_path: Path) -> None:
    """A bundle of one graph is not one of another with the same interface."""
    optimized("optimum-llama", tmp_path / "out", parity=False)
    other = onnx.load(FOREIGN / "optimum-llama.onnx")
    gain = next(
        t for t in other.graph.initializer if t.name == "model.layers.1.post_attention_layernorm.weight"
    )
    gain.raw_data = (np.frombuffer(gain.raw_data, np.float32) * np.float32(1.05)).tobytes()
    onnx.save(other, tmp_path / "other.onnx")
    same = onnx_gpt.validate(tmp_path / "out", str(FOREIGN / "optimum-llama.onnx"), tokens=256)
    different = onnx_gpt.validate(tmp_path / "out", str(tmp_path / "other.onnx"), tokens=256)
    assert (same.verdict, different.verdict) == ("pass", "fail")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_passes_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(FOREIGN / "optimum-llama.onnx")
    text = "inline, fold, shapes, control{context_length=64}, canonical, clean"
    done = run("optimize", source, "-o", tmp_path / "out", "--passes", text, "--tokens", 256, "--json")
    report = json.loads(capsys.readouterr().out)
    assert done == 0 and report["pipeline"] == text and report["recipe"]["passes"] == text
    assert report["graph"]["ops"]["Attention"] == LAYERS and GQA not in report["graph"]["ops"]
    assert run("optimize", source, "-o", tmp_path / "b", "--passes", "fold, nonsense") == Exit.USAGE
    assert run("optimize", source, "-o", tmp_path / "c", "--passes", "fold") == Exit.UNSUPPORTED
    assert "contract-unmet" in capsys.readouterr().err


def _no_tokens(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = {"input_ids": "tokens_of_pixels"}.get(name, name)
    node = onnx.helper.make_node("Cast", ["pixels"], ["tokens_of_pixels"], to=onnx.TensorProto.INT64)
    model.graph.node.insert(0, node)


def _no_logits(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


@pytest.mark.parametrize("spoil", [_no_tokens, _no_logits])
def test_a_graph_that_is_no_decoder_is_refused(
    spoil: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = onnx.load(FOREIGN / "optimum-llama.onnx")
    spoil(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize(str(tmp_path / "model.onnx"), tmp_path / "out", context_length=CONTEXT, tokens=256)
    assert caught.value.exit == Exit.UNSUPPORTED
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_inspect_tells_what_a_graph_is() -> None:
    facts = onnx_gpt.inspect(str(FOREIGN / "optimum-llama.onnx"))
    assert facts["kind"] == "graph" and facts["ops"]["Constant"] > 200
    assert facts["inputs"]["input_ids"] == "int64[batch_size, sequence_length]"
