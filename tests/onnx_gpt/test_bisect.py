"""Bisection names the pass, the firing and the piece; its repro shows them; healthy models are left alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from tiny import tiny

import onnx_gpt
from benchmarks.fault_edits import attribute
from benchmarks.fault_list import FAULTS, Fault
from benchmarks.faults import searched, stages_of
from exporter import sources
from exporter.errors import Exit, OnnxGptError
from exporter.families import families
from graph_passes.outcome import Outcome
from graph_passes.pipeline import passes_by_name
from graph_passes.proof.subgraph import Subgraph
from onnx_gpt.bisecting import codes, repro
from onnx_gpt.bisecting.bisection import facts_of
from onnx_gpt.bisecting.cases import Case, Feeding, cases, length_for, stretch_for
from onnx_gpt.bisecting.judging import deviations, truth_of
from onnx_gpt.bisecting.locating import Piece
from onnx_gpt.bisecting.running import moved, run
from onnx_gpt.bisecting.searching import Stage, search
from onnx_gpt.cli import main
from onnx_gpt.exporting import export
from onnx_gpt.parity.values import rounded

FOREIGN = Path(__file__).parents[1] / "graph_passes" / "foreign"
BY_NAME = {fault.name: fault for fault in FAULTS}
CHOSEN = (
    "no causal mask",
    "rotary positions start again after a cache",
    "key heads in another order",
    "epsilon 1e-6 for 1e-5",
    "a gated function with the other GELU",
    "one more of the last logits",
    "a column of 4-bit codes is flipped",
    "the scales of a row are halved",
)
"""One of each kind; `python -m benchmarks.faults` has them all."""


def rows_for(model: ir.Model, vocab: int = 131) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (2, length_for(model, 64)))


@pytest.mark.parametrize("fault", [BY_NAME[name] for name in CHOSEN], ids=lambda f: f.name)
def test_the_pass_and_the_place_of_a_fault_are_named(fault: Fault) -> None:
    found = searched(fault)
    assert found.wrong is not None and found.culprit is not None
    assert found.wrong.name == fault.after
    assert found.culprit.wrong.piece.place.startswith(fault.places)
    if fault.scheme == "none":
        assert found.culprit.explains in ("alone", "together")
    facts = facts_of(found, [stage.name for stage in stages_of(fault)], "model", "passes")
    assert [stage.verdict for stage in facts.stages].count("wrong") == 1
    assert facts.wrong is not None and facts.found is not None and facts.wrong.name == facts.found.stage
    assert facts.found.before != facts.found.after or fault.name.startswith("a weight")


@pytest.mark.parametrize("faulty", [False, True])
def test_the_edge_of_a_window_that_no_row_reaches_is_looked_at(faulty: bool) -> None:
    """By a cache that is repeated until it ends just before it."""
    heads = "layers.1.attention.heads"
    fault = Fault(
        "a long window is one too wide",
        "attention",
        ("layers.1",),
        "mistral",
        attribute(heads, local_window_size=601),
        overrides={"sliding_window": 600, "max_position_embeddings": 1024},
    )
    model = export(fault.checkpoint()).model
    assert (length_for(model, 1024), stretch_for(model, 1024), stretch_for(model, 64)) == (24, 596, 0)
    truth = truth_of(model, np.random.default_rng(0).integers(0, 131, (2, 24)), 596)
    found = search(model, stages_of(fault, faulty=faulty), truth)
    if not faulty:
        assert found.wrong is None
        return
    assert found.wrong is not None and found.wrong.name == "attention" and found.culprit is not None
    assert found.culprit.wrong.piece.place == heads and found.culprit.case == "past a long window"


@pytest.mark.parametrize("at", [0, 3, 8])
def test_halving_ends_at_the_stage_that_is_wrong(at: int) -> None:
    fault = BY_NAME["cos and sin change places"]
    stages = stages_of(fault, faulty=False)
    healthy = stages[at].apply

    def broken(model: ir.Model) -> None:
        healthy(model)
        attribute("norm", epsilon=0.5)(model)

    stages[at] = Stage(stages[at].name, broken)
    model = export(fault.checkpoint()).model
    found = search(model, stages, truth_of(model, rows_for(model)))
    assert found.wrong is not None and found.wrong.name == stages[at].name
    assert found.culprit is not None and found.culprit.wrong.piece.place == "norm"


@pytest.mark.parametrize("family", sorted(families()))
def test_a_family_raises_no_alarm(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", lambda uri: tiny(family))
    found = onnx_gpt.bisect(family, quantize="int4")
    assert found.wrong is None and found.found is None
    assert found.stages[0].name == "source"
    assert found.stages[-1].name == "quantize" and found.stages[-1].verdict == "right"
    assert 0 < found.noise < found.tolerance < 1e-4


@pytest.mark.parametrize("file", ["optimum-gpt2.onnx", "mobius-llama.onnx", "genai-llama.onnx"])
def test_a_foreign_graph_raises_no_alarm(file: str) -> None:
    found = onnx_gpt.bisect(str(FOREIGN / file))
    assert found.wrong is None
    assert found.stages[-1].verdict == "right"


def test_static_8_bit_raises_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", lambda uri: tiny("gpt2"))
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 131, 1024))
    found = onnx_gpt.bisect("gpt2", quantize="w8a8", calibration=tmp_path / "ids.npy")
    assert found.wrong is None
    assert [stage.name for stage in found.stages][-2:] == ["static", "quantize"]


@pytest.fixture
def broken_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass ``norm`` as it was, but for the epsilon of its third firing."""
    healthy = passes_by_name()["norm"]

    def apply(model: ir.Model) -> Outcome:
        outcome = healthy.apply(model)
        attribute("layers.1.attention_norm", epsilon=0.1)(model)
        return outcome

    faulty = ModuleType("norm")
    faulty.KIND, faulty.apply = "fp", apply  # type: ignore[attr-defined]
    passes = {**passes_by_name(), "norm": faulty}
    monkeypatch.setattr("graph_passes.pipeline.passes_by_name", lambda: passes)


