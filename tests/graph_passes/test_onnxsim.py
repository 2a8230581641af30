"""A pass of others in a pipeline of ours: weights stay outside, it is proven like ours, its absence is told."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from exporter.errors import Exit, OnnxGptError
from exporter.onnx_format.reader import read_graph
from exporter.stored_weights import Stored
from graph_passes import run_pipeline

FOREIGN = Path(__file__).parent / "foreign"


def test_it_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(OnnxGptError) as caught:
        run_pipeline(read_graph(FOREIGN / "optimum-llama.onnx"), "onnxsim")
    assert (caught.value.code, caught.value.exit) == ("onnxsim-missing", Exit.ENVIRONMENT)
    assert "onnx-gpt[onnxsim]" in str(caught.value)


def test_it_simplifies_without_reading_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxsim")
    model = read_graph(FOREIGN / "optimum-llama.onnx")
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    inputs = [(value.name, str(value.shape)) for value in model.graph.inputs]
    with monkeypatch.context() as patch:
        patch.setattr(Stored, "rows", lambda *_: pytest.fail("a weight was read"))
        (report,) = run_pipeline(model, "onnxsim", verify=False)
    assert report.fired > 300 and model.graph.num_nodes() < 300
    assert [(value.name, str(value.shape)) for value in model.graph.inputs] == inputs
    kept = [
        value for value in model.graph.initializers.values() if isinstance(value.const_value, ir.LazyTensor)
    ]
    assert len(kept) == len(before)
    assert all(value.const_value is before[str(value.name)] for value in kept)


def test_what_it_leaves_is_fused_as_if_it_had_not_been_there() -> None:
    pytest.importorskip("onnxsim")
    fused = "inline, fold, shapes, linear, fold, control{context_length=64}, shapes, canonical"
    plain, simplified = (read_graph(FOREIGN / "optimum-llama.onnx") for _ in range(2))
    run_pipeline(plain, fused, verify=False)
    reports = run_pipeline(simplified, f"onnxsim, {fused}")
    assert reports[0].proof is not None and reports[0].proof.proven == reports[0].proof.witnesses > 0
    ops = [sorted(node.op_type for node in model.graph) for model in (plain, simplified)]
    assert ops[0] == ops[1]
