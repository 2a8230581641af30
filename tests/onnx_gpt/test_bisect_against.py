"""Two finished models are compared point by point: where they part, where error enters, what it costs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

import onnx_gpt
from benchmarks.fault_edits import attribute, crossed, own_weight
from calibration.quantization.weight_only import quantize_weights
from exporter.errors import Exit, OnnxGptError
from exporter.families import describe, families
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.bisecting.aligning import aligned, points
from onnx_gpt.bisecting.comparing import cosine, distances, rms_error
from onnx_gpt.bisecting.drawing import colour, heat, heat_map
from onnx_gpt.cli import main
from onnx_gpt.exporting import export
from onnx_gpt.progress import Silent
from onnx_gpt.recipe import Recipe

TOKENS = np.random.default_rng(0).integers(0, 131, (1, 24))


def lowered(family: str, variant: str = "default") -> ir.Model:
    model = export(tiny(family, variant=variant)).model
    run_pipeline(model, ORT_PIPELINE, verify=False)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Llama's lowered graph; the same with keys and values of the past exchanged; and with one weight rounded."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, edit in (
        ("healthy", None),
        ("past", crossed("layers.1.attention.heads", 3, 4)),
        ("norm", attribute("layers.1.ffn_norm", epsilon=0.03)),
    ):
        model = lowered("llama")
        if edit is not None:
            edit(model)
        ir.save(model, folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize("family", sorted(families()))
def test_a_lowered_graph_has_the_points_of_the_canonical_one(family: str) -> None:
    canonical, fused = points(export(tiny(family)).model), points(lowered(family))
    missing = {name for name in canonical if name not in fused}
    assert missing <= {
        "layers.1.out",
        "layers.0.middle",
        "layers.1.middle",
    }  # sums that a fused norm keeps to itself
    assert [name for name in canonical if name in fused] == list(fused)
    for i, layer in enumerate(describe(tiny(family)).layers):
        norms = [name for name in ("attention_norm", "ffn_norm") if getattr(layer, name) is not None]
        for kind in ("heads", "hidden", *norms):
            assert f"layers.{i}.{kind}" in fused
    assert {"embedding", "layers.0.out", "norm", "logits"} <= fused.keys()


def test_codes_are_points_too() -> None:
    model, other = lowered("gemma3"), lowered("gemma3")
    quantize_weights(model, Recipe(quantize="int4").scheme(), {})
    assert list(aligned(model, other)) == list(points(other))


def test_a_graph_is_at_no_distance_from_itself() -> None:
    model = lowered("llama")
    found = distances(model, model, TOKENS, Silent())
    assert [distance.point for distance in found] == list(points(model))
    assert all(distance.enters == distance.grown == 0 for distance in found)
    assert all(distance.kl in (None, 0) for distance in found)


def test_error_enters_where_it_is_made_and_grows_after() -> None:
    reference, candidate = lowered("llama"), lowered("llama")
    rng = np.random.default_rng(1)
    own_weight(
        "layers.0.ffn.down", lambda w: w * (1 + 0.1 * rng.standard_normal(w.shape)).astype(np.float32)
    )(candidate)
    found = {distance.point: distance for distance in distances(candidate, reference, TOKENS, Silent())}
    enters = {point for point, distance in found.items() if distance.enters > 1e-5}
    assert enters == {"layers.0.out", "layers.1.attention_norm"}  # one node makes the sum and its norm
    grown = {point for point, distance in found.items() if distance.grown > 1e-5}
    assert (
        grown
        == {point for point in found if point > "layers.0.out" and not point.startswith("layers.0")} | enters
    )
    assert [point for point, d in found.items() if d.kl is not None and d.kl > 1e-6] == ["layers.0.out"]


def test_nothing_changes_the_graphs_that_are_compared() -> None:
    model, other = lowered("gpt2"), lowered("gpt2")
    before = [
        len(graph.graph.inputs) + len(graph.graph.outputs) + len(graph.graph) for graph in (model, other)
    ]
    distances(model, other, TOKENS, Silent(), costs=False)
    after = [
        len(graph.graph.inputs) + len(graph.graph.outputs) + len(graph.graph) for graph in (model, other)
    ]
    assert before == after


def test_two_files_part_where_the_fault_is(files: Path) -> None:
    found = onnx_gpt.compare_layers(str(files / "norm.onnx"), str(files / "healthy.onnx"), costs=False)
    assert found.first is not None
    assert (found.first.point, found.first.layer, found.first.case) == ("layers.1.ffn_norm", 1, "prompt")
    assert found.first.error > found.first.tolerance


def test_a_fault_that_only_a_cache_shows_is_found_in_the_call_that_shows_it(files: Path) -> None:
    found = onnx_gpt.compare_layers(str(files / "past.onnx"), str(files / "healthy.onnx"), costs=False)
    assert found.first is not None
    assert (found.first.point, found.first.case, found.first.call) == (
        "layers.1.heads",
        "prompt in chunks",
        1,
    )
    error = found.cases["prompt"]
    assert error is not None and error <= found.tolerance
    assert all(row.enters < 1e-6 for row in found.table)


def test_the_command_draws_and_tells(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["bisect", str(files / "norm.onnx"), "--against", str(files / "healthy.onnx")]
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "-o", str(out)])
    assert exit.value.code == Exit.PARITY
    shown = capsys.readouterr().out
    assert "✗ they part at layers.1.ffn_norm" in shown and "layer 1" in shown
    document = json.loads((out / "table.json").read_text("utf-8"))
    assert document["schema"] == "onnx-gpt/parting/1" and document["first"]["layer"] == 1
    assert ET.parse(out / "heat.svg").getroot().tag.endswith("svg")
    with pytest.raises(SystemExit) as same:
        main(["bisect", str(files / "healthy.onnx"), "--against", str(files / "healthy.onnx"), "--json"])
    assert not same.value.code
    assert json.loads(capsys.readouterr().out)["first"] is None


def test_a_quantized_model_has_to_part(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lowered("llama")
    quantize_weights(model, Recipe(quantize="int8").scheme(), {})
    ir.save(model, tmp_path / "codes.onnx")
    with pytest.raises(SystemExit) as exit:
        main(["bisect", str(tmp_path / "codes.onnx"), "--against", str(files / "healthy.onnx")])
    assert not exit.value.code and "they have to, being quantized" in capsys.readouterr().out


def test_settings_of_a_job_beside_against_are_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["bisect", str(files / "norm.onnx"), "--against", "sample:tiny", "--quantize", "int4"])
    assert exit.value.code == Exit.USAGE and "bisect-option" in capsys.readouterr().err


def test_a_graph_without_roles_is_refused() -> None:
    model = lowered("llama")
    for node in model.graph:
        node.metadata_props.clear()
    with pytest.raises(OnnxGptError) as refused:
        points(model)
    assert refused.value.code == "roles-missing"


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), st.floats(0.25, 4))
def test_distances_are_of_shares(values: list[float], factor: float) -> None:
    array = np.array(values, np.float32)
    assert rms_error(array, array) == 0
    if np.abs(array).max() > 1e-3:
        assert rms_error(array * np.float32(factor), array) == pytest.approx(
            abs(np.float32(factor) - 1), abs=1e-4
        )
        assert cosine(array * np.float32(factor), array) == pytest.approx(1, abs=1e-6)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_error_has_a_colour(error: float) -> None:
    assert 0 <= heat(error) <= 1
    assert len(colour(error)) == 7 and colour(error).startswith("#")


def test_a_title_is_text_and_no_markup() -> None:
    drawn = heat_map([("0", "heads", 0.1, 0.2), ("", "logits", 0.0, float("inf"))], "<a & b>")
    assert ET.fromstring(drawn) is not None
