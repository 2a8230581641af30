"""Somebody else's ONNX file: read lazily, to the same function; hostile and damaged ones refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from exporter import sources
from exporter.checkpoint import GraphSource
from exporter.errors import Exit, OnnxGptError
from exporter.onnx_format.reader import read_file, read_graph
from exporter.onnx_format.wire import slim
from exporter.stored_weights import Stored
from exporter.weight_expressions import Transposed
from exporter.weight_tensor import WeightTensor

FOREIGN = Path(__file__).parent.parent / "graph_passes" / "foreign"
GRAPHS = sorted(path.stem for path in FOREIGN.glob("*.onnx"))

Arrays = dict[str, np.ndarray]


# Good files ---------------------------------------------------------------------------------------------


def run(path: Path, length: int = 7) -> list[np.ndarray]:
    """All outputs of a decoder for one call without past, onnxruntime's optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options)
    rng = np.random.default_rng(0)
    feeds: Arrays = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = rng.integers(0, 61, (1, length))
        elif value.name.startswith("past"):
            half = value.type == "tensor(float16)"
            head_dim = value.shape[3] if isinstance(value.shape[3], int) else 16
            shape = (1, value.shape[1], 0, head_dim)
            feeds[value.name] = np.zeros(shape, np.float16 if half else np.float32)
        else:
            feeds[value.name] = np.ones((1, length), np.int64)
            if value.name == "position_ids":
                feeds[value.name] = np.arange(length)[None]
    return [np.asarray(out, np.float32) for out in session.run(None, feeds)]


