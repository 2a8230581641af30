"""Ranges are those of the values, whatever the batches; norms and NaN are seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import tiny

import onnx_gpt
from benchmarks.fault_edits import own_weight
from calibration.ranges import ranges
from calibration.statistics.value_range import ValueRange
from exporter.errors import OnnxGptError
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.lowering.half import HALF_MAX
from onnx_gpt.bisecting.cases import Case, Feeding
from onnx_gpt.bisecting.running import run
from onnx_gpt.cli import main
from onnx_gpt.exporting import export

BATCHES = arrays(
    np.float32, st.tuples(st.integers(0, 5), st.just(7)), elements=st.floats(-1e4, 1e4, width=32)
)


@given(BATCHES, BATCHES)
def test_batches_add_up(a: np.ndarray, b: np.ndarray) -> None:
    apart = ValueRange.empty().add(a).merge(ValueRange.empty().add(b)).finish()
    whole = ValueRange.empty().add(np.concatenate([a, b])).finish()
    assert apart.largest == whole.largest and apart.square == whole.square
    for field in ("rms", "half_error", "int8_error", "int8_zeroed"):
        assert getattr(apart, field) == pytest.approx(getattr(whole, field), rel=1e-9, abs=1e-12)


def test_figures_are_those_of_the_values() -> None:
    x = np.random.default_rng(0).standard_t(3, (400, 64)).astype(np.float32)
    found = ValueRange.empty().add(x).finish()
    assert found.largest == np.abs(x).max()
    assert found.rms == pytest.approx(float(np.sqrt((x.astype(np.float64) ** 2).mean())))
    assert found.square == pytest.approx(float((x.astype(np.float64) ** 2).sum(-1).max()))
    assert found.half_headroom == HALF_MAX / found.largest
    step = found.largest / 127
    off = x - np.round(x / step) * step
    assert found.int8_error == pytest.approx(float(np.sqrt((off**2).mean()) / found.rms), rel=0.1)
    assert found.half_error == pytest.approx(2.1e-4, rel=0.1)


def test_what_is_not_finite_is_counted_and_hides_nothing() -> None:
    x = np.array([[1.0, np.nan, np.inf, -3.0]], np.float32)
    found = ValueRange.empty().add(x).finish()
    assert (found.not_finite, found.largest) == (2, 3.0)
    empty = ValueRange.empty().finish()
    assert (empty.largest, empty.rms, empty.half_headroom) == (0.0, 0.0, float("inf"))


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "gpt_neox"])
def test_every_value_of_the_graph_is_measured(family: str) -> None:
    model = export(tiny(family)).model
    run_pipeline(model, ORT_PIPELINE, verify=False)
    tokens = np.random.default_rng(0).integers(0, 131, (3, 20))
    found = {edge.name: edge for edge in ranges(model, tokens).edges}
    feeding = Feeding(model)
    rows = [feeding.feeds(Case("row", (i,), (20,), (20,)), tokens, 0, {}) for i in range(3)]
    whole = run(model, rows, None)
    made = {str(value.name) for node in model.graph for value in node.outputs if value.name}
    floats = {name for name in made if whole[0][name].dtype == np.float32 and whole[0][name].size}
    assert floats == found.keys()
    for name in floats:
        largest = max(float(np.abs(values[name]).max()) for values in whole)
        assert found[name].range.largest == pytest.approx(largest, rel=1e-4), name


def test_norms_are_measured_on_what_they_add_up() -> None:
    model = export(tiny("llama")).model
    tokens = np.random.default_rng(0).integers(0, 131, (2, 16))
    canonical = {norm.role: norm for norm in ranges(model, tokens).norms}
    run_pipeline(model, ORT_PIPELINE, verify=False)
    fused = {norm.role: norm for norm in ranges(model, tokens).norms}
    assert canonical.keys() == fused.keys() and len(fused) == 5
    for role, norm in fused.items():
        assert norm.square == pytest.approx(canonical[role].square, rel=1e-4)
        assert norm.mean_square == pytest.approx(canonical[role].mean_square, rel=1e-4)
        assert (norm.epsilon, norm.overflowing) == (0.01, 0)
    own_weight("embedding", lambda table: table * np.float32(1e-5), 0)(model)
    small = {norm.role: norm for norm in ranges(model, tokens).norms}["layers.0.attention_norm"]
    assert small.dominated == 1 and small.absorbed > 0.9
    own_weight("embedding", lambda table: table * np.float32(1e8), 0)(model)
    large = {norm.role: norm for norm in ranges(model, tokens).norms}["layers.0.attention_norm"]
    assert large.overflowing == 1 and large.absorbed == 0


def test_the_first_value_that_is_not_finite_is_named() -> None:
    model = export(tiny("llama")).model
    own_weight(
        "layers.1.ffn.up", lambda w: np.where(np.arange(w.shape[1]) == 3, np.nan, w).astype(np.float32)
    )(model)
    found = ranges(model, np.random.default_rng(0).integers(0, 131, (2, 16)))
    assert found.not_finite[0].name == "layers.1.ffn.up"
    assert found.largest.range.largest < float("inf")


def test_the_command_prints_all_as_json_and_the_largest_as_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments in (["--json"], []):
        with pytest.raises(SystemExit) as exit:
            main(["ranges", "sample:tiny", "--windows", "2", *arguments])
        assert not exit.value.code
        out = capsys.readouterr().out
        if arguments:
            document = json.loads(out)
            assert document["schema"] == "onnx-gpt/ranges/1" and document["tokens"] == 512
            assert len(document["edges"]) > 50 and len(document["norms"]) == 9
        else:
            assert "beyond float16: nothing" in out and "no value is NaN or infinite" in out


def test_a_module_is_refused() -> None:
    with pytest.raises(OnnxGptError) as refused:
        onnx_gpt.ranges("module:my_decoder:fused")
    assert refused.value.code == "ranges-needs-float"
