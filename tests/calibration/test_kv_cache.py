"""An int8 cache: ranges stream and merge, every kind of attention takes the codes, and the codes are what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.kv_cache import (
    SINK,
    CacheRanges,
    attentions_with_cache,
    hold_scores,
    quantize_cache,
    rotations_of,
)
from exporter.decoder import Decoder
from exporter.errors import Exit, OnnxGptError
from graph_passes import ORT_PIPELINE, run_pipeline
from tests.graph_passes.decoders import (
    VARIANTS,
    VOCAB,
    canonical,
    decoder,
    empty_cache,
    ragged_batch,
    rows_of,
    session,
    worst,
)


def lowered(options: Mapping[str, Any]) -> tuple[Decoder, ir.Model]:
    described = decoder(**options)
    model = canonical(described)
    run_pipeline(model, ORT_PIPELINE)
    return described, model


def presents_of(model: ir.Model, described: Decoder, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Logits and caches of whole rows ``[B, S]`` without padding."""
    run = session(model)
    types = {value.name: value.type for value in run.get_inputs()}
    cache = empty_cache(described, len(ids))
    cache = {n: a.astype(np.int8 if types[n] == "tensor(int8)" else np.float32) for n, a in cache.items()}
    out = run.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids), **cache})
    return dict(zip([value.name for value in run.get_outputs()], out, strict=True))


def ranges_of(model: ir.Model, described: Decoder, seed: int = 0) -> CacheRanges:
    ids = np.random.default_rng(seed).integers(0, VOCAB, (8, 24))
    caches = presents_of(model, described, ids)
    del caches["logits"]
    return CacheRanges().add(caches, rotations_of(model))


def kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean KL(theirs ‖ ours) of logits ``[B, S, V]``, in nats."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))

    p, q = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_ranges_of_pieces_are_those_of_the_whole(seed: int, sizes: list[int]) -> None:
    whole = np.random.default_rng(seed).normal(size=(2, 3, sum(sizes), 4)).astype(np.float32)
    cuts = np.split(whole, np.cumsum(sizes)[:-1], axis=2)
    together = CacheRanges().add({"present.0.key": whole}, {})
    streamed, merged = CacheRanges(), CacheRanges()
    for cut in cuts:
        streamed = streamed.add({"present.0.key": cut}, {})
        merged = CacheRanges().add({"present.0.key": cut}, {}).merge(merged)
    for other in (streamed, merged):
        assert other.tokens == together.tokens == 2 * sum(sizes)
        np.testing.assert_array_equal(other.largest["present.0.key"], together.largest["present.0.key"])


def test_a_channel_that_is_always_zero_has_a_scale_that_divides() -> None:
    ranges = CacheRanges().add({"present.0.value": np.zeros((1, 1, 4, 8), np.float32)}, {})
    np.testing.assert_array_equal(ranges.scales()["present.0.value"], np.ones((1, 1, 1, 8), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cache_that_holds_no_numbers_has_no_scales(bad: float) -> None:
    ranges = CacheRanges().add({"present.0.value": np.full((1, 1, 4, 8), bad, np.float32)}, {})
    with pytest.raises(OnnxGptError, match=r"present\.0\.value") as caught:
        ranges.scales()
    assert caught.value.code == "activations-not-finite"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_attention_keeps_its_cache_as_codes_and_the_logits_hold(name: str) -> None:
    described, model = lowered(VARIANTS[name])
    ranges = ranges_of(model, described)
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, 20))
    exact = presents_of(model, described, ids)
    coarse = dataclasses.replace(ranges, largest={n: 16 * a for n, a in ranges.largest.items()})
    _, coarser = lowered(VARIANTS[name])
    quantize_cache(coarser, coarse)
    assert quantize_cache(model, ranges) == len(described.layers)
    rounded = presents_of(model, described, ids)
    near, far = (kl(m["logits"], exact["logits"]) for m in (rounded, presents_of(coarser, described, ids)))
    assert 0 < near < 0.1
    assert 3 * near < far, "the error is that of the grid"

    for present, scale in ranges.scales().items():
        assert rounded[present].dtype == np.int8
        if present.startswith("present.0."):  # what the first layer appends is the same in both graphs
            codes = np.clip(np.rint(exact[present] / scale), -128, 127)
            assert np.abs(rounded[present] - codes).max() <= 1, "a tie may go either way"
            assert (rounded[present] != codes).mean() < 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_held_scores_give_the_same_logits(name: str) -> None:
    described, model = lowered(VARIANTS[name])
    quantize_cache(model, ranges_of(model, described))
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, 20))
    by_tiles = presents_of(model, described, ids)["logits"]
    hold_scores(model)
    sinks = {node.inputs[SINK] for node in attentions_with_cache(model)}
    assert None not in sinks and len(sinks) == len({layer.attention.heads for layer in described.layers})
    held = presents_of(model, described, ids)["logits"]
    # A sum in another order may move a code by one: that is worth some hundredths of a logit here.
    assert kl(held, by_tiles) < 1e-4 and np.abs(held - by_tiles).max() < 0.1


@pytest.mark.parametrize("name", ["llama", "window", "gpt2", "softcap"])
def test_a_padded_batch_fed_step_by_step_is_each_row_at_once(name: str) -> None:
    described, model = lowered(VARIANTS[name])
    quantize_cache(model, ranges_of(model, described))
    rows, chunks = ragged_batch()
    run = session(model)
    cache = {n: a.astype(np.int8) for n, a in empty_cache(described, len(rows)).items()}
    mask, logits = np.zeros((len(rows), 0), np.int64), []
    for ids, valid in chunks:
        mask = np.concatenate([mask, valid], axis=1)
        out = dict(
            zip(
                [value.name for value in run.get_outputs()],
                run.run(None, {"input_ids": ids, "attention_mask": mask, **cache}),
                strict=True,
            )
        )
        logits.append(out.pop("logits"))
        cache = {n.replace("present", "past_key_values"): a for n, a in out.items()}
    alone = [presents_of(model, described, row[None])["logits"][0] for row in rows]
    # A sum in another order may move a code by one: that is worth some hundredths of a logit here.
    assert worst(rows_of(logits), alone) < 0.1


def test_what_the_graph_promises_changes_with_the_cache() -> None:
    described, model = lowered(VARIANTS["llama"])
    before = {v.name: (v.shape, v.dtype) for v in [*model.graph.inputs, *model.graph.outputs]}
    quantize_cache(model, ranges_of(model, described))
    for value in [*model.graph.inputs, *model.graph.outputs]:
        shape, dtype = before[value.name]
        assert value.shape == shape
        held = str(value.name).startswith(("past_key_values.", "present."))
        assert value.dtype == (ir.DataType.INT8 if held else dtype)


@pytest.mark.parametrize("lower", [True, False])
def test_a_cache_that_another_operator_keeps_is_refused_by_name_and_left_alone(lower: bool) -> None:
    described = decoder(head_dim=20) if lower else decoder()
    model = canonical(described)
    if lower:
        run_pipeline(model, ORT_PIPELINE)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(OnnxGptError) as caught:
        quantize_cache(model, CacheRanges())
    assert (caught.value.code, caught.value.exit) == ("cannot-quantize-cache", Exit.UNSUPPORTED)
    assert any("layers.0.attention" in detail for detail in caught.value.details)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_graph_without_a_cache_is_refused() -> None:
    _, model = lowered(VARIANTS["llama"])
    del model.graph.outputs[1:]
    with pytest.raises(OnnxGptError, match="no key/value cache"):
        attentions_with_cache(model)
