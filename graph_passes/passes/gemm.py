"""x · transpose(table) ⇒ reshape(Gemm(reshape(x), table; transB=1)) for runtimes without FusedMatMul.

``[B, S, E]`` becomes ``[B·S, E]`` on the way, which Gemm wants; the table is stored once and never transposed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes.matching import MICROSOFT, attribute, initializer, make, replace, role_of
from graph_passes.outcome import Outcome

KIND = "fp"


def apply(model: ir.Model) -> Outcome:
    graph = model.graph
    fired = 0
    for node in [n for n in graph if n.op_type == "FusedMatMul" and n.domain == MICROSOFT]:
        x, table = node.inputs
        others = (attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB"))
        plain = attribute(node, "transB", 0) == 1 and not any(others) and attribute(node, "alpha", 1.0) == 1.0
        if not plain or x is None or table is None or table.shape is None or len(table.shape) != 2:
            continue
        name = str(node.name)
        rows, width = table.shape.numpy()

        def ints(what: str, *values: int, name: str = name) -> ir.Value:
            return initializer(graph, ir.tensor(np.array(values, np.int64), name=f"{name}.{what}"))

        leading = make("Shape", [x], f"{name}.leading", start=0, end=2)
        size = make("Concat", [leading.outputs[0], ints("vocabulary", rows)], f"{name}.size", axis=0)
        flat = make("Reshape", [x, ints("flat_size", -1, width)], f"{name}.flat")
        product = make("Gemm", [flat.outputs[0], table], f"{name}.product", role=role_of(node), transB=1)
        whole = make("Reshape", [product.outputs[0], size.outputs[0]], name)
        for made in (leading, size):
            made.outputs[0].dtype = ir.DataType.INT64
        replace(node, [node], [leading, size, flat, product, whole], [(node.outputs[0], whole.outputs[0])])
        fired += 1
    return Outcome(fired)
