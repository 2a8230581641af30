"""Constants of a graph, each of them once."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from graph_passes.matching import SMALL, constant, initializer


class Constants:
    """Small constants by what they hold. Those that are in the graph already are among them, and any that is there
    twice is used once from now on; weights are not looked at.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._values: dict[Hashable, ir.Value] = {}
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or not _is_shared(tensor) or constant(value) is None:
                continue
            first = self._values.setdefault(tensor_key(tensor), value)
            if first is not value and not value.is_graph_output():
                ir.convenience.replace_all_uses_with(value, first)

    def of(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The value that holds a tensor; a new one is named after the tensor."""
        key = tensor_key(tensor)
        if key not in self._values:
            self._values[key] = initializer(self.graph, tensor)
        return self._values[key]

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.of(ir.tensor(np.array(numbers, np.int64), name="_".join(["ints", *map(str, numbers)])))

    def scalar(self, number: int | float, dtype: ir.DataType) -> ir.Value:
        """A scalar of a type."""
        return self.of(ir.tensor(np.array(number, dtype.numpy()), name=f"scalar_{number}"))


def _is_shared(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is arithmetic and no weight: integers, and numbers that stand alone."""
    return tensor.size == 1 or not tensor.dtype.is_floating_point()


def tensor_key(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for small tensors that hold the same."""
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes > SMALL:
        return id(tensor)
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