def written(model: ir.Model, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx"


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_read_to_the_same_function(name: str, tmp_path: Path) -> None:
    source = FOREIGN / f"{name}.onnx"
    ours = run(written(read_graph(source), tmp_path))
    for a, b in zip(run(source), ours, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", GRAPHS)
def test_products_and_lookups_have_weights_and_nothing_is_stored_twice(name: str) -> None:
    graph = read_graph(FOREIGN / f"{name}.onnx").graph
    products = [n for n in graph if n.op_type in ("MatMul", "Gemm") and n.inputs[1].is_initializer()]
    assert products
    for node in products:
        tensor = node.inputs[1].const_value
        assert isinstance(tensor, WeightTensor) and tensor.transpose
        assert tensor.weight.shape == tuple(tensor.shape)[::-1]
    tables = [
        node.inputs[0] for node in graph if node.op_type == "Gather" and node.inputs[0].is_initializer()
    ]
    tables = [value for value in tables if value.const_value.nbytes > 4096]
    assert tables and all(isinstance(value.const_value, WeightTensor) for value in tables)
    stored = sum(value.const_value.nbytes for value in graph.initializers.values())
    assert stored < (FOREIGN / f"{name}.onnx").stat().st_size
    if name.startswith("optimum"):  # it writes a tied table twice, the second time turned round
        (turn,) = (n for n in graph if n.op_type == "Transpose" and n.inputs[0] in tables)
        assert turn.inputs[0] is tables[0]


def test_reading_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    model = product_model({"w": np.ones((2000, 3000), np.float32), "v": np.zeros((3000, 10), np.float32)})
    path.write_bytes(model.SerializeToString())
    assert len(slim(path)) < 2000
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(Stored, "rows", lambda self, a, b: read.append((a, b)))
    weight = read_graph(path).graph.initializers["w"].const_value.weight
    assert isinstance(weight, Transposed) and isinstance(weight.base, Stored) and weight.base.path == path
    assert read == []


def test_floats_packed_the_old_way_stay_in_the_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((60, 50)).astype(np.float32)
    model = product_model({"w": array})
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend(array.reshape(-1).tolist())
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert len(slim(path)) < 1000
    assert np.array_equal(read_graph(path).graph.initializers["w"].const_value.numpy(), array)


def test_nodes_may_come_in_any_order(tmp_path: Path) -> None:
    model = onnx.load(FOREIGN / "optimum-llama.onnx")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    onnx.save(model, tmp_path / "model.onnx")
    ours = read_graph(tmp_path / "model.onnx")
    for a, b in zip(run(FOREIGN / "optimum-llama.onnx"), run(written(ours, tmp_path / "out")), strict=True):
        assert np.array_equal(a, b)


def test_weights_may_be_listed_among_the_inputs(tmp_path: Path) -> None:
    model = onnx.load(FOREIGN / "optimum-llama.onnx")
    plain = [value.name for value in model.graph.input]
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "model.onnx")
    graph = read_graph(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.inputs] == plain
    assert any(isinstance(value.const_value, WeightTensor) for value in graph.initializers.values())


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    half = convert_float_to_float16(onnx.load(FOREIGN / "optimum-llama.onnx"), keep_io_types=False)
    path = tmp_path / "half.onnx"
    onnx.save(half, path)
    model = read_graph(path)
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    assert not any(v.dtype in halves for node in model.graph for v in node.outputs)
    assert not any(v.dtype in halves for v in (*model.graph.inputs, *model.graph.initializers.values()))
    exact, ours = run(FOREIGN / "optimum-llama.onnx"), run(written(model, tmp_path / "wide"))
    assert max(np.abs(a - b).max() for a, b in zip(exact, ours, strict=True)) < 2e-3


def test_what_lies_beside_the_file_is_carried(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((FOREIGN / "optimum-llama.onnx").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    (tmp_path / "tokenizer.json").write_text("{}")
    opened = sources.load(str(tmp_path / "model.onnx"))
    assert isinstance(opened, GraphSource)
    assert opened.config["max_position_embeddings"] == 64 and list(opened.files) == ["tokenizer.json"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "genai_config.json").write_text('{"model": {"context_length": 32, "eos_token_id": 2}}')
    opened = sources.load(str(tmp_path / "model.onnx"))
    assert isinstance(opened, GraphSource)
    assert opened.config == {"max_position_embeddings": 32, "eos_token_id": 2}


# Bad files ----------------------------------------------------------------------------------------------


def test_a_repository_for_transformers_js_has_its_files_one_folder_up(tmp_path: Path) -> None:
    source = GRAPHS[0]
    (tmp_path / "onnx").mkdir()
    for file in FOREIGN.glob(f"{source}.onnx*"):
        (tmp_path / "onnx" / file.name.replace(source, "model", 1)).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    opened = sources.load(str(tmp_path / "onnx" / "model.onnx"))
    assert isinstance(opened, GraphSource)
    assert opened.config == {"model_type": "llama"}
    (tmp_path / "onnx" / "config.json").write_text('{"model_type": "gpt2"}', "utf-8")
    assert sources.load(str(tmp_path / "onnx" / "model.onnx")).config == {"model_type": "gpt2"}  # type: ignore[union-attr]


def product_model(weights: Arrays) -> onnx.ModelProto:
    """x · w · v …, weights as raw data."""
    nodes, x = [], "x"
    for name in weights:
        nodes.append(helper.make_node("MatMul", [x, name], [f"{x}{name}"], name=f"times_{name}"))
        x += name
    rows = next(iter(weights.values())).shape[0]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def external_model(folder: Path) -> tuple[onnx.ModelProto, TensorProto, TensorProto]:
    """Two matrices in ``folder/data/weights.bin``, one after the other."""
    model = product_model({"w": np.ones((40, 40), np.float32), "v": np.ones((40, 40), np.float32)})
    (folder / "data").mkdir()
    (folder / "data" / "weights.bin").write_bytes(b"".join(t.raw_data for t in model.graph.initializer))
    for i, tensor in enumerate(model.graph.initializer):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data/weights.bin"), ("offset", 6400 * i), ("length", 6400)):
            tensor.external_data.add(key=key, value=str(value))
    return model, model.graph.initializer[0], model.graph.initializer[1]


def refused(model: onnx.ModelProto | bytes, folder: Path) -> OnnxGptError:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(OnnxGptError) as caught:
        read_graph(path)
    return caught.value


def set_entry(tensor: TensorProto, key: str, value: object) -> None:
    entry = next((e for e in tensor.external_data if e.key == key), None) or tensor.external_data.add(key=key)
    entry.value = str(value)


def test_external_data_in_a_folder_of_the_models_is_read(tmp_path: Path) -> None:
    model, _, _ = external_model(tmp_path)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    tensor = read_graph(tmp_path / "model.onnx").graph.initializers["v"].const_value
    assert np.array_equal(tensor.numpy(), np.ones((40, 40), np.float32))


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("location", "../secret.bin", "path-escapes"),
        ("location", "data/../../secret.bin", "path-escapes"),
        ("location", "/etc/hostname", "path-escapes"),
        ("location", "", "path-escapes"),
        ("location", "..\\secret.bin", "path-escapes"),
        ("location", "link.bin", "path-escapes"),
        ("location", "x" * 300, "file-unreadable"),
        ("location", "data", "file-irregular"),
        ("location", "data/absent.bin", "onnx-data-missing"),
        ("offset", 6401, "onnx-data-invalid"),
        ("offset", -4, "onnx-data-invalid"),
        ("offset", "0x10", "onnx-data-invalid"),
        ("offset", "9" * 30, "onnx-data-invalid"),
        ("offset", 3200, "onnx-data-invalid"),
        ("length", 6399, "onnx-data-invalid"),
        ("length", 2**62, "onnx-data-invalid"),
    ],
)
def test_external_data_that_is_not_there_is_refused(
    key: str, value: object, code: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(12800))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model, _, second = external_model(folder)
    set_entry(second, key, value)
    assert refused(model, folder).code == code


def test_a_truncated_data_file_is_refused(tmp_path: Path) -> None:
    model, _, _ = external_model(tmp_path)
    os.truncate(tmp_path / "data" / "weights.bin", 12799)
    error = refused(model, tmp_path)
    assert error.code == "onnx-data-invalid" and "12799" in str(error) and "'v'" in str(error)


def _huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**40]


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -40


