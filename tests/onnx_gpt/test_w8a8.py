"""`--quantize w8a8` end to end on `sample:tiny`, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.report import Parity


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx_gpt.Report]:
    out = tmp_path_factory.mktemp("bundles") / "w8a8"
    return out, onnx_gpt.optimize("sample:tiny", out, quantize="w8a8", kv_cache="int8", tokens=512)


def test_it_passes_its_gate_with_an_int8_cache_too(bundle: tuple[Path, onnx_gpt.Report]) -> None:
    out, report = bundle
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    assert 0 < report.parity.mean_kl < 0.005
    assert report.quantization["8 bits by channel, inputs 8 bits by tensor"] == 3 * 4
    written = json.loads((out / "report.json").read_text())
    assert written["recipe"]["quantize"] == "w8a8" and written["calibration"]["windows"] == 16


def test_down_projections_go_token_by_token_where_blocks_are_that_wide(
    bundle: tuple[Path, onnx_gpt.Report], tmp_path: Path
) -> None:
    assert "8 bits by channel, inputs 8 bits by token" not in bundle[1].quantization
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "b", quantize="w8a8", block_size=512, tokens=512)
    assert report.quantization["8 bits by channel, inputs 8 bits by token"] == 4
    assert report.recipe["block_size"] == 512
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"


def test_it_generates_what_the_float_bundle_says(
    bundle: tuple[Path, onnx_gpt.Report], tmp_path: Path
) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "float", parity=False)
    prompt = "The class statement defines"
    texts = [
        onnx_gpt.Generator(folder, threads=1).generate(prompt, max_new_tokens=16).text
        for folder in (bundle[0], tmp_path / "float")
    ]
    assert texts[0] == texts[1]


def test_a_graph_of_somebody_else_is_refused(bundle: tuple[Path, onnx_gpt.Report], tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "float", parity=False)
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize(str(tmp_path / "float" / "model.onnx"), tmp_path / "b", quantize="w8a8")
    assert (caught.value.code, caught.value.exit) == ("channels-unknown-decoder", Exit.UNSUPPORTED)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("options", [{"method": "awq"}, {"table_bits": 4}, {"mixed": "ffn.down=4"}])
def test_options_that_it_does_not_have_are_usage_errors(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "b", quantize="w8a8", **options)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit) == ("scheme-invalid", Exit.USAGE)


def test_text_that_is_evaluated_on_is_not_calibrated_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"Sentence {i} asks what a grammar is, and gets {i * i} for it. " for i in range(900))
    )
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "b", quantize="w8a8", calibration=text, text=text)
    assert caught.value.code == "calibration-overlap"
