"""Quantized graphs: codes by value, everything else by the float twin. What four bits cost hides neither."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny import tiny

import onnx_gpt
from exporter.weights import Array
from exporter.writing import write_checkpoint
from onnx_gpt.parity.coded import coded_nodes
from onnx_gpt.parity.values import TIMES, furthest, rounded

FEW = 128
ROLE = "layers.0.ffn.down"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its bundles, one for each scheme."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "source").mkdir()
    write_checkpoint(folder / "source", tiny("llama", rms_norm_eps=1e-5))
    text = folder / "text.npy"
    np.save(text, np.random.default_rng(2).integers(0, 131, 2048))
    settings: dict[str, dict[str, object]] = {
        "int4": {"quantize": "int4"},
        "gptq": {"quantize": "int4", "method": "gptq", "block_size": 64, "calibration": text},
        "mixed": {"quantize": "int4", "table_bits": 8, "mixed": "attention.v=8"},
        "int8-cache": {"quantize": "int8", "kv_cache": "int8", "calibration": text},
    }
    for name, chosen in settings.items():
        onnx_gpt.optimize(str(folder / "source"), folder / name, parity=False, verify=False, **chosen)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("scheme", ["int4", "gptq", "mixed", "int8-cache"])
def test_a_right_bundle_is_proven_in_float(bundles: Path, scheme: str) -> None:
    parity = onnx_gpt.validate(bundles / scheme, bundles / "source", tokens=FEW)
    codes, twin = parity.checks["codes"], parity.checks["float_twin"]
    assert codes.verdict == twin.verdict == "pass", (codes, twin)
    assert codes.value is not None and codes.value < 3 and twin.value is not None and twin.value < 4
    assert (twin.unit, codes.unit) == ("x noise", "x rounding")


def test_islands_of_float32_in_half_precision_are_proven_too(tmp_path: Path) -> None:
    """Values too large for float16 are cast back and forth, and the twin has nodes beside those casts."""
    small = tiny("llama", tie_word_embeddings=False)
    name = "model.embed_tokens.weight"
    large = dataclasses.replace(
        small, weights={**small.weights, name: Array(small.weights[name].read() * 3000)}
    )
    (tmp_path / "source").mkdir()
    write_checkpoint(tmp_path / "source", large)
    np.save(tmp_path / "text.npy", np.random.default_rng(2).integers(0, 131, 2048))
    onnx_gpt.optimize(
        str(tmp_path / "source"),
        tmp_path / "bundle",
        quantize="q4f16",
        calibration=tmp_path / "text.npy",
        parity=False,
    )
    names = {
        one.name for one in onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph.node
    }
    assert any(name.endswith(".float") for name in names), "there are no islands"
    parity = onnx_gpt.validate(tmp_path / "bundle", tmp_path / "source", tokens=FEW)
    assert parity.checks["codes"].verdict == parity.checks["float_twin"].verdict == "pass", parity.checks


Spoil = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, op_type: str, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op_type and name in n.name)


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def flip_a_column(model: onnx.ModelProto) -> None:
    codes = tensor(model, node(model, "MatMulNBits", ROLE).input[1])
    array = onnx.numpy_helper.to_array(codes).copy()
    array[:, 0, 3] ^= 0x0F  # one column: the lower half of a byte in every row
    codes.CopyFrom(onnx.numpy_helper.from_array(array, codes.name))


def halve_a_row(model: onnx.ModelProto) -> None:
    cast = node(model, "MatMulNBits", ROLE).input[2]
    scale = tensor(model, next(n for n in model.graph.node if cast in n.output).input[0])
    array = onnx.numpy_helper.to_array(scale).copy()
    array[3] /= 2
    scale.CopyFrom(onnx.numpy_helper.from_array(array, scale.name))


def other_epsilon(model: onnx.ModelProto) -> None:
    norm = node(model, "SkipSimplifiedLayerNormalization", "layers.1")
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-6


def other_gain(model: onnx.ModelProto) -> None:
    gain = tensor(model, node(model, "SkipSimplifiedLayerNormalization", "layers.1").input[2])
    array = onnx.numpy_helper.to_array(gain).copy()
    array[5] *= np.float32(1.004)  # a bfloat16's step
    gain.CopyFrom(onnx.numpy_helper.from_array(array, gain.name))


def other_angle(model: onnx.ModelProto) -> None:
    attention = node(model, "GroupQueryAttention", "layers.0")
    cos = tensor(model, attention.input[7])
    array = onnx.numpy_helper.to_array(cos).copy()
    cos.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.001), cos.name))


@pytest.mark.parametrize(
    ("scheme", "spoil", "check"),
    [
        ("int4", flip_a_column, "codes"),
        ("gptq", flip_a_column, "codes"),
        ("gptq", halve_a_row, "codes"),
        ("int4", other_epsilon, "float_twin"),
        ("int4", other_gain, "float_twin"),
        ("int4", other_angle, "float_twin"),
    ],
)
def test_a_fault_that_a_budget_hides_is_found(
    bundles: Path, tmp_path: Path, scheme: str, spoil: Spoil, check: str
) -> None:
    shutil.copytree(bundles / scheme, tmp_path / "bundle")
    model = onnx.load(tmp_path / "bundle" / "model.onnx")
    spoil(model)
    (tmp_path / "bundle" / "model.onnx.data").unlink()
    onnx.save(model, tmp_path / "bundle" / "model.onnx")
    parity = onnx_gpt.validate(tmp_path / "bundle", bundles / "source", tokens=FEW)
    assert parity.checks[check].verdict == "fail", parity.checks
    assert parity.verdict == "fail" and any(failure.startswith(check) for failure in parity.failures)
    assert not [failure for failure in parity.failures if "KL" in failure], "no budget has seen it"


def test_what_cannot_be_proven_says_so(bundles: Path) -> None:
    """The reference is a graph without roles, so that nobody knows which weight became which codes."""
    foreign = Path(__file__).parent.parent / "graph_passes" / "foreign" / "optimum-llama.onnx"
    onnx_gpt.optimize(
        str(foreign), bundles / "foreign", quantize="int8", parity=False, verify=False, context_length=64
    )
    parity = onnx_gpt.validate(bundles / "foreign", bundles / "foreign", tokens=FEW)
    assert parity.verdict == "pass"
    assert {"codes", "float_twin"} <= parity.not_run.keys()
    proven = onnx_gpt.validate(bundles / "foreign", foreign, tokens=FEW)
    assert proven.checks["codes"].verdict == "pass" and proven.checks["float_twin"].verdict == "pass"


def test_without_its_report_nobody_knows_what_a_bundle_was_turned_by(bundles: Path) -> None:
    source, text = str(bundles / "source"), bundles / "text.npy"
    onnx_gpt.optimize(source, bundles / "w8a8", quantize="w8a8", calibration=text, parity=False)
    (bundles / "w8a8" / "report.json").unlink()
    parity = onnx_gpt.validate(bundles / "w8a8", source, tokens=FEW)
    assert parity.verdict == "pass" and parity.scheme == "w8a8"
    assert {"weights", "codes", "float_twin"} <= parity.not_run.keys()
    assert "report" in parity.not_run["codes"]


def test_codes_are_read_as_the_kernel_reads_them(bundles: Path) -> None:
    """Against onnxruntime itself: a product with the unit vectors gives the matrix."""
    import onnxruntime as ort

    model = ir.load(bundles / "int4" / "model.onnx")
    coded = coded_nodes(model.graph)
    assert not isinstance(coded, str)
    one = next(one for one in coded if one.role == ROLE)
    ours = np.concatenate([rows for _, rows in one.rows()])
    inputs = [ir.Value(name=name) for name in ("x", "codes", "scale")]
    scale = one.node.inputs[2]
    assert scale is not None and one.node.inputs[1] is not None
    source = scale.producer().inputs[0] if scale.producer() is not None else scale  # type: ignore[union-attr]
    assert (
        source is not None and source.const_value is not None and one.node.inputs[1].const_value is not None
    )
    attributes = {name: a.value for name, a in one.node.attributes.items() if name != "accuracy_level"}
    product = onnx.helper.make_node(
        "MatMulNBits", [v.name for v in inputs], ["y"], domain="com.microsoft", **attributes
    )
    n, k = one.shape
    graph = onnx.helper.make_graph(
        [product],
        "one",
        [onnx.helper.make_tensor_value_info("x", 1, [k, k])],
        [onnx.helper.make_tensor_value_info("y", 1, [k, n])],
        [
            onnx.numpy_helper.from_array(one.node.inputs[1].const_value.numpy(), "codes"),
            onnx.numpy_helper.from_array(source.const_value.numpy().astype(np.float32), "scale"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": np.eye(k, dtype=np.float32)})
    np.testing.assert_allclose(ours, theirs.T, rtol=1e-5, atol=1e-6)


def test_plain_rounding_is_its_own_measure() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    plain = rounded(weight, 4, 32)
    assert np.abs(plain - weight).max() <= np.abs(weight).max() / 14 + 1e-6
    assert furthest([], {"nothing": Array(weight)}).times == 0.0 < TIMES


def test_codes_of_a_weight_that_lies_on_their_grid_are_no_alarm() -> None:
    """Plain rounding costs nothing there, so that any error at all would be infinitely more."""
    weight = rounded(np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32), 8, 32)

    def worst(factor: float, column: int | None = None) -> float:
        found = weight * np.float32(factor)
        if column is not None:
            found[:, column] *= -1
        one = SimpleNamespace(
            kind="product", role=ROLE, shape=weight.shape, bits=8, block=32, rows=lambda: iter([(0, found)])
        )
        return furthest([one], {ROLE: Array(weight)}).times  # type: ignore[list-item]  # all that is read of a node

    assert worst(1 + 2**-12) < TIMES  # scales that are kept in float16
    assert worst(1, column=7) > TIMES
