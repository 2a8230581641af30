"""Small pieces of a graph, run: by onnxruntime with its optimisations off, or in float64.

The only file of this room that imports onnxruntime. The piece is copied out under names of its own; the model
that it was cut from is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx.reference.op_run import OpRun

from graph_passes.proof.subgraph import NodeSnapshot, Subgraph, bodies_of, captured

EMBEDDED = 4096
"""Bytes up to which an initializer is written into the piece; larger ones are fed, which copies nothing."""

FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
"""Types that float64 stands for."""


class CannotEvaluate(Exception):  # noqa: N818 (it is an answer, not a defect)
    """A piece has no answer here: an op without an implementation, shapes that do not fit, data too large.

    Attributes:
        missing: whether it is for want of an implementation.
    """

    def __init__(self, cause: str, *, missing: bool = False) -> None:
        super().__init__(cause)
        self.missing = missing


def evaluate(
    piece: Subgraph, feeds: Mapping[ir.Value, np.ndarray], *, max_bytes: int | None = None
) -> list[np.ndarray]:
    """Run a piece by onnxruntime on one thread, optimisations off.

    Args:
        feeds: every input of the piece; an initializer that is fed is not read.
        max_bytes: of initializers that may be read.

    Returns:
        One array for each output.

    Raises:
        CannotEvaluate: naming what onnxruntime, or the limit, says.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    arrays = _arrays(piece, feeds, max_bytes)
    names = _Names()
    proto = _model(piece, arrays, names, float64=False)
    fed = {names[value]: array for value, array in arrays.items() if _is_fed(array)}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(None, fed)]
    except state.NotImplemented as error:
        raise CannotEvaluate(f"onnxruntime: {error}", missing=True) from error
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.RuntimeException,
        ValueError,
    ) as error:
        raise CannotEvaluate(f"onnxruntime: {error}") from error


def evaluate_float64(
    piece: Subgraph, feeds: Mapping[ir.Value, np.ndarray], *, max_bytes: int | None = None
) -> list[np.ndarray]:
    """Run a piece by onnx's reference implementation with every float a double.

    Args and returns are those of `evaluate`; floats come back as float64.

    Raises:
        CannotEvaluate: for an op that has no implementation, or none that keeps doubles.
    """
    arrays = {value: _widened(array) for value, array in _arrays(piece, feeds, max_bytes).items()}
    names = _Names()
    proto = _model(piece, arrays, names, float64=True)
    try:
        run = onnx.reference.ReferenceEvaluator(proto, new_ops=[Erf])
        fed = {names[value]: array for value, array in arrays.items() if _is_fed(array)}
        with np.errstate(all="ignore"):
            results = dict(run.run(None, fed, intermediate=True))
    except Exception as error:  # the reference raises whatever its numpy code does
        raise CannotEvaluate(f"float64 reference: {type(error).__name__}: {error}") from error
    for snapshot in piece.nodes:
        for value in snapshot.outputs:
            result = results.get(names[value])
            if isinstance(result, np.ndarray) and result.dtype.kind not in "biuSUO" and result.itemsize < 8:
                raise CannotEvaluate(f"float64 reference: {snapshot.op_type} gives {result.dtype}")
    return [np.asarray(results[name]) for name in (output.name for output in proto.graph.output)]


