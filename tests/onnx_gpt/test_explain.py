"""`onnx-gpt explain` says what fused and what did not, to people and to programs, and fails where it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.cli import main
from onnx_gpt.explanation import Explanation, reasons, require_fused, span

FOREIGN = Path(__file__).parents[1] / "graph_passes" / "foreign"
SOFTMAX = "/transformer/h.{}/attn/Softmax"


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    with pytest.raises(SystemExit) as exit:
        main(["explain", *arguments])
    out, err = capsys.readouterr()
    return int(exit.value.code or 0), out, err


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Optimum's GPT-2 with a softmax over queries in both layers, and a gelu that is none in the second."""
    model = ir.load(FOREIGN / "optimum-gpt2.onnx")
    nodes = {node.name: node for node in model.graph}
    for i in range(2):
        nodes[SOFTMAX.format(i)].attributes["axis"] = ir.AttrInt64("axis", 2)
    tanh = nodes["/transformer/h.1/mlp/act/Tanh"]
    tanh.replace_input_with(0, nodes["/transformer/h.1/mlp/act/Add"].outputs[0])
    path = tmp_path_factory.mktemp("broken") / "model.onnx"
    ir.save(model, path)
    return str(path)


def test_layers_that_are_alike_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = explain(capsys, "sample:tiny")
    assert (status, err) == (0, "")
    (line,) = (line for line in out.splitlines() if line.startswith("layer"))
    assert line.split() == ["layers", "0–3", "GroupQueryAttention", "packed", "2", "FastGelu"]
    assert "head FusedMatMul" in out and "✗" not in out


def test_a_missing_fusion_is_an_error_that_says_where_and_why(
    capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    status, out, err = explain(capsys, broken, "--context-length", "64")
    assert (
        status == Exit.UNSUPPORTED
        and "[fusion-missing] 3 fusions are missing from a graph of 2 layers" in err
    )
    softmax, gelu = (line for line in out.splitlines() if line.startswith("✗"))
    assert softmax.startswith(f"✗ layers 0–1: attention is left as Softmax ({SOFTMAX.format(0)}): attention")
    assert softmax.endswith("Softmax has axis=2, not -1")
    assert gelu.startswith("✗ layer 1: activation is left as Tanh") and "gelu_tanh stopped at" in gelu
    assert "Softmax" not in err  # said once


def test_no_expect_only_looks(capsys: pytest.CaptureFixture[str], broken: str) -> None:
    status, out, err = explain(capsys, broken, "--context-length", "64", "--no-expect")
    assert (status, err) == (0, "") and out.count("✗ layer") == 2


def test_json_has_everything(capsys: pytest.CaptureFixture[str], broken: str) -> None:
    status, out, err = explain(capsys, broken, "--context-length", "64", "--json")
    assert status == Exit.UNSUPPORTED and err.count("Softmax has axis=2") == 1
    found: dict[str, Any] = json.loads(out)
    assert found["schema"] == "onnx-gpt/explanation/1" and found["missing"] == 3
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    for layer in found["layers"]:
        (attention,) = (part for part in layer["parts"] if part["part"] == "attention")
        assert attention["fused"] is False and attention["form"] == "Softmax"
        reason = attention["reason"]
        assert sorted(reason) == ["at", "by", "rule", "share", "why"]
        assert reason["by"] == "canonical" and reason["at"] == SOFTMAX.format(layer["layer"])
        assert 0 < reason["share"] <= 1
    fused = [part for part in found["others"] if part["fused"]]
    assert {part["part"] for part in fused} == {"embedding", "norm", "head"}
    assert all(part["reason"] is None for part in fused)


def test_nothing_is_written_and_python_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = onnx_gpt.explain("sample:tiny")
    assert isinstance(found, Explanation)
    assert found.expected and found.missing == () and len(found.layers) == 4
    require_fused(found)
    assert list(tmp_path.iterdir()) == []


def test_the_passes_are_those_that_are_asked_for() -> None:
    """Without the pass that takes attention over, it stays the standard operator, and nobody is to blame."""
    found = onnx_gpt.explain("sample:tiny", passes="fold, norm, clean")
    assert {part.form for layer in found.layers for part in layer if part.part == "attention"} == {
        "Attention"
    }
    with pytest.raises(OnnxGptError) as refused:
        require_fused(found)
    assert refused.value.code == "fusion-missing" and len(refused.value.details) == 1
    assert "no pass looked at it" in refused.value.details[0]


def test_a_graph_with_no_attention_is_refused_only_where_one_is_expected() -> None:
    found = Explanation("x", "graph", False, "canonical", 1, (), ())
    assert not found.expected and list(reasons(found)) == []
    with pytest.raises(OnnxGptError, match="no attention"):
        require_fused(found)


def test_layers_are_named_by_their_runs() -> None:
    assert span([4]) == "layer 4"
    assert span([0, 1, 2, 5, 7, 8]) == "layers 0–2, 5, 7–8"