def test_the_command_names_the_firing_and_writes_what_shows_it(
    broken_norm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repro"
    with pytest.raises(SystemExit) as exit:
        main(["bisect", "sample:tiny", "-o", str(out), "--json"])
    assert exit.value.code == Exit.PARITY
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "onnx-gpt/bisection/1"
    assert document["found"]["stage"] == "norm" and document["found"]["layer"] == 1
    assert document["found"]["firing"].startswith("3 of 8")
    assert document["found"]["explains"] == "alone"

    assert {file.name for file in out.iterdir()} == {
        *("before.onnx", "after.onnx", "inputs.npz", "repro.py", "facts.json")
    }
    moved_away = tmp_path / "elsewhere"
    out.rename(moved_away)
    script = [sys.executable, "-I", str(moved_away / "repro.py")]
    shown = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert shown.returncode == 1 and "layers.1.attention_norm" in shown.stdout, shown.stderr
    shutil.copyfile(moved_away / "before.onnx", moved_away / "after.onnx")
    assert subprocess.run(script, capture_output=True, cwd=tmp_path, check=False).returncode == 0


def test_codes_are_shown_by_unit_vectors(tmp_path: Path) -> None:
    one, other = (
        searched(BY_NAME["a column of 4-bit codes is flipped"]),
        searched(BY_NAME["codes one row off"]),
    )
    for found in (one, other):
        assert found.culprit is not None
        piece = found.culprit.wrong.piece
        values, tolerance = codes.exhibit(piece)
        folder = tmp_path / piece.place
        folder.mkdir()
        repro.write(dataclasses.replace(found.culprit.wrong, values=values), folder, {}, tolerance)
        script = [sys.executable, "-I", str(folder / "repro.py")]
        assert subprocess.run(script, capture_output=True, check=False).returncode == 1
        mended = repro.standing_alone(rounded_twin(piece), values)
        ir.save(mended, folder / "after.onnx")
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def rounded_twin(piece: Piece) -> Subgraph:
    """The float side with its weight rounded to the grid of the other: what right codes would give."""
    (call,) = (call for call in piece.before.nodes if call.op_type == "MatMul")
    factor = call.inputs[1]
    assert factor is not None and factor.const_value is not None
    near = np.ascontiguousarray(rounded(factor.const_value.numpy().T, 4, 32).T)
    twin = ir.Value(name=factor.name, type=factor.type, shape=factor.shape, const_value=ir.tensor(near))
    other = dataclasses.replace(call, inputs=(call.inputs[0], twin))
    return dataclasses.replace(piece.before, nodes=(other,))


def test_a_person_reads_what_is_wrong(broken_norm: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["bisect", "sample:tiny"])
    assert exit.value.code == Exit.PARITY
    shown = capsys.readouterr().out
    assert "✗ norm is the first that is wrong, at layers.1.attention_norm (firing 3 of 8" in shown
    assert "SkipLayerNormalization" in shown


def test_a_healthy_model_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["bisect", "sample:tiny", "-o", str(tmp_path / "repro")])
    assert not exit.value.code and "every stage is right" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_it_cannot_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match="exists already"):
        onnx_gpt.bisect("sample:tiny", out=tmp_path)
    with pytest.raises(OnnxGptError) as module:
        onnx_gpt.bisect("module:my_decoder:fused")
    assert module.value.code == "bisect-needs-graph"
    with pytest.raises(OnnxGptError) as halves:
        onnx_gpt.bisect("sample:tiny", quantize="fp16")
    assert halves.value.code == "scheme-invalid"