class Erf(OpRun):
    """onnx's own rounds to float32 on the way."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


class _Names:
    """A name for every value, made when it is first asked for."""

    def __init__(self) -> None:
        self._names: dict[ir.Value, str] = {}

    def __getitem__(self, value: ir.Value) -> str:
        return self._names.setdefault(value, f"piece.{len(self._names)}")


def _arrays(
    piece: Subgraph, feeds: Mapping[ir.Value, np.ndarray], max_bytes: int | None
) -> dict[ir.Value, np.ndarray]:
    """What is fed and the initializers that are read."""
    missing = [str(value.name) for value in piece.inputs if value not in feeds]
    if missing:
        raise CannotEvaluate(f"nothing is fed for {', '.join(missing)}")
    constants = {value: value.const_value for value in piece.initializers() if value not in feeds}
    size = sum(tensor.nbytes for tensor in constants.values() if tensor is not None)
    if max_bytes is not None and size > max_bytes:
        raise CannotEvaluate(f"it reads {size} bytes of initializers, {max_bytes} are allowed")
    arrays = {value: feeds[value] for value in piece.inputs}
    for value in piece.initializers():
        tensor = constants.get(value)
        if value in feeds:
            arrays[value] = feeds[value]
        elif tensor is None:
            raise CannotEvaluate(f"nothing makes {value.name}")
        else:
            arrays[value] = tensor.numpy()
    return arrays


def _is_fed(array: np.ndarray) -> bool:
    """Small arrays, and types that numpy does not know by itself, are written into the piece instead."""
    return array.nbytes > EMBEDDED and array.dtype.isbuiltin == 1


def _widened(array: np.ndarray) -> np.ndarray:
    floats = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if floats else array


def _model(
    piece: Subgraph, arrays: Mapping[ir.Value, np.ndarray], names: _Names, *, float64: bool
) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="piece")
    for value, array in arrays.items():
        if _is_fed(array):
            dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(names[value], dtype, array.shape))
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), names[value]))
    for snapshot in piece.nodes:
        graph.node.append(_node(snapshot, names, arrays, float64=float64))
    for i, value in enumerate(piece.outputs):
        graph.node.append(onnx.helper.make_node("Identity", [names[value]], [f"y{i}"]))
        graph.output.append(onnx.ValueInfoProto(name=f"y{i}"))
    functions = _functions(piece, float64=float64)
    imports = dict.fromkeys(("", *(n.domain for n in graph.node), *(f.domain for f in functions)), 1)
    imports |= piece.opset_imports
    return onnx.ModelProto(
        ir_version=10,
        graph=graph,
        functions=functions,
        opset_import=[onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()],
    )


def _node(
    snapshot: NodeSnapshot, names: _Names, fed: Mapping[ir.Value, np.ndarray], *, float64: bool
) -> onnx.NodeProto:
    outputs = [names[value] if value not in fed else f"{names[value]}.unread" for value in snapshot.outputs]
    node = onnx.NodeProto(
        op_type=snapshot.op_type,
        domain=snapshot.domain,
        overload=snapshot.overload,
        input=["" if value is None else names[value] for value in snapshot.inputs],
        output=["" if v.name == "" else name for v, name in zip(snapshot.outputs, outputs, strict=True)],
    )
    for attribute in snapshot.attributes:
        node.attribute.append(ir.serde.serialize_attribute(attribute))
    bodies = [graph for attribute in snapshot.attributes for graph in bodies_of(attribute)]
    inner = {value.name: names[value] for graph in bodies for value in captured(graph)}
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            _rename_captured(body, inner)
    if float64:
        _widen_node(node)
    return node


def _rename_captured(body: onnx.GraphProto, names: Mapping[str | None, str]) -> None:
    for node in body.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_captured(attribute.g, names)
    for value in body.output:
        if value.name in names:
            body.node.append(onnx.helper.make_node("Identity", [names[value.name]], [f"{value.name}.out"]))
            value.name = f"{value.name}.out"


def _functions(piece: Subgraph, *, float64: bool) -> list[onnx.FunctionProto]:
    """The functions that the piece calls, and those that these call, the inner ones first."""
    waiting = [(snapshot.domain, snapshot.op_type, snapshot.overload) for snapshot in piece.nodes]
    found: dict[ir.OperatorIdentifier, onnx.FunctionProto] = {}
    while waiting:
        identifier = waiting.pop()
        function = piece.functions.get(identifier)
        if function is None or identifier in found:
            continue
        found[identifier] = proto = ir.serde.serialize_function(function)
        waiting.extend(node.op_identifier() for node in function)
        if float64:
            for node in proto.node:
                _widen_node(node)
    return list(found.values())[::-1]


def _widen_node(node: onnx.NodeProto) -> None:
    """Attributes that name or hold floats, made to name or hold doubles."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and node.domain == "" and attribute.i in FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        elif attribute.HasField("t") and attribute.t.data_type in FLOATS:
            attribute.t.CopyFrom(_widened_tensor(attribute.t))
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            single = attribute.name == "value_float"
            values = np.array(attribute.f if single else list(attribute.floats), np.float64)
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(values)))
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _widen_node(inner)
            for i, tensor in enumerate(attribute.g.initializer):
                if tensor.data_type in FLOATS:
                    attribute.g.initializer[i].CopyFrom(_widened_tensor(tensor))


def _widened_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    return onnx.numpy_helper.from_array(array, tensor.name)
