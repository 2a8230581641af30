"""float16: graphs of every kind compute in it, and what overflows on text stays float32."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.half_islands import islands
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import WeightOnly, scheme_of
from calibration.statistics.half_range import HalfRange
from exporter.decoder import Decoder
from exporter.errors import Exit, OnnxGptError
from exporter.weight_expressions import Transposed
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.lowering.half import HalfTensor, float_values, half
from graph_passes.lowering.half_simulation import simulate
from graph_passes.matching import role_of
from onnx_gpt.optimizing.calibrating import half_fits
from onnx_gpt.optimizing.halving import measured
from onnx_gpt.progress import Silent
from tests.graph_passes.decoders import VARIANTS, VOCAB, canonical, decoder, random_weights

TOKENS = np.random.default_rng(3).integers(0, VOCAB, (2, 12))


def lowered(described: Decoder, weights: dict[str, Weight] | None = None, scheme: str = "") -> ir.Model:
    model = canonical(described, weights)
    run_pipeline(model, ORT_PIPELINE, verify=False)
    if scheme:
        wanted = scheme_of(scheme)
        assert isinstance(wanted, WeightOnly)
        quantize_weights(model, wanted)
    return model


def run(model: ir.Model, optimized: bool = True) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    feeds = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            dtype = np.float16 if "float16" in value.type else np.float32
            feeds[value.name] = np.zeros((2, value.shape[1], 0, value.shape[3]), dtype)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feeds), strict=True))


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_half_graph_is_near_the_float_one(name: str) -> None:
    described = decoder(**VARIANTS[name])
    exact = run(lowered(described))
    for patterns in ((), ("*norm*",)):
        model = lowered(described)
        done = half(model, patterns)
        found = run(model)
        assert done.cache and {found[key].dtype for key in found if key != "logits"} == {np.dtype(np.float16)}
        assert found["logits"].dtype == np.float32
        assert 0 < error(found["logits"], exact["logits"]) < 0.01
        assert bool(done.islands) == bool(patterns)
        biased = described.layers[0].attention.alibi is not None  # biases are made in float32 and cast
        assert bool(done.casts) == bool(patterns or biased)
        for value in model.graph.initializers.values():  # every weight of a product is a half, and unread
            if isinstance(value.const_value, WeightTensor | HalfTensor) and len(value.const_value.shape) > 1:
                assert isinstance(value.const_value, HalfTensor)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mqa_tied", "gemma3"])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_codes_are_multiplied_by_half_scales_as_they_lie_on_disk(name: str, scheme: str) -> None:
    described = decoder(**VARIANTS[name])
    exact = run(lowered(described, scheme=scheme))
    model = lowered(described, scheme=scheme)
    half(model)
    assert not [node for node in model.graph if node.op_type == "Cast" and node.inputs[0].is_initializer()]  # type: ignore[union-attr]
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            assert node.inputs[2] is not None and node.inputs[2].dtype == ir.DataType.FLOAT16
    assert error(run(model)["logits"], exact["logits"]) < 0.1  # activations of the kernel are int8 by block


def test_an_int8_cache_keeps_its_type_and_its_scales() -> None:
    from calibration.kv_cache import CacheRanges, quantize_cache

    described = decoder()
    model = lowered(described)
    presents = {name: array for name, array in run(model).items() if name != "logits"}
    quantize_cache(model, CacheRanges().add(presents, {}))
    half(model)
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert attention.inputs[12] is not None and attention.inputs[12].dtype == ir.DataType.FLOAT
    assert {value.dtype for value in model.graph.inputs if str(value.name).startswith("past")} == {
        ir.DataType.INT8
    }


def test_an_attention_in_an_island_keeps_the_whole_cache_in_float32() -> None:
    model = lowered(decoder())
    done = half(model, ("layers.1.attention.heads",))
    found = run(model)
    assert not done.cache and found["present.0.key"].dtype == np.float32
    other = lowered(decoder())
    assert not half(other, cache=False).cache and run(other)["present.1.value"].dtype == np.float32


def massive(described: Decoder, size: float) -> dict[str, Weight]:
    """Weights by which one channel of a layer's feed-forward reaches ``size`` and its residual stream stays there."""
    weights = random_weights(described)
    down = weights["layers.0.ffn.down.weight"].read().copy()
    down[5] *= size / np.abs(down[5]).sum()
    weights["layers.0.ffn.down.weight"] = Array(down)
    return weights


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_what_overflows_is_found_and_stays_float32(name: str, tmp_path: Path) -> None:
    described = decoder(**VARIANTS[name], context=64)
    weights = massive(described, 4e5)
    exact = run(lowered(described, weights))["logits"]
    blind = lowered(described, weights)
    simulate(blind)
    broken = not np.isfinite(run(blind, optimized=False)["logits"]).all()
    model = lowered(described, weights)
    plan = measured(model, TOKENS, {}, tmp_path / "run", Silent())
    assert broken and plan.largest[1] > 65504
    assert any("reaches" in island.reason for island in plan.islands)
    facts = plan.apply(model)
    found = run(model)["logits"]
    assert facts["islands"] and plan.simulated < 1e-3
    assert np.isfinite(found).all() and error(found, exact) < 0.01


