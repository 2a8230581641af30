"""Weights of finished bundles of every scheme, held against the source by value at any later time."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.onnx_format.reader import read_file
from exporter.writing import write_checkpoint
from graph_passes.matching import role_of
from onnx_gpt.certificate.tracing import Trace, trace_file
from onnx_gpt.certificate.tracing.operands import matrix_of
from onnx_gpt.certificate.tracing.stored import Dequantized, Stored

sys.path.insert(0, str(Path(__file__).parent.parent / "exporter"))

SCHEMES: dict[str, dict[str, Any]] = {
    "w8a8": {"quantize": "w8a8"},
    "w8a8, rounded": {"quantize": "w8a8", "method": "rtn"},
    "dynamic8": {"quantize": "dynamic8"},
    "awq": {"quantize": "int4", "method": "awq"},
    "awq, 8 bits": {"quantize": "int8", "method": "awq"},
    "gptq": {"quantize": "int4", "method": "gptq"},
    "2 bits": {"quantize": "int4", "mixed": "ffn.down=2/32,table=2/32"},
    "gptq, 2 bits": {"quantize": "int4", "method": "gptq", "mixed": "ffn.down=2/32"},
    "bias": {"quantize": "int4", "method": "bias"},
    "fp16": {"quantize": "fp16"},
    "q4f16": {"quantize": "q4f16", "method": "rtn"},
    "keep": {"quantize": "keep"},
}
READS_TEXT = ("w8a8", "awq", "gptq", "bias", "fp16", "q4f16")
DOWN, OTHER = "layers.1.ffn.down", "layers.0.ffn.down"
HAS_BIASES = ("bias", "awq, 8 bits")


class Bundles:
    """Sources and bundles, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "text.npy"
        np.save(self.text, np.random.default_rng(2).integers(0, 131, 2048))

    def source(self, scheme: str, seed: int = 0) -> Path:
        if scheme == "keep":
            return self._gguf(seed)
        family = "qwen2" if scheme in HAS_BIASES else "llama"
        path = self.folder / f"{family}-{seed}"
        if not path.exists():
            path.mkdir()
            write_checkpoint(path, tiny(family, seed))
        return path

    def of(self, scheme: str, seed: int = 0) -> Path:
        path = self.folder / f"{scheme}-{seed}"
        if not path.exists():
            text = {"calibration": self.text} if scheme.startswith(READS_TEXT) else {}
            settings = SCHEMES[scheme] | text
            source = str(self.source(scheme, seed))
            onnx_gpt.optimize(source, path, parity=False, verify=False, **settings)
        return path

    def traced(self, scheme: str, model: Path) -> Trace:
        settings = SCHEMES[scheme]
        method = settings.get("method", "gptq" if scheme == "w8a8" else "rtn")
        source = sources.load(str(self.source(scheme)))
        return trace_file(model, source, quantize=settings["quantize"], method=method)

    def _gguf(self, seed: int) -> Path:
        from gguf import GGMLQuantizationType
        from gguf_samples import convert
        from gguf_samples import tiny as tiny_gguf

        path = self.folder / f"{seed}.gguf"
        if not path.exists():
            model = copy.deepcopy(tiny_gguf("llama"))
            for tensor in model.state_dict().values() if seed else ():
                tensor.copy_(tensor.flip(0))
            convert(model, path, GGMLQuantizationType.Q4_1)
        return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


def held(model: ir.Model, role: str) -> Stored:
    """What a product of a role reads."""
    found = [matrix_of(node) for node in model.graph if role_of(node) == role]
    (stored,) = (one for one in found if isinstance(one, Stored))
    return stored


def arrays(stored: Stored) -> list[np.ndarray]:
    tensors = [value.const_value for value in stored.initializers]
    return [tensor.numpy().copy() for tensor in tensors if tensor is not None]


def put(stored: Stored, new: list[np.ndarray]) -> None:
    for value, array in zip(stored.initializers, new, strict=True):
        assert value.const_value is not None and value.const_value.shape == array.shape
        value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)


def zeroed(model: ir.Model, other: ir.Model) -> None:
    stored = held(model, DOWN)
    new = [array if array.dtype.kind in "iu" or array.size == 1 else 0 * array for array in arrays(stored)]
    put(stored, new)


def swapped(model: ir.Model, other: ir.Model) -> None:
    one, two = held(model, DOWN), held(model, OTHER)
    first, second = arrays(one), arrays(two)
    put(one, second)
    put(two, first)


def stale(model: ir.Model, other: ir.Model) -> None:
    """Of another training."""
    put(held(model, DOWN), arrays(held(other, DOWN)))


def rows_swapped(model: ir.Model, other: ir.Model) -> None:
    stored = held(model, DOWN)
    turned = isinstance(stored, Dequantized) and stored.turned
    order = np.array([1, 0, *range(2, stored.shape[0])])
    put(stored, [np.take(array, order, axis=int(turned and array.ndim > 1)) for array in arrays(stored)])


def scales_of_another_layer(model: ir.Model, other: ir.Model) -> None:
    one, two = held(model, DOWN), held(model, OTHER)
    codes, _, *rest = arrays(one)
    put(one, [codes, arrays(two)[1], *rest])


