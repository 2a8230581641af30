"""A decoder without a cache gets one: what it answers on a whole text, it answers token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from decoders import (
    HIDDEN,
    VARIANTS,
    Decoder,
    canonical,
    decoder,
    ragged_batch,
    rows_of,
    run_chunks,
    session,
    whole,
    worst,
)
from spellings import Pen, Spelling, write

from graph_passes import run_pipeline
from graph_passes.matching import make, replace

CLOSE = 3e-6
"""Of logits around 1: a step multiplies one row where the whole text multiplies many."""


def without_cache(model: ir.Model, *, causal_attribute: bool = False) -> ir.Model:
    """A canonical graph with its cache taken out; with its masks too where attention is causal by itself."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Attention"]:
        mask = () if causal_attribute else node.inputs[3:4]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        new = make(
            "Attention",
            [*node.inputs[:3], *mask],
            str(node.name),
            **attributes,
            is_causal=int(causal_attribute),
        )
        del graph.outputs[1:]
        replace(node, [node], [new], [(node.outputs[0], new.outputs[0])])
    for value in [value for value in graph.inputs if str(value.name).startswith("past")]:
        graph.inputs.remove(value)
    return model


def answers(model: ir.Model, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Logits ``[S, V]`` of each text by a graph without a cache."""
    run = session(model)
    names = {value.name for value in run.get_inputs()}
    calls = ({"input_ids": row[None], "attention_mask": np.ones_like(row[None])} for row in rows)
    return [
        np.asarray(run.run(["logits"], {k: v for k, v in call.items() if k in names})[0])[0] for call in calls
    ]


def assert_cached(described: Decoder, model: ir.Model, wanted: list[np.ndarray]) -> None:
    """Prefill at once, and a padded batch that goes on token by token, give what the whole texts gave."""
    rows, chunks = ragged_batch()
    run = session(model)
    at_once = [run_chunks(run, described, whole(row))[0][0] for row in rows]
    assert worst(at_once, wanted) < CLOSE * max(1.0, max(float(np.abs(w).max()) for w in wanted))
    if any(layer.attention.window for layer in described.layers):  # padding counts as distance
        chunks = whole(rows[0][None, :5][0]) + [
            (rows[0][None, i : i + 1], np.ones((1, 1), np.int64)) for i in range(5, len(rows[0]))
        ]
        steps = [np.concatenate([part[0] for part in run_chunks(run, described, chunks)])]
        wanted = wanted[:1]
    else:
        steps = rows_of(run_chunks(run, described, chunks))
    assert worst(steps, wanted) < CLOSE * max(1.0, max(float(np.abs(w).max()) for w in wanted))


@pytest.mark.parametrize("pipeline", ["cache", "fold, cache"])
@pytest.mark.parametrize("variant", [name for name, given in VARIANTS.items() if "alibi" not in given])
def test_a_cache_taken_out_comes_back(variant: str, pipeline: str) -> None:
    described = decoder(**VARIANTS[variant])
    model = without_cache(canonical(described))
    wanted = answers(model, ragged_batch()[0])
    *_, report = run_pipeline(model, pipeline)
    assert (report.fired, report.refused) == (len(described.layers), ())
    assert_cached(described, model, wanted)
    ours, theirs = canonical(described).graph, model.graph
    assert [v.name for v in theirs.inputs] == [v.name for v in ours.inputs]
    assert [(v.name, str(v.shape), v.dtype) for v in theirs.outputs] == [
        (v.name, str(v.shape), v.dtype) for v in ours.outputs
    ]
    assert Counter(n.op_type for n in theirs) == Counter(n.op_type for n in ours)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "neox", "qwen3"])
def test_attention_that_is_causal_by_itself_gets_a_mask_and_a_cache(variant: str) -> None:
    described = decoder(**VARIANTS[variant])
    model = without_cache(canonical(described), causal_attribute=True)
    wanted = answers(model, ragged_batch()[0])
    (report,) = run_pipeline(model, "cache")
    assert (report.fired, report.refused) == (len(described.layers), ())
    assert_cached(described, model, wanted)


def test_a_cached_decoder_is_left_alone() -> None:
    model = canonical(decoder())
    (report,) = run_pipeline(model, "cache")
    assert (report.fired, report.refused) == (0, ())


def spoiled(kind: str) -> ir.Model:
    """A decoder without a cache in whose second norm tokens meet, or whose attention cannot have a cache."""
    model = without_cache(canonical(decoder()))
    graph = model.graph
    norm = next(node for node in graph if node.name == "layers.1.ffn_norm")
    attention = next(node for node in graph if node.name == "layers.0.attention.heads")
    x, pen = norm.inputs[0], Pen()
    if kind == "mean over tokens":
        norm.replace_input_with(0, pen("Sub", x, pen("ReduceMean", x, [1], keepdims=1)))
    elif kind == "token shift":
        before = pen("Slice", x, [0], [-1], [1])
        norm.replace_input_with(0, pen("Concat", pen("Slice", x, [0], [1], [1]), before, axis=1))
    elif kind == "running sum":
        norm.replace_input_with(0, pen("CumSum", x, 1))
    elif kind == "softmax over tokens":
        norm.replace_input_with(0, pen("Softmax", x, axis=1))
    elif kind == "length of the call":
        length = pen("Cast", pen("Shape", graph.inputs[0], start=1, end=2), to=ir.DataType.FLOAT)
        norm.replace_input_with(0, pen("Mul", x, length))
    elif kind == "padding is zeroed":
        real = pen("Cast", pen("Unsqueeze", graph.inputs[1], [2]), to=ir.DataType.FLOAT)
        norm.replace_input_with(0, pen("Mul", x, real))
    elif kind == "length of the mask":  # without a past it is that of the call
        shape = pen("Concat", pen("Shape", graph.inputs[1]), [HIDDEN], axis=0)
        norm.replace_input_with(0, pen("Reshape", x, shape))
    elif kind == "rows of all tokens":
        norm.replace_input_with(0, pen("Reshape", x, [-1, HIDDEN]))
        tokens = pen("Concat", pen("Shape", graph.inputs[0]), [HIDDEN], axis=0)
        for node, index in tuple(norm.outputs[0].uses()):
            node.replace_input_with(index, pen("Reshape", norm.outputs[0], tokens))
    elif kind == "no mask":
        attention.replace_input_with(3, None)
    elif kind == "scores are given out":
        attention.resize_outputs(4)
        attention.outputs[3].name = "scores"
        graph.outputs.append(attention.outputs[3])
    for value in pen.initializers:
        graph.register_initializer(value)
    graph.insert_before(norm, pen.nodes)
    graph.sort()
    return model


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mean over tokens", "ReduceMean adds up tokens"),
        ("token shift", "Concat works along the tokens"),
        ("running sum", "CumSum may let tokens meet"),
        ("softmax over tokens", "Softmax works along the tokens"),
        ("length of the call", "depends on the length of the call"),
        ("padding is zeroed", "depends on attention_mask"),
        ("no mask", "it lets a token see later ones"),
        ("scores are given out", "its keys or scores are used"),
    ],
)
def test_what_a_cache_cannot_hold_is_refused(kind: str, reason: str) -> None:
    model = spoiled(kind)
    inputs = [value.name for value in model.graph.inputs]
    (report,) = run_pipeline(model, "cache")
    assert report.fired == 0 and any(reason in refusal for refusal in report.refused), report.refused
    assert [value.name for value in model.graph.inputs] == inputs


@pytest.mark.parametrize("kind", ["length of the mask", "rows of all tokens"])
def test_what_is_the_same_without_a_past_does_no_harm(kind: str) -> None:
    model = spoiled(kind)
    wanted = answers(model, ragged_batch()[0])
    (report,) = run_pipeline(model, "cache")
    assert (report.fired, report.refused) == (2, ())
    assert_cached(decoder(), model, wanted)


def with_positions(step: int) -> tuple[Decoder, ir.Model]:
    """A decoder whose learned positions run over the call, up from 0 or down to it."""
    described = decoder(**VARIANTS["gpt2"])
    model = without_cache(canonical(described))
    graph, pen = model.graph, Pen()
    rows = next(node for node in graph if node.name == "positions.rows")
    length = pen("Squeeze", pen("Shape", graph.inputs[0], start=1, end=2))
    ends = (0, length) if step > 0 else (pen("Sub", length, 1), -1)
    rows.replace_input_with(1, pen("Unsqueeze", pen("Range", *ends, step), [0]))
    for value in pen.initializers:
        graph.register_initializer(value)
    graph.insert_before(rows, pen.nodes)
    return described, model


def test_positions_within_a_call_become_positions_in_the_text() -> None:
    described, model = with_positions(1)
    wanted = answers(model, ragged_batch()[0])
    (report,) = run_pipeline(model, "cache")
    assert (report.fired, report.refused) == (len(described.layers), ())
    assert_cached(described, model, wanted)


def test_positions_that_another_token_would_change_are_refused() -> None:
    _, model = with_positions(-1)
    (report,) = run_pipeline(model, "cache")
    assert report.fired == 0 and "is not canonical" in " ".join(report.refused)
    assert "does not get the row of position" in report.refused[0]


def test_a_decoder_without_attention_operators_is_told_to_be_canonical_first() -> None:
    (report,) = run_pipeline(write(Spelling(cache=False)), "cache")
    assert report.fired == 0 and "`canonical` pass" in report.refused[0]
