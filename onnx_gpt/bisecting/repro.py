"""A folder that shows a wrong piece by itself: both sides as models, what they read, and a script.

The script needs numpy and onnxruntime, and nothing of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graph_passes.proof.keys import FLOATS
from graph_passes.proof.subgraph import NodeSnapshot, Subgraph
from onnx_gpt.bisecting.locating import Wrong

INSIDE = 1 << 28
"""Bytes of weights up to which they lie in the model's file and not beside it."""

SCRIPT = '''"""Runs both sides of one piece of a graph on the same inputs and shows where they differ.

before.onnx is the piece as it was, after.onnx what a pass made of it. Needs numpy and onnxruntime.
Exit status 1 while the sides differ by more than {tolerance:.0e} of the largest value, 0 once they agree.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).parent
INPUTS = np.load(HERE / "inputs.npz")
TOLERANCE = {tolerance!r}


def run(name):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(HERE / name, options, providers=["CPUExecutionProvider"])
    feeds = {{value.name: INPUTS[value.name] for value in session.get_inputs()}}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feeds)))


before, after = run("before.onnx"), run("after.onnx")
differ = False
for name, old in before.items():
    new = after[name]
    if old.shape != new.shape:
        print(f"{{name}}: {{list(old.shape)}} became {{list(new.shape)}}")
        differ = True
        continue
    a, b = old.astype(np.float64), new.astype(np.float64)
    error = np.abs(a - b)
    largest = np.abs(a).max(initial=0.0)
    share = error.max(initial=0.0) / max(largest, 1e-30)
    at = np.unravel_index(int(error.argmax()), error.shape) if error.size else ()
    print(f"{{name}} {{list(old.shape)}}: largest |before| {{largest:.6g}}, largest difference {{share * largest:.6g}}")
    if error.size:
        print(f"  at {{[int(i) for i in at]}}: {{a[at]:.9g}} became {{b[at]:.9g}}")
    differ |= not share <= TOLERANCE
sys.exit(1 if differ else 0)
'''

TOLERANCE = 1e-6
"""Of the largest value, where nothing tells more."""


def write(wrong: Wrong, folder: Path, facts: Mapping[str, object], tolerance: float = TOLERANCE) -> None:
    """Write ``before.onnx``, ``after.onnx``, ``inputs.npz``, ``repro.py`` and ``facts.json``.

    Args:
        folder: is there, and empty.
        facts: what has been found, for people.
        tolerance: differences that do not count, of the largest value.
    """
    piece = wrong.piece
    arrays = {name: wrong.values[name] for name in piece.inputs if name in wrong.values}
    for name, side in (("before", piece.before), ("after", piece.after)):
        if any(str(value.name) not in arrays for value in side.inputs) or any(map(_has_body, side.nodes)):
            continue  # it reads what the graph before does not have, or holds an If or a Loop; the facts show it
        model = standing_alone(side, arrays)
        weights = [value.const_value for value in model.graph.initializers.values()]
        beside = sum(tensor.nbytes for tensor in weights if tensor is not None) > INSIDE
        ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.data" if beside else None)
    np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]
    (folder / "repro.py").write_text(SCRIPT.format(tolerance=tolerance), "utf-8")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def standing_alone(side: Subgraph, arrays: Mapping[str, np.ndarray]) -> ir.Model:
    """A piece as a model of its own: the shapes of ``arrays`` for what it reads, its own weights, unread."""
    values: dict[ir.Value, ir.Value] = {}
    for value in side.inputs:
        array = arrays[str(value.name)]
        values[value] = ir.Value(
            name=value.name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
    initializers = []
    for value in side.initializers():
        tensor = value.const_value
        assert tensor is not None
        new = ir.Value(
            name=value.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        values[value] = new
        initializers.append(new)
    nodes = []
    for snapshot in side.nodes:
        for value in snapshot.outputs:
            values[value] = ir.Value(name=value.name, type=value.type if value.dtype in FLOATS else None)
        node = ir.Node(
            snapshot.domain,
            snapshot.op_type,
            [None if v is None else values[v] for v in snapshot.inputs],
            snapshot.attributes,
            overload=snapshot.overload,
            outputs=[values[v] for v in snapshot.outputs],
        )
        nodes.append(node)
    functions = [side.functions[key].clone() for key in _called(side)]
    imports = {"": 23, **side.opset_imports} | {
        snapshot.domain: 1 for snapshot in side.nodes if snapshot.domain not in side.opset_imports
    }
    graph = ir.Graph(
        [values[v] for v in side.inputs],
        [values[v] for v in side.outputs],
        nodes=nodes,
        initializers=initializers,
        opset_imports=imports,
        name="piece",
    )
    return ir.Model(graph, ir_version=10, functions=functions)


def _has_body(snapshot: NodeSnapshot) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in snapshot.attributes)


def _called(side: Subgraph) -> Iterable[ir.OperatorIdentifier]:
    """Functions of the model that a piece calls, directly or through others."""
    found: dict[ir.OperatorIdentifier, None] = {}
    waiting = [(snapshot.domain, snapshot.op_type, snapshot.overload) for snapshot in side.nodes]
    while waiting:
        key = waiting.pop()
        if key in side.functions and key not in found:
            found[key] = None
            waiting.extend(node.op_identifier() for node in side.functions[key])
    return found