def test_a_well_behaved_model_needs_no_island(tmp_path: Path) -> None:
    model = lowered(decoder(**VARIANTS["gpt2"]))
    plan = measured(model, TOKENS, {}, tmp_path / "run", Silent())
    assert plan.islands == () and plan.edges == len(float_values(model)) > 20 and 0 < plan.simulated < 1e-4


def test_squares_that_overflow_make_an_island_of_the_norm_alone(tmp_path: Path) -> None:
    described = decoder(context=64)
    model = lowered(described, massive(described, 2000.0))
    fits = half_fits(model, float_values(model), TOKENS, tmp_path / "run", Silent())
    found = islands(model, fits)
    norms = {role_of(node) for node in model.graph if "Norm" in node.op_type}
    assert found and {island.role for island in found} <= norms
    assert all("squares sum to" in island.reason for island in found)


def test_the_simulation_rounds_every_value(tmp_path: Path) -> None:
    model = lowered(decoder())
    count = simulate(model)
    narrow = [value for node in model.graph if node.op_type == "Cast" for value in node.outputs]
    rounded = [value for value in narrow if str(value.name).endswith(".again")]
    assert count == len(rounded) + 1  # logits are called so
    for value in rounded:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.extend(rounded)
    found = run(model, optimized=False)
    for value in rounded:
        array = found[str(value.name)]
        np.testing.assert_array_equal(array, array.astype(np.float16))


def test_it_is_a_pass_of_a_pipeline() -> None:
    model = canonical(decoder())
    reports = run_pipeline(model, f"{ORT_PIPELINE}, half{{islands=*norm*+head}}")
    assert reports[-1].name == "half" and reports[-1].kind == "lossy" and reports[-1].fired > 10
    assert run(model)["present.0.key"].dtype == np.float16


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_half_tensor_streams_what_it_rounds(rows: int, columns: int, turned: bool, seed: int) -> None:
    array = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    weight: Weight = Transposed(Array(array)) if seed % 2 else Array(array)
    tensor = HalfTensor(WeightTensor("w", weight, transpose=turned))
    file = io.BytesIO()
    tensor.tofile(file)
    wanted = (weight.read().T if turned else weight.read()).astype(np.float16)
    assert file.getvalue() == np.ascontiguousarray(wanted).tobytes() == tensor.numpy().tobytes()
    assert tensor.nbytes == wanted.nbytes


def test_a_weight_beyond_float16_is_refused_and_a_mask_is_not() -> None:
    with pytest.raises(OnnxGptError) as caught:
        HalfTensor(WeightTensor("w", Array(np.full((40, 40), 1e5, np.float32)))).numpy()
    assert (caught.value.code, caught.value.exit) == ("weights-beyond-float16", Exit.REJECTED)
    mask = HalfTensor(ir.tensor(np.array([0.0, -3e38], np.float32), name="mask"))
    np.testing.assert_array_equal(mask.numpy(), np.array([0.0, -65504.0], np.float16))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_half_range_is_a_monoid(sizes: Collection[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [
        (rng.standard_normal((size, 7)) * 10.0 ** rng.integers(-8, 6)).astype(np.float32) for size in sizes
    ]
    whole = HalfRange.empty().add(np.concatenate(batches))
    merged = HalfRange.empty()
    for batch in batches:
        merged = merged.merge(HalfRange.empty().add(batch))
    assert (merged.largest, merged.count) == (whole.largest, whole.count)
    np.testing.assert_allclose(
        [merged.square, merged.energy, merged.lost], [whole.square, whole.energy, whole.lost], rtol=1e-6
    )
    assert 0 <= whole.finish().rounding <= 1
