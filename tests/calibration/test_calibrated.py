"""Layer by layer: the pieces make up the model, codes chosen on text beat rounding, and widths follow the roles."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import multiply, ops, random, run
from tiny import tiny

from calibration import collecting
from calibration.collecting import Stream
from calibration.journal import Journal
from calibration.quantization import calibrated, rtn
from calibration.quantization.tensors import Filed
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import Gptq, Grid, RoundToNearest, scheme_of
from calibration.segments import Places, Segment, cut
from calibration.statistics.hessian import Hessian
from exporter.block_codes import BlockFormat
from exporter.errors import OnnxGptError
from exporter.families import families
from exporter.weight_expressions import Stack
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.exporting import export

GRID = Grid(4, 16)
SCHEME = Gptq(GRID, Grid(8, 32))


def decoder(family: str) -> ir.Model:
    model = export(tiny(family)).model
    run_pipeline(model, ORT_PIPELINE)
    return model


def tokens(count: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 131, (count, 48))


def outputs(model: ir.Model, ids: np.ndarray, folder: Path) -> list[np.ndarray]:
    """Everything that a decoder gives for tokens with nothing before them; the logits come first."""
    feeds: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in model.graph.inputs:
        if str(value.name).startswith("past_key_values.") and value.shape is not None:
            _, heads, _, width = value.shape
            feeds[str(value.name)] = np.zeros((len(ids), heads, 0, width), np.float32)
    return run(model, folder, **feeds)


@pytest.mark.parametrize("family", sorted(families()))
@pytest.mark.parametrize("at", ["layers", "products"])
def test_the_pieces_one_after_the_other_are_the_model(family: str, at: Places, tmp_path: Path) -> None:
    model, ids = decoder(family), tokens()
    nodes = len(model.graph)
    segments = cut(model, at)
    names = [segment.name for segment in segments]
    assert (names[0], names[-1]) == ("embedding", "head")
    if at == "layers":
        assert names[1:-1] == ["layers.0", "layers.1"]
    else:
        products = [
            site.role for segment in cut(model) for site in segment.sites() if site.kind == "multiply"
        ]
        assert set(names[1:-1]) <= set(products)
        assert {name for segment in segments for name in collecting.taps(segment).values()} <= {
            name for segment in segments for name in segment.incoming
        }
    stream = Stream(ids, tmp_path)
    for segment in segments:
        piece = collecting.load(segment, segment.outgoing, tmp_path / "piece")
        for batch, values in collecting.run(piece, segment, stream):
            stream.put(batch, {name: values[name] for name in segment.outgoing})
        stream.advance(segment.passing)
    (name,) = segments[-1].outgoing
    found = np.concatenate([stream.feeds(b, [name])[name] for b in range(len(stream.batches))])
    assert len(model.graph) == nodes
    assert np.allclose(found, outputs(model, ids, tmp_path / "whole")[0], atol=1e-5)


def test_a_stream_writes_over_what_nobody_needs(tmp_path: Path) -> None:
    stream = Stream(tokens(), tmp_path)
    for generation in range(6):
        stream.put(0, {"x": np.full((2, 3), generation, np.float32), "y": np.full(5, generation, np.int64)})
        stream.advance()
    assert len(list(tmp_path.iterdir())) == 4
    assert {name: array.max() for name, array in stream.feeds(0, ["x", "y"]).items()} == {"x": 5, "y": 5}
    stream.put(0, {"z": np.ones(5, np.int64)})
    stream.advance(["x"])
    assert {name: array.max() for name, array in stream.feeds(0, ["x", "z"]).items()} == {"x": 5, "z": 1}


def test_a_stream_that_finds_no_room_says_so(tmp_path: Path) -> None:
    stream = Stream(tokens(), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            stream.put(0, {"x": np.ones(1 << 16, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_brings_a_stream_back_and_forgets_another_job(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    journal = Journal(folder, "one")
    stream = journal.resume(Stream(tokens(), folder))
    for generation in range(3):
        stream.put(0, {"x": np.full((2, 3), generation, np.float32)})
        stream.advance()
        journal.note({f"found {generation}": [generation]}, stream)
    stream.put(0, {"x": np.full((2, 3), 9, np.float32)})  # and killed
    again = Journal(folder, "one")
    assert again.done == 3 and again.found == {f"found {i}": [i] for i in range(3)}
    back = again.resume(Stream(tokens(), folder))
    assert back.feeds(0, ["x"])["x"].tolist() == [[2.0] * 3] * 2
    back.put(0, {"x": np.zeros((2, 3), np.float32)})
    assert len(list(folder.glob("*.value"))) == 2  # the free one is written over
    (folder / "journal.json").write_text((folder / "journal.json").read_text()[:-9])
    assert Journal(folder, "one").done == 0
    back.advance()
    again.note({}, back)
    assert Journal(folder, "another").done == 0 and not list(folder.iterdir())


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "gpt_neox", "llama"])
def test_chosen_codes_are_nearer_than_rounded_ones(family: str, tmp_path: Path) -> None:
    other = tokens(seed=1)
    expected = outputs(decoder(family), other, tmp_path / "float")[0]

    def error(scheme: RoundToNearest | Gptq) -> float:
        model = decoder(family)
        folder = tmp_path / type(scheme).__name__
        folder.mkdir()
        known = {}
        if isinstance(scheme, Gptq):
            known = calibrated.calibrate(model, scheme, tokens(48), folder, lambda *_: None)
        done = quantize_weights(model, scheme, known)
        assert {t.bits for t in done if t.role.startswith("layers.") and len(t.shape) == 2} == {4}
        return float(((outputs(model, other, folder / "run")[0] - expected) ** 2).mean())

    assert error(SCHEME) < 0.8 * error(RoundToNearest(GRID, Grid(8, 32)))


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_a_narrow_table_errs_less_on_what_the_head_reads(tied: str, tmp_path: Path) -> None:
    model = export(tiny("llama", variant=tied)).model
    run_pipeline(model, ORT_PIPELINE)
    *_, segment = cut(model)
    (site,) = segment.sites()
    weight = site.weight.read()
    scheme = Gptq(GRID, GRID, (("*", None),))  # the layers stay float
    known = calibrated.calibrate(model, scheme, tokens(), tmp_path / "codes", lambda *_: None)
    assert all(coder is None for name, own in known.items() if name != site.table.name for coder in own)
    (coder,) = known[str(site.table.name)]
    assert isinstance(coder, Filed)
    stream = Stream(tokens(), tmp_path)
    for piece in cut(model)[:-1]:
        calibrated.forward(piece, stream, tmp_path)
    x = stream.feeds(0, [str(site.input.name)])[str(site.input.name)].reshape(-1, weight.shape[1])
    chosen = coder.coded(0, len(weight), None).values(coder.format)
    errors = [float(((x @ (worth - weight).T) ** 2).mean()) for worth in (chosen, rtn.nearest(weight, GRID))]
    assert errors[0] < 0.9 * errors[1]
    wide = calibrated.calibrate(model, Gptq(GRID, Grid(8, 16)), tokens(), tmp_path / "wide", lambda *_: None)
    assert site.table.name not in wide


def test_a_products_inputs_are_what_the_quantized_ones_before_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = decoder("llama"), tokens()
    seen: dict[str, np.ndarray] = {}
    moments = calibrated.moments

    def watched(segment: Segment, stream: Stream) -> dict[str, Hessian]:
        found = moments(segment, stream)
        seen.update({name: hessian.finish() for name, hessian in found.items()})
        return found

    monkeypatch.setattr(calibrated, "moments", watched)
    known = calibrated.calibrate(model, SCHEME, ids, tmp_path, lambda *_: None)
    quantize_weights(model, SCHEME, known)
    known_inputs = {
        str(node.inputs[0].name): node.inputs[0] for node in model.graph if node.op_type == "MatMulNBits"
    }
    checked = [name for name in seen if name in known_inputs]
    assert len(checked) == len(seen) == 8
    model.graph.outputs.extend(known_inputs[name] for name in checked)
    given = outputs(model, ids, tmp_path / "q")
    for name, array in zip(checked, given[-len(checked) :], strict=True):
        rows = array.reshape(-1, array.shape[-1])
        assert np.allclose(seen[name], rows.T.astype(np.float64) @ rows / len(rows), rtol=1e-3, atol=1e-4)


def test_filed_codes_come_back(tmp_path: Path) -> None:
    form, grid = BlockFormat(4, 16, False, "float16"), Grid(4, 16)
    rows = random(20, 40).read()
    whole = rtn.quantize(rows, grid)
    filed = Filed(form, (20, 40), tmp_path / "w")
    for some in (rows[:8], rows[8:]):
        filed.append(rtn.quantize(some, grid))
    found = filed.coded(5, 17, None)
    assert np.array_equal(found.codes, whole.codes[5:17])
    assert np.array_equal(found.scale, whole.scale[5:17])


def test_roles_may_have_widths_of_their_own(tmp_path: Path) -> None:
    parts = [Array(random(rows, 64, seed).read()) for seed, rows in enumerate((48, 16, 16))]
    scheme = scheme_of("int4", mixed="attention.v=8,layers.3.ffn.*=8/64")
    assert isinstance(scheme, RoundToNearest)
    assert scheme.grid_of("layers.3.ffn.down") == Grid(8, 64)
    assert scheme.grid_of("layers.4.ffn.down") == Grid(4, 32)
    graph = multiply(Stack(tuple(parts)), role="layers.0.attention.qkv")
    done = quantize_weights(graph, scheme)
    assert [(t.shape, t.bits) for t in done] == [((64, 64), 4), ((16, 64), 8)]
    assert ops(graph).count("MatMulNBits") == 2


@pytest.mark.parametrize("mixed", ["v", "v=", "=8", "v=8/32/1", "v=eight", "v=3", "v=8/20"])
def test_a_bad_exception_is_refused(mixed: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        scheme_of("int4", mixed=mixed)
    assert caught.value.code == "scheme-invalid"
