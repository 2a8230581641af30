"""`--kv-cache int8` end to end on `sample:tiny`: the gate, the runners, validate, and a quarter of the memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_gpt
from calibration.kv_cache import SINK
from exporter.errors import OnnxGptError
from onnx_gpt.cli import main
from onnx_gpt.generation.decoder_session import DecoderSession
from onnx_gpt.report import Parity

PROMPT = "The class statement defines"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx_gpt.Report]:
    out = tmp_path_factory.mktemp("bundles") / "int8-cache"
    return out, onnx_gpt.optimize("sample:tiny", out, kv_cache="int8", target="genai", tokens=512)


def test_the_gate_passes_and_the_report_says_what_was_calibrated_on(
    bundle: tuple[Path, onnx_gpt.Report],
) -> None:
    out, report = bundle
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert 0 < report.parity.mean_kl < 0.003
    written = json.loads((out / "report.json").read_text())
    assert written["recipe"]["kv_cache"] == "int8"
    assert written["calibration"]["windows"] == 16
    assert "no --calibration" in written["calibration"]["origin"]


def test_the_runner_keeps_one_buffer_of_int8_and_steps_as_it_prefills(
    bundle: tuple[Path, onnx_gpt.Report],
) -> None:
    session = DecoderSession(bundle[0] / "model.onnx", threads=1)
    assert session.cache == "shared"
    assert {session.signature.dtype(name) for name in session.signature.pasts} == {np.int8}
    tokens = np.random.default_rng(0).integers(0, session.vocab_size or 1, 40)
    whole = session.append(tokens, every=True)
    session.truncate(10)
    stepped = np.stack([session.append([token]) for token in tokens[10:]])
    np.testing.assert_allclose(stepped, whole[10:], atol=0.05)


@pytest.mark.parametrize(("targets", "held"), [("ort", True), ("genai", False), ("ort,genai", False)])
def test_scores_are_held_where_all_runtimes_cut_prompts(targets: str, held: bool, tmp_path: Path) -> None:
    names = tuple(targets.split(","))
    onnx_gpt.optimize("sample:tiny", tmp_path / "out", kv_cache="int8", target=names, parity=False)
    for path in (tmp_path / "out").rglob("model.onnx"):
        nodes = onnx.load(path, load_external_data=False).graph.node
        sinks = [node.input[SINK] for node in nodes if node.op_type == "GroupQueryAttention"]
        assert sinks and all(bool(sink) is held for sink in sinks)


def test_the_command_line_validates_it_with_limits_of_its_own(
    bundle: tuple[Path, onnx_gpt.Report], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["validate", str(bundle[0]), "--against", "sample:tiny", "--tokens", "256", "--json"])
    assert caught.value.code == 0
    parity = json.loads(capsys.readouterr().out)
    assert parity["limits"]["max_kl"] == 0.01 and parity["verdict"] == "pass"


def test_genai_runs_it_and_agrees(bundle: tuple[Path, onnx_gpt.Report]) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    ours = onnx_gpt.Generator(bundle[0]).generate(PROMPT, max_new_tokens=24)
    model = og.Model(str(bundle[0]))
    ids = list(og.Tokenizer(model).encode(PROMPT))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 24, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0))[len(ids) :] == list(ours.tokens)


def test_the_users_own_text_is_calibrated_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A grammar of questions, asked and answered at length. " * 400)
    report = onnx_gpt.optimize(
        "sample:tiny", tmp_path / "b", quantize="int4", kv_cache="int8", parity=False, calibration=text
    )
    assert report.calibration["files"].keys() == {"text.txt"}
    assert report.graph.ops["com.microsoft::MatMulNBits"] > 0


def test_a_cache_type_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "b", kv_cache="int3")
    assert (caught.value.code, caught.value.exit) == ("recipe-invalid", 2)
