"""Writes a graph node by node: every node has a name, every constant is made once, weights stay unread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight

ROLE = "onnx_gpt.role"
"""Metadata key under which a node carries its role, e.g. ``layers.3.ffn.down``."""


class Emitter:
    """Nodes in the order of the calls. One instance writes one graph.

    Args:
        weights: by role.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights
        self._tape = tape.Tape()
        self._inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], *, name: str, role: str = "", **attributes: Any
    ) -> ir.Value:
        """One node with one output; both have the same name."""
        out = ir.Value(name=name)
        self._node(op_type, inputs, attributes, [out], name, role)
        return out

    def op_into(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        *,
        role: str,
        **attributes: Any,
    ) -> None:
        """One node with the outputs given, named by its role."""
        self._node(op_type, inputs, attributes, outputs, role, role)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        outputs: Sequence[ir.Value],
        name: str,
        role: str,
    ) -> None:
        metadata = {ROLE: role} if role else None
        self._tape.op_multi_out(
            op_type, inputs, attributes, outputs=outputs, name=name, metadata_props=metadata
        )

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = typed(name, dtype, shape)
        self._inputs.append(value)
        return value

    def optional_input(self, name: str, default: int) -> ir.Value:
        """A scalar int64 input that need not be fed: an initializer of the same name is its default."""
        value = self.input(name, ir.DataType.INT64, [])
        value.const_value = ir.tensor(np.array(default, np.int64), name=name)
        self._initializers[name] = value
        return value

    def weight(self, role: str, *, transpose: bool = False) -> ir.Value:
        """The weight of a role, as it is or as MatMul wants it."""
        if role not in self._initializers:
            self._initializer(WeightTensor(role, self._weights[role], transpose=transpose))
        return self._initializers[role]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self._initializers:
            self._initializer(ir.tensor(array, name=name))
        return self._initializers[name]

    def ints(self, name: str, values: Sequence[int]) -> ir.Value:
        return self.constant(name, np.array(values, np.int64))

    def scalar(self, name: str, value: int | float) -> ir.Value:
        """int64 of an int, float32 of a float."""
        return self.constant(name, np.array(value, np.int64 if isinstance(value, int) else np.float32))

    def _initializer(self, tensor: ir.TensorProtocol) -> None:
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._initializers[str(tensor.name)] = value

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """All nodes so far."""
        return self._tape.nodes

    @property
    def initializers(self) -> Sequence[ir.Value]:
        """All constants and weights so far."""
        return tuple(self._initializers.values())

    @property
    def inputs(self) -> Sequence[ir.Value]:
        """All inputs so far."""
        return self._inputs

    def graph(self, outputs: Sequence[ir.Value], *, name: str, opset: int) -> ir.Graph:
        return ir.Graph(
            self._inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": opset},
            name=name,
        )


def typed(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """A value whose type and shape are stated."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
