"""GatherBlockQuantized(codes, i; unsqueeze(cast(scale))) ⇒ the same with its scale as one constant of the cast's type.

onnxruntime folds what stands before the scale when it loads a graph. OpenVINO reads a lookup of codes only where its
scale is a constant in the file; the product with the same table keeps its own, at half the width.
"""

from __future__ import annotations

import onnx_ir as ir

from calibration.quantization.qdq import remove_unused
from graph_passes.matching import MICROSOFT, attribute, initializer, producer


def fold_lookup_scales(model: ir.Model) -> int:
    """Write the scales of all lookups as constants, in place; how many those were. No weight is read."""
    folded = 0
    for node in model.graph:
        if (node.domain, node.op_type) != (MICROSOFT, "GatherBlockQuantized"):
            continue
        column = producer(node.inputs[2], "Unsqueeze")
        cast = producer(column.inputs[0], "Cast") if column is not None else None
        stored = cast.inputs[0] if cast is not None else column.inputs[0] if column is not None else None
        if column is None or stored is None or stored.const_value is None:
            continue
        scale = stored.const_value
        dtype = scale.dtype if cast is None else ir.DataType(attribute(cast, "to", int(ir.DataType.FLOAT)))
        node.replace_input_with(2, initializer(model.graph, _column(scale, dtype)))
        remove_unused(model.graph, column.outputs[0])
        folded += 1
    return folded


def _column(scale: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """``[V, blocks]`` ⇒ ``[V, blocks, 1]``."""
    name = f"{scale.name}_of_lookup"

    def made() -> ir.TensorProtocol:
        return ir.Tensor(scale.numpy().astype(dtype.numpy())[..., None], name=name)

    return ir.LazyTensor(made, dtype, ir.Shape([*scale.shape.numpy(), 1]), name=name)
