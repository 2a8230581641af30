"""The graph in an older opset, for older runtimes: RMSNormalization ⇒ SimplifiedLayerNormalization, the rest as it is.

onnxruntime runs both norms by the same kernel, to the same bits and at the same speed; it has known the
second, its own name for it, for years. Every other op must mean the same in both opsets, or the graph stays
where it is.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from exporter.errors import Exit, OnnxGptError
from graph_passes.matching import attribute, make, replace, role_of
from graph_passes.outcome import Outcome

KIND = "exact"

WIDENED = frozenset(
    ["Cast", "Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze"]
)
"""Ops that opsets 22 and 23 changed in nothing but the types they admit."""

OLDEST = 21
RUNTIME_OWN = "SimplifiedLayerNormalization"


def apply(model: ir.Model, version: int = OLDEST) -> Outcome:
    graph = model.graph
    current = graph.opset_imports[""]
    if not OLDEST <= version <= current:
        raise OnnxGptError(
            "pipeline-invalid",
            f"opset{{version={version}}}: the graph is in opset {current}, and can be in {OLDEST} to {current}",
            "name one of these",
            exit=Exit.USAGE,
        )
    if version == current:
        return Outcome(0)
    newer = [node for node in graph if not _means_the_same(node, version, current)]
    if newer:
        return Outcome(0, tuple(f"{role_of(n)}: {n.op_type} is newer than opset {version}" for n in newer))
    for node in [n for n in graph if n.op_type == "RMSNormalization" and n.domain == ""]:
        epsilon, axis = attribute(node, "epsilon", 1e-5), attribute(node, "axis", -1)
        own = make(RUNTIME_OWN, node.inputs, str(node.name), role=role_of(node), epsilon=epsilon, axis=axis)
        replace(node, [node], [own], [(node.outputs[0], own.outputs[0])])
    graph.opset_imports[""] = version
    for function in model.functions.values():
        function.opset_imports[""] = version
    return Outcome(1)


def _means_the_same(node: ir.Node, version: int, current: int) -> bool:
    if node.domain != "" or node.op_type in WIDENED or node.op_type in ("RMSNormalization", RUNTIME_OWN):
        return True
    if not onnx.defs.has(node.op_type, version):
        return False
    schemas = [onnx.defs.get_schema(node.op_type, opset) for opset in (version, current)]
    return schemas[0].since_version == schemas[1].since_version
