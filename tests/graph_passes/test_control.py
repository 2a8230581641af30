"""Control islands in many spellings: what they mean is told, written in one way, and the logits stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import spellings
from decoders import canonical, decoder, session
from spellings import (
    LEARNED,
    MASKS,
    MEETINGS,
    NO_LEARNED,
    NO_MASKS,
    NO_ROTARY,
    POSITIONS,
    ROTARY,
    WINDOWS,
    Spelling,
    write,
)

from exporter.errors import OnnxGptError
from graph_passes import run_pipeline
from graph_passes.control.interface import interface_of
from graph_passes.control.island import island_of
from graph_passes.control.probe import DECODE, PREFILL, Probe
from graph_passes.inference.facts import annotate
from graph_passes.lowering.causal import Causal, mask_structure, positions_of

CLOSE = 2e-5

FOREIGN = Path(__file__).parent / "foreign"
"""Graphs that other exporters wrote."""


def rewritten(spelling: Spelling, context: int = spellings.CONTEXT) -> tuple[ir.Model, tuple[str, ...]]:
    """The graph after the pass, and what was refused."""
    model = write(spelling)
    (report,) = run_pipeline(model, f"control{{context_length={context}}}")
    return model, report.refused


def calls(spelling: Spelling) -> list[Probe]:
    """Calls that a graph can take. Places are positions only where no padding comes between."""
    probes = [*PREFILL, *(DECODE if spelling.cache else ())]
    if not spelling.mask_input:
        return [probe for probe in probes if probe.padding == "no"]
    by_place = spelling.rotary is spellings.cut_out or spelling.positions is spellings.places
    if (spelling.rotary or spelling.learned) and (by_place or spelling.learned is spellings.sliced):
        return [probe for probe in probes if (probe.counted == probe.places)[probe.real].all()]
    return probes


def logits(run: ort.InferenceSession, probe: Probe, **more: np.ndarray) -> np.ndarray:
    """Logits of a call; a cache is drawn at random."""
    rng = np.random.default_rng(1)  # the same for both graphs
    shape = (probe.batch, spellings.HEADS, probe.past, spellings.DIM)
    feeds = {
        "input_ids": rng.integers(0, spellings.VOCAB, (probe.batch, probe.length)),
        "attention_mask": probe.valid,
        "position_ids": probe.counted,
        "past_key_values.0.key": rng.standard_normal(shape).astype(np.float32),
        "past_key_values.0.value": rng.standard_normal(shape).astype(np.float32),
    }
    inputs = {value.name: value.type.removeprefix("tensor(").rstrip(")") for value in run.get_inputs()}
    types = {"int64": np.int64, "int32": np.int32, "bool": np.bool_, "float": np.float32}
    taken = {name: feeds[name].astype(types[kind]) for name, kind in inputs.items() if name in feeds}
    return np.asarray(run.run(["logits"], taken | more)[0])


def assert_equal(spelling: Spelling, model: ir.Model) -> None:
    """Logits of all real tokens are those of the graph as it was written."""
    before, after = session(write(spelling)), session(model)
    for probe in calls(spelling):
        off = np.abs(logits(before, probe) - logits(after, probe))[probe.real]
        assert off.max() < CLOSE, str(probe)


def masks_of(model: ir.Model) -> list[Causal | str]:
    """What the mask in front of each softmax means."""
    found = []
    for node in model.graph:
        if node.op_type == "Softmax":
            scores = node.inputs[0].producer()
            assert scores.op_type == "Add"
            bias = scores.inputs[1].producer()
            assert bias.op_type == "Where"
            found.append(mask_structure(bias.inputs[0]))
    return found


@pytest.mark.parametrize("meeting", MEETINGS.values(), ids=MEETINGS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_in_every_spelling_become_one(mask, meeting):
    for cache, mask_input in ((True, True), (False, False)):
        spelling = Spelling(mask=mask, meeting=meeting, cache=cache, mask_input=mask_input)
        model, refused = rewritten(spelling)
        assert not refused
        (found,) = masks_of(model)
        assert found == Causal(model.graph.inputs[1], None)
        assert_equal(spelling, model)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("width", [1, 5, 40])
@pytest.mark.parametrize("mask", WINDOWS.values(), ids=WINDOWS)
def test_windows_are_measured(mask, width, cache):
    spelling = Spelling(mask=mask(width), cache=cache)
    model, refused = rewritten(spelling)
    assert not refused
    assert masks_of(model) == [Causal(model.graph.inputs[1], width)]
    assert_equal(spelling, model)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "mask", [spellings.window(67), spellings.window_up_to(67), spellings.window_up_to(66)]
)
def test_windows_are_looked_for_as_far_as_the_numbers_in_a_graph_reach(mask, cache):
    model, refused = rewritten(Spelling(mask=mask, cache=cache))
    assert not refused
    (found,) = masks_of(model)
    assert isinstance(found, Causal) and found.window in (66, 67)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("mask", NO_MASKS.values(), ids=NO_MASKS)
def test_other_masks_are_refused_with_a_call_that_shows_why(mask, cache):
    spelling = Spelling(mask=mask, learned=spellings.looked_up, positions=spellings.from_mask, cache=cache)
    model, (reason, *_) = rewritten(spelling)
    assert "on a call with B=" in reason or "its mask lets a token see" in reason
    assert_equal(spelling, model)


@pytest.mark.parametrize(
    ("meeting", "reason"),
    [
        ("filled_with_zero", "0 takes the place of hidden scores"),
        ("hidden_a_little", "it adds -50.0 to a score"),
        ("alibi", "it differs from head to head"),
        ("before_another_axis", "goes into no softmax over keys"),
    ],
)
def test_masks_that_do_not_mask_are_refused(meeting, reason):
    spelling = Spelling(meeting=spellings.NO_MEETINGS[meeting])
    model, refused = rewritten(spelling)
    assert reason in refused[0]
    assert_equal(spelling, model)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("rotary", ROTARY.values(), ids=ROTARY)
def test_rotary_tables_are_read_off_and_looked_up_by_counted_positions(rotary, positions):
    for cache in (True, False):
        spelling = Spelling(rotary=rotary, positions=positions, position_input=True, cache=cache)
        model, refused = rewritten(spelling)
        assert not refused
        gathers = [
            node for node in model.graph if node.op_type == "Gather" and "rotary" in node.inputs[0].name
        ]
        assert sorted(node.inputs[0].name for node in gathers) == ["rotary.cos", "rotary.sin"]
        assert all(positions_of(node.inputs[1]) is model.graph.inputs[1] for node in gathers)
        assert all(
            node.inputs[0].shape == ir.Shape([spellings.CONTEXT, spellings.DIM // 2]) for node in gathers
        )
        assert "position_ids" not in [value.name for value in model.graph.inputs]
        assert_equal(spelling, model)


@pytest.mark.parametrize("rotary", NO_ROTARY.values(), ids=NO_ROTARY)
def test_tables_of_more_than_the_position_are_refused(rotary):
    spelling = Spelling(rotary=rotary, positions=spellings.given, position_input=True)
    model, refused = rewritten(spelling)
    assert any("does not get the row of position" in reason for reason in refused)
    assert any("position_ids: it stays an input" in reason for reason in refused)
    assert_equal(spelling, model)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("learned", LEARNED.values(), ids=LEARNED)
def test_learned_positions_are_looked_up_by_counted_positions(learned, positions):
    for cache in (True, False):
        spelling = Spelling(learned=learned, positions=positions, position_input=True, cache=cache)
        model, refused = rewritten(spelling)
        assert not refused
        assert "position_ids" not in [value.name for value in model.graph.inputs]
        assert_equal(spelling, model)


@pytest.mark.parametrize("learned", NO_LEARNED.values(), ids=NO_LEARNED)
def test_rows_that_are_not_those_of_the_positions_are_refused(learned):
    spelling = Spelling(learned=learned, positions=spellings.given, position_input=True)
    model, refused = rewritten(spelling)
    assert len(refused) == 2 and "position_ids: it stays an input" in refused[1]
    assert_equal(spelling, model)


def test_the_interface_is_the_contract():
    model, _ = rewritten(Spelling(rotary=spellings.computed, positions=spellings.given, position_input=True))
    declared = [
        (value.name, str(value.dtype), str(value.shape))
        for value in (*model.graph.inputs, *model.graph.outputs)
    ]
    assert declared == [
        ("input_ids", "INT64", "[batch_size,sequence_length]"),
        ("attention_mask", "INT64", "[batch_size,total_sequence_length]"),
        ("num_logits_to_keep", "INT64", "[]"),
        ("past_key_values.0.key", "FLOAT", "[batch_size,2,past_sequence_length,4]"),
        ("past_key_values.0.value", "FLOAT", "[batch_size,2,past_sequence_length,4]"),
        ("logits", "FLOAT", "[batch_size,kept,23]"),
        ("present.0.key", "FLOAT", "[batch_size,2,total_sequence_length,4]"),
        ("present.0.value", "FLOAT", "[batch_size,2,total_sequence_length,4]"),
    ]


@pytest.mark.parametrize("dtype", ["BOOL", "INT32", "FLOAT"])
def test_tokens_and_masks_of_other_types_become_int64(dtype):
    spelling = Spelling(ids=ir.DataType.INT32, mask_type=ir.DataType[dtype])
    model, refused = rewritten(spelling)
    assert not refused
    assert [value.dtype for value in model.graph.inputs[:2]] == [ir.DataType.INT64] * 2
    assert_equal(spelling, model)


@pytest.mark.parametrize(
    "names", [("key_cache", "value_cache"), ("b", "a"), ("past_key_values.0.value", "x")]
)
def test_caches_are_told_by_where_they_flow(names):
    spelling = Spelling(names=names)
    model, refused = rewritten(spelling)
    assert not refused
    assert [value.name for value in model.graph.inputs[3:]] == [
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    of_keys, of_values = (next(iter(value.uses()))[0] for value in model.graph.inputs[3:])
    assert of_keys.outputs[0] is model.graph.outputs[1] and of_values.outputs[0] is model.graph.outputs[2]
    assert of_values.outputs[0] in next(iter(softmax.outputs[0].uses()))[0].inputs


def test_a_cache_of_tokens_by_heads_is_turned_at_the_border():
    spelling = Spelling(tokens_first=True)
    model, refused = rewritten(spelling)
    assert not refused
    assert [str(value.shape) for value in model.graph.inputs[3:]] == [
        "[batch_size,2,past_sequence_length,4]"
    ] * 2
    rng = np.random.default_rng(2)
    keys, values = (rng.standard_normal((2, 2, 3, 4)).astype(np.float32) for _ in range(2))
    ids, mask = rng.integers(0, spellings.VOCAB, (2, 2)), np.ones((2, 5), np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    caches = {"past_key_values.0.key": keys, "past_key_values.0.value": values}
    turned = {name: array.transpose(0, 2, 1, 3) for name, array in caches.items()}
    wanted = session(write(spelling)).run(None, feeds | turned)
    found = session(model).run(None, feeds | caches)
    assert np.abs(wanted[0] - found[0]).max() < CLOSE
    for old, new in zip(wanted[1:], found[1:], strict=True):
        assert np.array_equal(old.transpose(0, 2, 1, 3), new)


@pytest.mark.parametrize("path", sorted(FOREIGN.glob("optimum-*.onnx")), ids=lambda path: path.stem)
def test_graphs_of_another_exporter(path):
    """What Optimum wrote, with its positions fed as its callers feed them."""
    model = ir.load(path)
    (report,) = run_pipeline(model, "control{context_length=64}")
    assert not report.refused
    assert "position_ids" not in [value.name for value in model.graph.inputs]
    before, after = session(ir.load(path)), session(model)
    shape = next((list(value.shape) for value in model.graph.inputs if "past" in str(value.name)), None)
    rng = np.random.default_rng(0)
    for probe in (*PREFILL, *(DECODE if shape else ())):
        caches = {
            v.name: rng.standard_normal((probe.batch, shape[1], probe.past, shape[3])).astype(np.float32)
            for v in model.graph.inputs
            if "past" in str(v.name)
        }
        feeds = {
            "input_ids": rng.integers(3, 50, (probe.batch, probe.length)),
            "attention_mask": probe.valid,
            "position_ids": probe.counted,
            **caches,
        }
        if all(value.name != "attention_mask" for value in before.get_inputs()) and probe.padding != "no":
            continue
        off = [
            run.run(["logits"], {v.name: feeds[v.name] for v in run.get_inputs() if v.name in feeds})[0]
            for run in (before, after)
        ]
        assert np.abs(off[0] - off[1])[probe.real].max() < CLOSE, str(probe)


def test_edges_of_all_layers_are_told_once():
    """The time to tell edges does not grow with the layers."""
    counts = []
    for layers in (2, 6):
        model = canonical(decoder(layers=layers))
        for node in [node for node in model.graph if node.op_type == "Attention"]:
            old = node.inputs[3]
            copy = ir.node("And", list(old.producer().inputs)[::-1], name=f"{node.name}.mask")
            twin = ir.node("Not", [copy.outputs[0]], name=f"{node.name}.hidden")
            model.graph.insert_before(
                node, [copy, twin, back := ir.node("Not", [twin.outputs[0]], name=f"{node.name}.seen")]
            )
            node.replace_input_with(3, back.outputs[0])
        annotate(model)
        interface = interface_of(model.graph)
        counts.append(len(island_of(model.graph, interface).edges))
        (report,) = run_pipeline(model, "control")
        assert report.fired == layers
    assert counts[0] == counts[1]


def test_the_last_logits_alone_can_be_asked_for():
    model, _ = rewritten(Spelling())
    run = session(model)
    every, last = (logits(run, PREFILL[0], num_logits_to_keep=np.array(n)) for n in (0, 2))
    assert np.abs(every[:, -2:] - last).max() < CLOSE


def test_a_second_run_changes_nothing():
    model, _ = rewritten(Spelling(rotary=spellings.computed, learned=spellings.looked_up))
    before = [(node.op_type, node.name, [value.name for value in node.inputs]) for node in model.graph]
    (report,) = run_pipeline(model, "control{context_length=64}")
    after = [(node.op_type, node.name, [value.name for value in node.inputs]) for node in model.graph]
    assert (report.fired, report.refused, after) == (0, (), before)


def test_a_context_that_nothing_tells_has_to_be_said():
    with pytest.raises(OnnxGptError, match="context-length-unknown"):
        run_pipeline(write(Spelling(rotary=spellings.computed)), "control")
    run_pipeline(write(Spelling(rotary=spellings.stored)), "control")


def test_a_graph_that_is_no_decoder_is_left_alone():
    pen = spellings.Pen()
    x = pen.input("x", ir.DataType.FLOAT, ["n", 4])
    y = pen("Add", x, 1.0)
    model = ir.Model(pen.graph([y], name="plain", opset=18), ir_version=10)
    (report,) = run_pipeline(model, "control")
    assert report.fired == 0 and "inputs are not those of a decoder" in report.refused[0]
