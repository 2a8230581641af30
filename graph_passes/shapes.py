"""Shapes of intermediate values, by onnx's own inference, without reading a weight."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def infer_shapes(model: ir.Model) -> None:
    """Fill in types and shapes that are not known yet. Shapes already there stay as they are.

    Works on a copy in which every weight is an input of known shape: nothing is read, and the copy is small.
    """
    shadow = model.graph.clone()
    for value in list(shadow.initializers.values()):
        tensor = value.const_value
        if tensor is not None and (isinstance(tensor, ir.LazyTensor) or tensor.nbytes > 1024):
            del shadow.initializers[str(value.name)]
            value.const_value = None
            shadow.inputs.append(value)
    proto = ir.to_proto(ir.Model(shadow, ir_version=model.ir_version))
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    for ours, theirs in zip(model.graph, inferred.graph, strict=True):
        for value, found in zip(ours.outputs, theirs.outputs, strict=True):
            value.shape = value.shape if value.shape is not None else found.shape
            value.type = value.type if value.type is not None else found.type