def _no_such_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "xwv"


def _undefined(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "xw"


def _unknown_op(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "MatMulPlus"


def _unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "acme"
    model.opset_import.add(domain="acme", version=1)


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def _both(model: onnx.ModelProto) -> None:
    set_entry(model.graph.initializer[0], "location", "model.onnx")


def _double(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((40, 40)), "w"))


@pytest.mark.parametrize(
    ("spoil", "code", "status"),
    [
        (_huge, "onnx-data-invalid", Exit.REJECTED),
        (_negative, "onnx-data-invalid", Exit.REJECTED),
        (_no_such_type, "onnx-data-invalid", Exit.REJECTED),
        (_cycle, "onnx-invalid", Exit.REJECTED),
        (_undefined, "onnx-invalid", Exit.REJECTED),
        (_twice, "onnx-invalid", Exit.REJECTED),
        (_unknown_op, "onnx-invalid", Exit.REJECTED),
        (_unknown_domain, "onnx-feature", Exit.UNSUPPORTED),
        (_sparse, "onnx-feature", Exit.UNSUPPORTED),
        (_no_graph, "onnx-invalid", Exit.REJECTED),
        (_both, "onnx-invalid", Exit.REJECTED),
        (_double, "weights-dtype", Exit.UNSUPPORTED),
    ],
)
def test_a_graph_that_is_none_is_refused(
    spoil: Callable[[onnx.ModelProto], None], code: str, status: Exit, tmp_path: Path
) -> None:
    model = product_model({"w": np.ones((40, 40), np.float32), "v": np.ones((40, 40), np.float32)})
    spoil(model)
    error = refused(model, tmp_path)
    assert (error.code, error.exit) == (code, status)
    assert len(str(error)) < 2000


def test_messages_without_end_are_refused(tmp_path: Path) -> None:
    nested = bytes(2000)
    for _ in range(40):  # an attribute with a graph with a node with an attribute …
        for tag in (6 << 3 | 2, 5 << 3 | 2, 1 << 3 | 2):
            length, head = len(nested), bytearray([tag])
            while length > 127:
                head.append(length & 127 | 128)
                length >>= 7
            nested = bytes([*head, length]) + nested
    length, head = len(nested), bytearray([7 << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    error = refused(bytes([*head, length]) + nested, tmp_path)
    assert error.code == "onnx-invalid" and "deep" in str(error)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04" + bytes(100), b"GGUF" + bytes(1000), b"\xff" * 64):
        assert refused(content, tmp_path).code == "onnx-invalid"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    damaged = bytearray((FOREIGN / "genai-llama.onnx").read_bytes())
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        damaged[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(damaged))
    try:
        read_file(path)
        read_graph(path)
    except OnnxGptError as error:
        assert error.exit in (Exit.REJECTED, Exit.UNSUPPORTED)
