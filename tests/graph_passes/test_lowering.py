"""The lowered graph is the canonical one: alone and in batches, in one go and step by step, with either
cache."""

from __future__ import annotations

import collections
import time
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoders import (
    LENGTHS,
    VARIANTS,
    Oracle,
    canonical,
    decoder,
    empty_cache,
    ragged_batch,
    random_weights,
    rows_of,
    run_chunks,
    session,
    whole,
    worst,
)

from exporter.weights import Unread
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.lint import lint
from graph_passes.lowering.lengths import LEFT_PADDING
from graph_passes.matching import initializer


def lowered(described: Any, pipeline: str = ORT_PIPELINE) -> ir.Model:
    model = canonical(described)
    run_pipeline(model, pipeline)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_lowered_graph_is_as_right_as_the_canonical_one(name: str) -> None:
    described = decoder(**VARIANTS[name])
    weights = random_weights(described)
    rows, chunks = ragged_batch()
    wanted = [Oracle(described, weights).logits(row) for row in rows]

    model = canonical(described, weights)
    run = session(model)
    own = worst([run_chunks(run, described, whole(row))[0][0] for row in rows], wanted)
    assert own < 1e-4 * max(np.abs(w).max() for w in wanted)

    reports = {report.name: report for report in run_pipeline(model, ORT_PIPELINE)}
    layers = len(described.layers)
    assert reports["attention"].fired == reports["qkv"].fired == layers
    assert reports["keep"].fired == 1
    assert collections.Counter(node.op_type for node in model.graph)["GroupQueryAttention"] == layers
    assert lint(model) == ()

    run = session(model)
    assert worst(rows_of(run_chunks(run, described, chunks)), wanted) <= 4 * own
    pieces = [
        (row[None, a:b], np.ones((1, b - a), np.int64))
        for row in rows[:1]
        for a, b in ((0, 5), (5, 9), (9, 12))
    ]
    assert worst([np.concatenate(run_chunks(run, described, pieces), axis=1)[0]], wanted[:1]) <= 4 * own


@pytest.mark.parametrize("name", ["llama", "window", "gpt2", "qwen3", "alibi"])
def test_one_shared_buffer_gives_what_a_growing_cache_gives(name: str) -> None:
    described = decoder(**VARIANTS[name])
    run = session(lowered(described))
    _, chunks = ragged_batch()
    grown = rows_of(run_chunks(run, described, chunks))

    capacity = 16
    buffers = {
        name.removeprefix("past_key_values."): ort.OrtValue.ortvalue_from_numpy(
            np.full((*shape.shape[:2], capacity, shape.shape[3]), np.nan, np.float32)
        )
        for name, shape in empty_cache(described, len(LENGTHS)).items()
    }
    logits, mask = [], np.zeros((len(LENGTHS), 0), np.int64)
    for ids, valid in chunks:
        mask = np.concatenate([mask, valid], axis=1)
        binding = run.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        for suffix, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{suffix}", buffer)
            binding.bind_ortvalue_output(f"present.{suffix}", buffer)
        binding.bind_output("logits")
        run.run_with_iobinding(binding)
        logits.append(binding.get_outputs()[-1].numpy())
    assert worst(rows_of(logits), grown) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 1]]])
def test_left_padding_is_refused_by_name(name: str, mask: list[list[int]]) -> None:
    described = decoder(**VARIANTS[name])
    run = session(lowered(described))
    feeds = {
        "input_ids": np.ones((2, 3), np.int64),
        "attention_mask": np.array(mask),
        **empty_cache(described, 2),
    }
    with pytest.raises(Exception, match=LEFT_PADDING):
        run.run(None, feeds)


@pytest.mark.parametrize("name", ["llama", "alibi", "alibi_window"])
def test_padding_on_either_side_is_seen_where_that_is_asked_for(name: str) -> None:
    described = decoder(**VARIANTS[name])
    runs = [
        session(model) for model in (canonical(described), lowered(described, "fold, attention{padding=any}"))
    ]
    rng = np.random.default_rng(0)
    real = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    chunks = [
        (rng.integers(0, 61, (3, size)), mask) for size, mask in ((5, real), (1, np.ones((3, 1), np.int64)))
    ]
    wanted, found = (run_chunks(run, described, chunks) for run in runs)
    for (_, mask), ours, theirs in zip(chunks, found, wanted, strict=True):
        np.testing.assert_allclose(ours[mask == 1], theirs[mask == 1], atol=1e-4)


