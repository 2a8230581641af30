"""Every weight of a written graph is traced to the source, and what is not the source's is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from tiny import tiny

import onnx_gpt
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import scheme_of
from calibration.transforms.rotation import rotated
from exporter import sources
from exporter.checkpoint import Checkpoint, GraphSource
from exporter.errors import Exit, OnnxGptError
from exporter.families import families
from exporter.onnx_format.reader import read_file, read_graph
from exporter.weights import Array
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.bundle.writing import save
from onnx_gpt.certificate.tracing import Trace, expected_of, trace, trace_file
from onnx_gpt.certificate.tracing.comparing import tolerance_of
from onnx_gpt.exporting import export, pipeline_of
from onnx_gpt.optimizing import building
from onnx_gpt.progress import Silent

SCHEMES = ("none", "int8", "int4", "w8a8")
Edit = Callable[[dict[str, np.ndarray]], object]


def write(checkpoint: Checkpoint, folder: Path, scheme: str = "none") -> Path:
    exported = export(checkpoint, transform=rotated if scheme == "w8a8" else None)
    run_pipeline(exported.model, ORT_PIPELINE, verify=False)
    if scheme in ("int8", "int4"):
        quantize_weights(exported.model, scheme_of(scheme), {})
    folder.mkdir(exist_ok=True)
    save(exported.model, folder, Silent())
    return folder / "model.onnx"


def traced(path: Path, checkpoint: Checkpoint, scheme: str = "none", rows: int | None = None) -> Trace:
    expected = expected_of(checkpoint, rotated if scheme == "w8a8" else None)
    return trace(read_file(path), expected, tolerance_of(scheme, "rtn"), rows)


def edit(path: Path, change: Edit) -> None:
    """Change initializers of a file, by name."""
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    change(arrays)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("family", families())
def test_every_weight_of_every_family_is_traced(family: str, tmp_path: Path) -> None:
    checkpoint = tiny(family)
    for scheme in SCHEMES:
        found = traced(write(checkpoint, tmp_path / scheme, scheme), checkpoint, scheme)
        assert (found.failures, found.untraced) == ((), ()), scheme
        assert bool(found.rounded) == (scheme in ("int8", "int4")), "a rotation alone rounds nothing"
        assert all(error <= 0.5 for error in found.rounded.values())


@pytest.mark.parametrize("rows", [None, 12])
def test_a_trace_of_some_rows_sees_every_weight(rows: int | None, tmp_path: Path) -> None:
    checkpoint = tiny("llama", variant="biases")
    found = traced(write(checkpoint, tmp_path / "m"), checkpoint, rows=rows)
    roles = {
        "layers.0.attention.qkv",
        "layers.0.attention.qkv.bias",
        "layers.1.ffn.down",
        "norm",
        "embedding",
    }
    assert roles <= set(found.exact) and "layers.0.rotary.cosines" in found.exact


QKV, UP = "layers.0.attention.qkv.weight", "layers.1.ffn.up.weight"
DOWN = "layers.1.ffn.down.weight"


def zero_keys(arrays: dict[str, np.ndarray]) -> None:
    arrays[QKV][:, 64:96] = 0  # q has 64 columns of [K, N], k and v 32 each


def swap(arrays: dict[str, np.ndarray]) -> None:
    one, other = "layers.0.attention.o.weight", "layers.1.attention.o.weight"
    arrays[one], arrays[other] = arrays[other], arrays[one]


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


FLOAT_FAULTS: Mapping[str, tuple[Edit, str, str]] = {
    "zeroed slice": (zero_keys, "layers.0.attention.k", "zeroed"),
    "zeroed norm": (lambda a: a["norm.weight"].fill(0), "norm", "zeroed"),
    "swapped layers": (swap, "layers.0.attention.o", "holds layers.1.attention.o"),
    "transposed": (
        lambda a: a.update({"layers.0.attention.o.weight": a["layers.0.attention.o.weight"].T.copy()}),
        "layers.0.attention.o",
        "transposed",
    ),
    "bfloat16": (lambda a: a.update({DOWN: to_bfloat16(a[DOWN])}), "layers.1.ffn.down", "differs"),
    "one value": (lambda a: a[DOWN].__setitem__((3, 5), 7.0), "layers.1.ffn.down", "differs"),
    "stale": (lambda a: a.update({DOWN: a[DOWN] * np.float32(1.01)}), "layers.1.ffn.down", "differs"),
    "bias": (
        lambda a: a["layers.0.attention.qkv.bias"].__setitem__(slice(64, 96), 0),
        "layers.0.attention.k.bias",
        "zeroed",
    ),
    "rotary base": (lambda a: a.update({"rotary.cos": a["rotary.cos"] ** 2}), "layers.0.rotary", "differs"),
    "heads in another order": (
        lambda a: a.update({"head.weight": np.ascontiguousarray(a["head.weight"][:, ::-1])}),
        "head",
        "another order",
    ),
}


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    checkpoint = tiny("llama", variant="biases")
    return checkpoint, write(checkpoint, tmp_path_factory.mktemp("float") / "m")


@pytest.mark.parametrize("fault", FLOAT_FAULTS)
def test_a_weight_that_is_not_the_sources_is_named(
    fault: str, float_model: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, written = float_model
    change, role, word = FLOAT_FAULTS[fault]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(written), path)
    edit(path, change)
    found = traced(path, checkpoint)
    named = [failure for failure in found.failures if failure.startswith(f"{role}:") or role in failure]
    assert named and any(word in failure for failure in named), found.failures
    expected = 2 if fault in ("swapped layers", "rotary base") else 1
    assert len(found.failures) == expected, "and nothing else is"


def test_slopes_of_other_heads_are_named(tmp_path: Path) -> None:
    checkpoint = tiny("bloom")
    path = write(checkpoint, tmp_path / "m")
    assert "attention.biases" in traced(path, checkpoint).exact
    edit(path, lambda a: a.update(alibi_0=np.ascontiguousarray(a["alibi_0"][:, ::-1])))
    (failure,) = traced(path, checkpoint).failures
    assert failure.startswith("attention.biases")


CODES = "layers.1.ffn.down.codes"
INT4_FAULTS: Mapping[str, tuple[Edit, str]] = {
    "a nibble column": (
        lambda a: a[CODES].__setitem__(np.s_[:, 1, 3], a[CODES][:, 1, 3] ^ 0x0F),
        "layers.1.ffn.down",
    ),
    "one bit": (lambda a: a[CODES].__setitem__((5, 0, 2), a[CODES][5, 0, 2] ^ 0x80), "layers.1.ffn.down"),
    "scales of another layer": (
        lambda a: a.update({"layers.1.ffn.down.scale": a["layers.0.ffn.down.scale"]}),
        "layers.1.ffn.down",
    ),
    "scales halved": (
        lambda a: a["embedding.scale"].__setitem__(np.s_[3:5], a["embedding.scale"][3:5] / 2),
        "embedding",
    ),
    "zeroed": (lambda a: a[CODES].fill(0x88), "layers.1.ffn.down: it is zeroed"),
    "rows zeroed": (lambda a: a[CODES][7].fill(0x88), "1 of its 64 rows are zeroed, the first being 7"),
}


@pytest.fixture(scope="module")
def int4_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    checkpoint = tiny("llama", variant="tied")
    return checkpoint, write(checkpoint, tmp_path_factory.mktemp("int4") / "m", "int4")


@pytest.mark.parametrize("fault", INT4_FAULTS)
def test_codes_that_are_no_rounding_of_the_source_are_named(
    fault: str, int4_model: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, written = int4_model
    change, words = INT4_FAULTS[fault]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(written), path)
    edit(path, change)
    found = traced(path, checkpoint, "int4")
    assert any(words in failure for failure in found.failures), found.failures


def test_a_node_that_reads_another_ones_weight_is_found_whatever_tensors_are_called(
    float_model: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, written = float_model
    model = onnx.load(written)
    node = next(n for n in model.graph.node if "layers.0.ffn.down.weight" in n.input)
    node.input[1] = DOWN
    onnx.save(model, tmp_path / "model.onnx")
    found = traced(tmp_path / "model.onnx", checkpoint)
    assert "layers.0.ffn.down: it holds layers.1.ffn.down" in found.failures


def test_a_bias_that_was_dropped_is_found(float_model: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, written = float_model
    model = onnx.load(written)
    add = next(n for n in model.graph.node if "layers.1.attention.qkv.bias" in n.input)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == add.output[0]:
                node.input[i] = next(n for n in add.input if "bias" not in n)
    model.graph.node.remove(add)
    kept = [t for t in model.graph.initializer if t.name != "layers.1.attention.qkv.bias"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "model.onnx")
    found = traced(tmp_path / "model.onnx", checkpoint)
    assert [failure.partition(":")[0] for failure in found.failures] == [
        f"layers.1.attention.{name}.bias" for name in "qkv"
    ]


def test_a_gain_without_its_one_is_found(tmp_path: Path) -> None:
    """Gemma stores γ and multiplies by 1 + γ."""
    checkpoint = tiny("gemma3")
    path = write(checkpoint, tmp_path / "m")
    edit(path, lambda a: a.update({"norm.weight": a["norm.weight"] - np.float32(1)}))
    assert [failure.partition(":")[0] for failure in traced(path, checkpoint).failures] == ["norm"]


def test_a_bundle_is_traced_at_any_later_time(certified: tuple[Path, onnx_gpt.Report]) -> None:
    model, source = certified[0] / "model.onnx", sources.load("sample:tiny")
    found = trace_file(model, source, quantize="int4")
    assert found.verdict == "pass" and "head" in found.rounded
    assert trace_file(model, source, quantize="w8a8", method="gptq").verdict == "fail", "it is not rotated"


def test_another_checkpoint_is_not_the_source(float_model: tuple[Checkpoint, Path]) -> None:
    _, written = float_model
    other = tiny("llama", seed=1, variant="biases")
    assert len(traced(written, other, rows=12).failures) > 10


def test_a_graph_is_a_source_too(tmp_path: Path) -> None:
    exported = export(tiny("llama"))
    save(exported.model, tmp_path, Silent())
    path = tmp_path / "model.onnx"
    source = GraphSource(str(path), path, lambda: read_graph(path))
    ours = export(source)
    run_pipeline(ours.model, pipeline_of(ours, None, ORT_PIPELINE), verify=False)
    quantize_weights(ours.model, scheme_of("int4"), {})
    (tmp_path / "bundle").mkdir()
    save(ours.model, tmp_path / "bundle", Silent())
    found = trace(read_file(tmp_path / "bundle" / "model.onnx"), expected_of(source))
    assert not found.failures and {"layers.1.ffn.down", "layers.0.attention.qkv"} <= found.rounded.keys()


def test_a_job_whose_weights_are_not_the_sources_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = building.run_pipeline

    def sabotage(model: ir.Model, text: str, **options: Any) -> Any:
        reports = honest(model, text, **options)
        value = model.graph.initializers["layers.1.ffn_norm.weight"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.05), name=value.name)
        return reports

    monkeypatch.setattr(building, "run_pipeline", sabotage)
    with pytest.raises(OnnxGptError, match="ffn_norm") as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", parity=False)
    assert (caught.value.code, caught.value.exit) == ("weights-untrue", Exit.PARITY)
    assert list(tmp_path.iterdir()) == []


def test_a_zero_bias_may_be_left_out(tmp_path: Path) -> None:
    checkpoint = tiny("llama", variant="biases")
    zeros = {
        name: Array(np.zeros(weight.shape, np.float32))
        for name, weight in checkpoint.weights.items()
        if name.endswith("o_proj.bias")
    }
    path = write(tiny("llama"), tmp_path / "m")
    plain = dataclasses.replace(checkpoint, weights={**checkpoint.weights, **zeros})
    dropped = [f for f in traced(path, plain).failures if "no node" in f]
    assert dropped and not any(".o.bias" in failure for failure in dropped)
