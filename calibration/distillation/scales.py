"""A quantized student: codes stay as they are, and what multiplies them is trained, with norms and biases.

    w = s · (1 + δ) · q        gradient to δ alone, one for each block

δ is relative, so that one learning rate fits small and large blocks. The weights that come out lie on the grid of their
scales in float16, and rounding them to nearest again finds these codes and scales (`calibration.quantization.rtn`; a
test counts): so the result needs no format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calibration.distillation.running import Weights, device
from calibration.distillation.state import Group
from calibration.quantization import rtn
from calibration.scheme import TABLE, Grid, WeightOnly

UNTOUCHED = "positions.weight"
"""A table that quantization leaves float."""


def grid_of(scheme: WeightOnly, role: str, shape: tuple[int, ...]) -> Grid | None:
    """The grid of a weight by its role; None of what stays float."""
    if len(shape) != 2 or role == UNTOUCHED:
        return None
    return scheme.grid_of(role.removesuffix(".weight") if role.startswith("layers.") else TABLE)


class Scales:
    """Codes and scales of every matrix, rounded to nearest; vectors as they are.

    Args:
        arrays: float32 by role.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], scheme: WeightOnly) -> None:
        self.values: Group = {}
        self._fixed: Group = {}
        self._codes: dict[str, tuple[Tensor, Tensor, int]] = {}
        for role, array in arrays.items():
            grid = grid_of(scheme, role, array.shape)
            tensor = torch.from_numpy(array).to(device())
            if grid is not None:
                self._codes[role] = _coded(array, grid, role)
                self.values[role] = torch.zeros_like(self._codes[role][1]).requires_grad_()
            elif role == UNTOUCHED:
                self._fixed[role] = tensor
            else:
                self.values[role] = tensor.requires_grad_()

    def weights(self) -> Weights:
        return self._fixed | {role: self._of(role, value, exact=True) for role, value in self.values.items()}

    def arrays(self, values: Group) -> dict[str, np.ndarray]:
        """The weights by role that some values make, float32, on grids whose scales are float16."""
        with torch.no_grad():
            made = {role: self._of(role, value.to(device()), exact=False) for role, value in values.items()}
        return {role: tensor.detach().cpu().numpy() for role, tensor in (self._fixed | made).items()}

    def _of(self, role: str, value: Tensor, *, exact: bool) -> Tensor:
        if role not in self._codes:
            return value
        codes, scale, columns = self._codes[role]
        scale = scale * (1 + value)
        if not exact:
            scale = scale.half().float()
        return (codes.float() * scale[..., None]).flatten(1)[:, :columns]


def _coded(array: np.ndarray, grid: Grid, role: str) -> tuple[Tensor, Tensor, int]:
    """Signed codes int8 ``[R, K/block, block]``, scales ``[R, K/block]``, and K."""
    found = rtn.quantize(array, grid, role)
    rows, columns = array.shape
    codes = np.zeros((rows, found.scale.shape[1] * grid.block_size), np.int8)
    codes[:, :columns] = found.codes.astype(np.int16) + grid.low
    blocks = torch.from_numpy(codes.reshape(rows, -1, grid.block_size)).to(device())
    return blocks, torch.from_numpy(found.scale.astype(np.float32)).to(device()), columns