def a_row_with_half_its_scale(model: ir.Model, other: ir.Model) -> None:
    stored = held(model, DOWN)
    codes, scale, *rest = arrays(stored)
    scale[3] /= 2
    put(stored, [codes, scale, *rest])


def write(model: ir.Model, path: Path) -> None:
    ir.save(ir.external_data.load_to_model(model), path)


Fault = Callable[[ir.Model, ir.Model], None]
FAULTS: dict[str, tuple[Fault, str, set[str]]] = {
    "zeroed": (zeroed, f"{DOWN}: it is zeroed", {DOWN}),
    "swapped": (swapped, f"{DOWN}: it holds {OTHER}", {DOWN, OTHER}),
    "stale": (stale, DOWN, {DOWN}),
}
BLOCKED_FAULTS: dict[str, Fault] = {
    "rows swapped": rows_swapped,
    "scales of another layer": scales_of_another_layer,
    "a row with half its scale": a_row_with_half_its_scale,
}
IN_BLOCKS = [scheme for scheme in SCHEMES if scheme not in ("dynamic8", "fp16", "keep")]
"""Schemes whose down projections are codes and scales by rows."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_right_bundle_is_traced_whatever_was_done_to_its_weights(bundles: Bundles, scheme: str) -> None:
    found = bundles.traced(scheme, bundles.of(scheme) / "model.onnx")
    assert not found.failures, found.failures
    assert {"embedding", DOWN} <= {*found.exact, *found.rounded}
    assert all(".bias: it makes up for" in entry for entry in found.untraced)
    assert bool(found.untraced) == (scheme == "bias")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_that_is_not_the_sources_is_named_and_no_other(
    bundles: Bundles, scheme: str, fault: str, tmp_path: Path
) -> None:
    change, words, roles = FAULTS[fault]
    model = read_file(bundles.of(scheme) / "model.onnx")
    change(model, read_file(bundles.of(scheme, 1) / "model.onnx"))
    write(model, tmp_path / "model.onnx")
    found = bundles.traced(scheme, tmp_path / "model.onnx")
    assert any(failure.startswith(words) for failure in found.failures), found.failures
    assert {failure.partition(":")[0] for failure in found.failures} == roles


@pytest.mark.parametrize("fault", BLOCKED_FAULTS)
@pytest.mark.parametrize("scheme", IN_BLOCKS)
def test_codes_that_stand_for_something_else_are_named(
    bundles: Bundles, scheme: str, fault: str, tmp_path: Path
) -> None:
    """However far a method may go from the weights for its text's sake."""
    model = read_file(bundles.of(scheme) / "model.onnx")
    BLOCKED_FAULTS[fault](model, model)
    write(model, tmp_path / "model.onnx")
    failures = bundles.traced(scheme, tmp_path / "model.onnx").failures
    assert {failure.partition(":")[0] for failure in failures} == {DOWN}, failures


@pytest.mark.parametrize("scheme", ["int4", "awq", "gptq"])
def test_the_narrowest_model_passes_and_what_cannot_be_told_is_listed(scheme: str, tmp_path: Path) -> None:
    """Of 4 channels: in so few, errors lie along a row by chance."""
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2}
    write_checkpoint(tmp_path, tiny("qwen2", **sizes, num_key_value_heads=1))
    text = tmp_path / "text.npy"
    np.save(text, np.random.default_rng(2).integers(0, 131, 4096))
    given = {"method": scheme, "calibration": text} if scheme != "int4" else {}
    settings: dict[str, Any] = {"quantize": "int4", **given}
    onnx_gpt.optimize(str(tmp_path), tmp_path / "b", parity=False, verify=False, **settings)
    model, method = read_file(tmp_path / "b" / "model.onnx"), settings.get("method", "rtn")
    source = sources.load(str(tmp_path))
    found = trace_file(tmp_path / "b" / "model.onnx", source, quantize="int4", method=method)
    assert not found.failures
    assert all("too narrow to tell" in entry for entry in found.untraced)
    assert bool(found.untraced) == (scheme == "gptq")
    zeroed(model, model)
    write(model, tmp_path / "model.onnx")
    found = trace_file(tmp_path / "model.onnx", source, quantize="int4", method=method)
    assert found.failures == (f"{DOWN}: it is zeroed",)


def test_the_gain_of_another_layer_is_no_scale_of_channels(bundles: Bundles, tmp_path: Path) -> None:
    """AWQ divides gains by factors that a text has said; its readers say which."""
    model = read_file(bundles.of("awq") / "model.onnx")
    values = [model.graph.initializers[f"layers.{i}.ffn_norm.weight"] for i in (0, 1)]
    values[1].const_value = ir.tensor(values[0].const_value.numpy(), name=values[1].name)  # type: ignore[union-attr]
    write(model, tmp_path / "model.onnx")
    names = {f.partition(":")[0] for f in bundles.traced("awq", tmp_path / "model.onnx").failures}
    assert names == {"layers.1.ffn_norm"}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8, rounded", "awq"])
