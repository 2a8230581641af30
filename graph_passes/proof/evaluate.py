"""Small pieces of a graph, run: by onnxruntime with its optimisations off, or in float64.

The only file of this room that imports onnxruntime. The piece is copied out under names of its own; the model
that it was cut from is never changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx.reference.op_run import OpRun

EMBEDDED = 4096
"""Bytes up to which an initializer is written into the piece; larger ones are fed, which copies nothing."""

_PLAIN = frozenset(
    [ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.FLOATS]
)

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


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A node as it was when the piece was cut; it and its values are known by identity."""

    op_type: str
    domain: str
    overload: str
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    attributes: tuple[ir.Attr, ...]

    @classmethod
    def of(cls, node: ir.Node) -> Call:
        return cls(
            node.op_type,
            node.domain,
            node.overload,
            tuple(node.inputs),
            tuple(node.outputs),
            tuple(node.attributes.values()),
        )

    def reads(self) -> Iterator[ir.Value]:
        """Inputs, and what the bodies of an If or a Loop take from outside."""
        yield from (value for value in self.inputs if value is not None)
        for attribute in self.attributes:
            for graph in _graphs(attribute):
                yield from captured(graph)


@dataclasses.dataclass(frozen=True)
class Subgraph:
    """A piece of a graph.

    Attributes:
        inputs: values that have to be fed; initializers of the graph are not among them.
        nodes: in topological order.
        outputs: what it gives.
        opset_imports: version by domain.
        functions: the model's own functions by identifier, all of them.
    """

    inputs: tuple[ir.Value, ...]
    nodes: tuple[Call, ...]
    outputs: tuple[ir.Value, ...]
    opset_imports: Mapping[str, int]
    functions: Mapping[ir.OperatorIdentifier, ir.Function]

    @classmethod
    def cut(cls, model: ir.Model, outputs: Sequence[ir.Value], stop_at: Sequence[ir.Value] = ()) -> Subgraph:
        """What computes ``outputs`` from ``stop_at``, or from the graph's inputs where nothing stops it."""
        boundary, nodes = upwards(outputs, frozenset(stop_at).__contains__, live_calls())
        imports = dict(model.graph.opset_imports)
        return cls(boundary, nodes, tuple(outputs), imports, dict(model.functions))

    def __str__(self) -> str:
        """One line a node, in the notation of the rules: ``y = Add(x, b)``."""
        names: dict[ir.Value, str] = {}

        def name(value: ir.Value | None) -> str:
            return "" if value is None else names.setdefault(value, value.name or f"value_{len(names)}")

        lines = []
        for call in self.nodes:
            settings = [f"{a.name}={a.value}" for a in call.attributes if a.type in _PLAIN]
            arguments = ", ".join([*map(name, call.inputs), *settings])
            lines.append(f"{', '.join(map(name, call.outputs))} = {call.op_type}({arguments})")
        return "; ".join([*lines, f"return {', '.join(map(name, self.outputs))}"])

    def initializers(self) -> tuple[ir.Value, ...]:
        """Values with a tensor that the piece reads and nobody feeds."""
        made = {value for call in self.nodes for value in call.outputs} | set(self.inputs)
        read = [value for call in self.nodes for value in call.reads()]
        return tuple(dict.fromkeys(v for v in (*read, *self.outputs) if v not in made))


Making = Callable[[ir.Value], Call | None]
"""The node that makes a value, the same object every time; None of an input or an initializer."""


def live_calls() -> Making:
    """Nodes as they are at the first look."""
    calls: dict[ir.Node, Call] = {}

    def made_by(value: ir.Value) -> Call | None:
        node = value.producer()
        if node is None:
            return None
        if node not in calls:
            calls[node] = Call.of(node)
        return calls[node]

    return made_by


def upwards(
    outputs: Sequence[ir.Value], stops: Callable[[ir.Value], bool], made_by: Making
) -> tuple[tuple[ir.Value, ...], tuple[Call, ...]]:
    """Values at which a walk upwards ends (initializers left out), and the nodes on the way, sorted.

    Args:
        stops: whether not to go beyond a value. Inputs and initializers end the walk by themselves.
    """
    boundary: dict[ir.Value, None] = {}
    found: set[Call] = set()
    done: dict[Call, None] = {}
    waiting: list[ir.Value | Call] = list(reversed(outputs))
    while waiting:
        item = waiting.pop()
        if isinstance(item, Call):  # all that it reads is done
            done[item] = None
            continue
        call = made_by(item)
        if call is None:
            if item.const_value is None:
                boundary[item] = None
        elif stops(item):
            boundary[item] = None
        elif call not in found:
            found.add(call)
            waiting.append(call)
            waiting.extend(reversed(list(call.reads())))
    return tuple(boundary), tuple(done)


def captured(graph: ir.Graph) -> list[ir.Value]:
    """Values that the body of an If or a Loop takes from outside."""
    inside: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    found: dict[ir.Value, None] = {}
    for node in graph:
        found.update(dict.fromkeys(value for value in Call.of(node).reads() if value not in inside))
        inside.update(node.outputs)
    found.update(dict.fromkeys(value for value in graph.outputs if value not in inside))
    return list(found)


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
    for call in piece.nodes:
        for value in call.outputs:
            result = results.get(names[value])
            if isinstance(result, np.ndarray) and result.dtype.kind not in "biuSUO" and result.itemsize < 8:
                raise CannotEvaluate(f"float64 reference: {call.op_type} gives {result.dtype}")
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
    for call in piece.nodes:
        graph.node.append(_node(call, names, arrays, float64=float64))
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


def _node(call: Call, names: _Names, fed: Mapping[ir.Value, np.ndarray], *, float64: bool) -> onnx.NodeProto:
    outputs = [names[value] if value not in fed else f"{names[value]}.unread" for value in call.outputs]
    node = onnx.NodeProto(
        op_type=call.op_type,
        domain=call.domain,
        overload=call.overload,
        input=["" if value is None else names[value] for value in call.inputs],
        output=["" if v.name == "" else name for v, name in zip(call.outputs, outputs, strict=True)],
    )
    for attribute in call.attributes:
        node.attribute.append(ir.serde.serialize_attribute(attribute))
    bodies = [graph for attribute in call.attributes for graph in _graphs(attribute)]
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
    waiting = [(call.domain, call.op_type, call.overload) for call in piece.nodes]
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


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        graphs: Any = attribute.as_graphs()
        return list(graphs)
    return []