def test_left_padding_is_refused_with_every_optimisation_on() -> None:
    described = decoder()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    run = ort.InferenceSession(ir.to_proto(lowered(described)).SerializeToString(), options)
    feeds = {
        "input_ids": np.ones((1, 3), np.int64),
        "attention_mask": np.array([[0, 1, 1]]),
        **empty_cache(described, 1),
    }
    with pytest.raises(Exception, match=LEFT_PADDING):
        run.run(None, feeds)


def test_attention_that_others_fused_refuses_left_padding_too() -> None:
    described = decoder()
    model = lowered(described)
    guard = next(node for node in model.graph if node.name == LEFT_PADDING)
    (tokens, _), *_ = guard.outputs[0].uses()
    unguarded = ir.node(
        "Sub", [tokens.inputs[0], initializer(model.graph, ir.tensor([1], ir.DataType.INT32))]
    )
    model.graph.insert_after(tokens, unguarded)  # as the genai builder counts them
    tokens.outputs[0].replace_all_uses_with(unguarded.outputs[0])
    model.graph.remove([tokens, guard], safe=True)

    feeds = {
        "input_ids": np.ones((2, 3), np.int64),
        "attention_mask": np.array([[1, 1, 0], [1, 1, 1]]),
        **empty_cache(described, 2),
    }
    right = session(model).run(["logits"], feeds)[0]
    (report,) = run_pipeline(model, "attention")
    assert report.fired == len(described.layers)
    run = session(model)
    np.testing.assert_array_equal(run.run(["logits"], feeds)[0], right)
    with pytest.raises(Exception, match=LEFT_PADDING):
        run.run(None, feeds | {"attention_mask": np.array([[0, 1, 1], [1, 1, 1]])})
    (report,) = run_pipeline(model, "attention")
    assert report.fired == 0


def test_logits_of_the_last_tokens_are_the_last_of_all() -> None:
    described = decoder()
    run = session(lowered(described))
    ids = np.arange(9)[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty_cache(described, 1)}
    every = run.run(["logits"], feeds)[0]
    for keep in (1, 4):
        last = run.run(["logits"], {**feeds, "num_logits_to_keep": np.array(keep)})[0]
        assert last.shape[1] == keep
        np.testing.assert_allclose(last, every[:, -keep:], atol=1e-5)


def test_a_sequence_beyond_the_rotary_tables_is_refused_not_wrapped() -> None:
    described = decoder(context=8)
    run = session(lowered(described))
    ids = np.ones((1, 9), np.int64)
    with pytest.raises(Exception, match="cos_cache dimension 0"):
        run.run(None, {"input_ids": ids, "attention_mask": ids, **empty_cache(described, 1)})


def test_rotary_models_keep_nothing_of_positions_and_mask() -> None:
    ops = {node.op_type for node in lowered(decoder(window=3)).graph}
    assert not ops & {"CumSum", "Range", "LessOrEqual", "And", "RotaryEmbedding", "Attention", "Transpose"}
    assert "CumSum" in {node.op_type for node in lowered(decoder(**VARIANTS["gpt2"])).graph}


@pytest.mark.parametrize("name", VARIANTS)
def test_lowering_reads_no_weight(name: str) -> None:
    described = decoder(**VARIANTS[name])
    weights = {role: Unread(weight.shape) for role, weight in random_weights(described).items()}
    model = canonical(described, weights)
    run_pipeline(model, ORT_PIPELINE)
    assert not lint(model)


def test_lowering_is_linear_in_layers() -> None:
    def seconds(layers: int) -> float:
        described = decoder(layers=layers)
        best = []
        for _ in range(3):
            model = canonical(described)
            started = time.perf_counter()
            run_pipeline(model, ORT_PIPELINE)
            best.append(time.perf_counter() - started)
        return min(best)

    assert seconds(32) < 3 * 4 * seconds(8)  # quadratic work would take 16 times as long


def test_nodes_of_a_llama_layer() -> None:
    def nodes(layers: int, pipeline: str) -> int:
        return lowered(decoder(layers=layers, tied=True), pipeline).graph.num_nodes()

    assert nodes(3, ORT_PIPELINE) - nodes(2, ORT_PIPELINE) == 8
    assert nodes(30, ORT_PIPELINE) <= 300
    inlined = ORT_PIPELINE.replace("outline, ", "")
    assert nodes(3, inlined) - nodes(2, inlined) == 10


def test_roles_name_the_packed_maps() -> None:
    roles = {node.metadata_props.get("onnx_gpt.role") for node in lowered(decoder(layers=1)).graph}
    assert {
        "layers.0.attention.qkv",
        "layers.0.ffn.gate_up",
        "layers.0.attention.o",
        "layers.0.ffn.down",
    } <= roles