def test_channels_are_told_where_neurons_never_fire(scheme: str, tmp_path: Path) -> None:
    """A ReLU lets their scales through, and those of neurons that are always zero go far."""
    (tmp_path / "source").mkdir()
    write_checkpoint(tmp_path / "source", tiny("opt"))
    np.save(tmp_path / "text.npy", np.random.default_rng(2).integers(0, 131, 2048))
    settings = SCHEMES[scheme] | {"calibration": tmp_path / "text.npy"}
    onnx_gpt.optimize(str(tmp_path / "source"), tmp_path / "out", parity=False, verify=False, **settings)
    parity = onnx_gpt.validate(tmp_path / "out", tmp_path / "source", tokens=64)
    assert {parity.checks[name].verdict for name in ("weights", "codes", "float_twin")} == {"pass"}


@pytest.mark.parametrize(
    "scheme", ["w8a8", "dynamic8", "awq", "gptq, 2 bits", "keep", "q4f16", "fp16", "bias"]
)
def test_validate_proves_it_and_the_graph_in_float(bundles: Bundles, scheme: str) -> None:
    parity = onnx_gpt.validate(bundles.of(scheme), bundles.source(scheme), tokens=128)
    assert parity.verdict == "pass", parity.failures
    checks = [parity.checks[name] for name in ("weights", "codes", "float_twin")]
    verdicts = [check.verdict for check in checks]
    assert verdicts == ["pass", "not run" if scheme == "fp16" else "pass", "pass"], checks
    assert checks[2].value is not None and checks[2].value < 3


def test_the_end_of_a_context_is_proven_where_values_are_turned(tmp_path: Path) -> None:
    """The two keep values in other channels, so that each goes on from a cache of its own."""
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    source.mkdir()
    write_checkpoint(source, tiny("llama", max_position_embeddings=1024))
    onnx_gpt.optimize(str(source), bundle, quantize="dynamic8", parity=False, verify=False)
    right = onnx_gpt.validate(bundle, source, tokens=64)
    assert right.verdict == "pass" and right.checks["context"].verdict == "pass"
    model = read_file(bundle / "model.onnx")
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            for table in (node.inputs[7], node.inputs[8]):
                assert table is not None and table.const_value is not None
                angles = table.const_value.numpy().copy()
                angles[800:] = angles[:224]
                table.const_value = ir.tensor(angles, name=table.name)
    write(model, bundle / "model.onnx")
    wrong = onnx_gpt.validate(bundle, source, tokens=64)
    failed = {name for name, check in wrong.checks.items() if check.verdict == "fail"}
    assert failed == {"float_twin", "weights"} and "fails context" in wrong.checks["float_twin"].detail
    assert not [failure for failure in wrong.failures if "KL" in failure], "no text of 512 tokens shows it"


@pytest.mark.parametrize("scheme", ["gptq", "fp16", "q4f16"])
def test_bisect_finds_what_rounding_hides(bundles: Bundles, scheme: str, tmp_path: Path) -> None:
    """By the float twin: beside what fp16 or four bits cost, another epsilon is nothing."""
    bundle, source = bundles.of(scheme), str(bundles.source(scheme))
    right = onnx_gpt.compare_layers(str(bundle), source, costs=False)
    assert right.twin and not right.lossy and right.first is None
    model = read_file(bundle / "model.onnx")
    norm = next(n for n in model.graph if role_of(n) == "layers.1.ffn_norm" and "epsilon" in n.attributes)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.011)
    shutil.copytree(bundle, tmp_path / "bundle")
    write(model, tmp_path / "bundle" / "model.onnx")
    wrong = onnx_gpt.compare_layers(str(tmp_path / "bundle"), source, costs=False)
    assert wrong.first is not None and wrong.first.point == "layers.1.ffn_norm"


@pytest.mark.parametrize("scheme", ["w8a8", "awq", "fp16"])
def test_validate_names_a_stale_weight(bundles: Bundles, scheme: str, tmp_path: Path) -> None:
    shutil.copytree(bundles.of(scheme), tmp_path / "bundle")
    model = read_file(bundles.of(scheme) / "model.onnx")
    stale(model, read_file(bundles.of(scheme, 1) / "model.onnx"))
    write(model, tmp_path / "bundle" / "model.onnx")
    parity = onnx_gpt.validate(tmp_path / "bundle", bundles.source(scheme), tokens=128)
    assert DOWN in parity.checks["weights"].detail and parity.checks["weights"].verdict == "fail"
    assert any(failure.startswith(f"weights ({DOWN}") for failure in parity.failures)


@pytest.mark.parametrize("target", ["optimum", "web:q4"])
def test_graphs_that_are_padded_on_the_left_pass_their_own_gate(
    bundles: Bundles, target: str, tmp_path: Path
) -> None:
    """Rotated by place: after rows that were padded on the right nobody goes on in them."""
    text = {"calibration": bundles.text} if target == "web:q4" else {}
    report = onnx_gpt.optimize(
        str(bundles.source("gptq")), tmp_path / "out", target=target, tokens=128, **text
    )
    assert not isinstance(report.parity, str) and report.parity.verdict == "pass"
    assert report.parity.checks["left_padding"].value is not None
