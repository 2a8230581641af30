"""A weight as an initializer of a graph."""

from __future__ import annotations

from typing import IO

import numpy as np
import onnx_ir as ir

from exporter.weight_expressions import Transposed, transposed
from exporter.weights import Weight


class WeightTensor(ir.LazyTensor):
    """A weight as a float32 initializer of the graph, read only when the file is written.

    Args:
        weight: the expression, ``[out, in]`` for a linear map, ``[n]`` for a vector.
        transpose: give the graph ``[in, out]``, as MatMul wants it.
    """

    def __init__(self, name: str, weight: Weight, *, transpose: bool = False) -> None:
        shape = ir.Shape(weight.shape[::-1] if transpose else weight.shape)
        super().__init__(self._whole, ir.DataType.FLOAT, shape, name=name)
        self.weight = weight
        self.transpose = transpose

    def _whole(self) -> ir.Tensor[np.ndarray]:
        array = self.weight.read()
        return ir.Tensor(np.ascontiguousarray(array.T) if self.transpose else array, name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        """Stream the tensor: by rows as it lies, or by columns of the whole matrix when it is transposed."""
        if not self.transpose or isinstance(self.weight, Transposed):
            lies = transposed(self.weight) if self.transpose else self.weight
            for start, stop in lies.pieces():
                file.write(lies.rows(start, stop).data.cast("B"))
            return
        whole = self.weight.read()
        step = max(1, (4 << 20) // (4 * whole.shape[0]))
        for start in range(0, whole.shape[1], step):
            file.write(np.ascontiguousarray(whole[:, start : start + step].T).data.cast("B"))