# The parts ------------------------------------------------------------------------------------------


def test_a_graph_in_pieces_gives_what_it_gives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = export(tiny("gemma3")).model
    text = rows_for(model)
    feeds = Feeding(model).feeds(cases(text.shape[1])[3], text, 0, {})
    (whole,) = run(model, [feeds], None)
    monkeypatch.setattr("onnx_gpt.bisecting.running.NODES", 3)
    pieces = run(model, [feeds, feeds], ["layers.0.ffn.down"])
    for found in pieces:
        assert {"logits", "layers.0.ffn.down"} <= found.keys() and "layers.0.ffn.up" not in found
        for name, array in found.items():
            np.testing.assert_array_equal(array, whole[name])


def test_a_value_that_is_given_takes_the_place_of_what_is_made() -> None:
    model = export(tiny("llama")).model
    text = rows_for(model)
    feeds = Feeding(model).feeds(cases(text.shape[1])[0], text, 0, {})
    (healthy,) = run(model, [feeds], None)
    attribute("layers.0.ffn_norm", epsilon=1.0)(model)
    (wrong,) = run(model, [feeds])
    assert np.abs(wrong["logits"] - healthy["logits"]).max() > 0.1
    (fixed,) = run(model, [feeds], given=[{"layers.0.ffn_norm": healthy["layers.0.ffn_norm"]}])
    np.testing.assert_array_equal(fixed["logits"], healthy["logits"])


def test_a_source_that_disagrees_with_itself_is_wrong_before_any_pass() -> None:
    fault = BY_NAME["learned positions start again after a cache"]
    model = export(fault.checkpoint()).model
    fault.edit(model)
    found = search(model, [], truth_of(model, rows_for(model)))
    assert found.wrong is not None and found.wrong.name == "source"


def test_what_does_not_run_is_told_and_the_other_cases_are_not_lost() -> None:
    model = export(tiny("llama")).model
    text = rows_for(model)
    truth = truth_of(model, text)
    node = next(node for node in model.graph if node.name == "layers.1.attention.heads")
    node.replace_input_with(3, next(v for n in model.graph for v in n.outputs if v.name == "mask.valid_4d"))
    found = deviations(model, truth, [Case("prompt", (0,), (8,), (8,)), Case("token", (0,), (1,), (1,))])
    assert found[0].error == float("inf") and "does not run" in found[0].why
    assert found[1].error <= truth.tolerance


def test_an_ulp_is_an_ulp() -> None:
    array = np.array([[1.0, -2.0, 3.0]], np.float32)
    off = np.abs(moved(array) / array - 1)
    assert (off > 0).all() and off.max() < 2.5e-7
    np.testing.assert_array_equal(moved(np.arange(3)), np.arange(3))


def test_rounding_is_at_most_half_a_step() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32)
    for bits, block in ((4, 16), (8, 48), (4, 32)):
        error = np.abs(rounded(weight, bits, block) - weight)
        assert error.max() <= np.abs(weight).max() / ((1 << (bits - 1)) - 1) / 2 * 1.001
