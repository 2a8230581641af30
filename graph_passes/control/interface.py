"""Which input of a decoder graph is which."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from exporter.control import KEEP


@dataclasses.dataclass(frozen=True)
class Interface:
    """Inputs of a decoder.

    Attributes:
        input_ids: int ``[B, S]``.
        attention_mask: int, bool or float ``[B, T]``, or None.
        position_ids: int ``[B, S]``, or None.
        cache_position: int ``[S]``, places in the cache of the S tokens, or None.
        caches: float inputs, one for the keys and one for the values of each layer, in any order.
    """

    input_ids: ir.Value
    attention_mask: ir.Value | None
    position_ids: ir.Value | None
    cache_position: ir.Value | None
    caches: tuple[ir.Value, ...]

    @property
    def controls(self) -> tuple[ir.Value, ...]:
        """Inputs whose values the island may read."""
        found = (self.attention_mask, self.position_ids, self.cache_position)
        return tuple(value for value in found if value is not None)

    @property
    def past_axis(self) -> int:
        """Axis of the caches along which tokens lie."""
        shape = self.caches[0].shape if self.caches else None
        free = [i for i, dim in enumerate(shape or ()) if i and not isinstance(dim, int)]
        return free[0] if len(free) == 1 else 2


def interface_of(graph: ir.Graph) -> Interface | str:
    """Tell a graph's inputs apart, by rank and type, and masks from positions by their names; or why that fails."""
    masks, positions, places, tokens, caches = [], [], [], [], []
    strange = []
    for value in graph.inputs:
        name, rank = str(value.name).lower(), -1 if value.shape is None else len(value.shape)
        integer = value.dtype is not None and value.dtype.is_integer()
        if name == KEEP:
            continue
        if "mask" in name and rank == 2:
            masks.append(value)
        elif integer and rank == 2 and "position" in name:
            positions.append(value)
        elif integer and rank == 1 and "position" in name:
            places.append(value)
        elif integer and rank == 2:
            tokens.append(value)
        elif rank == 4 and value.dtype is not None and value.dtype.is_floating_point():
            caches.append(value)
        else:
            strange.append(value)
    if len(tokens) != 1 or strange or any(len(found) > 1 for found in (masks, positions, places)):
        listed = ", ".join(f"{value.name} {value.dtype} {value.shape}" for value in graph.inputs)
        return f"its inputs are not those of a decoder that takes tokens: {listed}"
    return Interface(tokens[0], _only(masks), _only(positions), _only(places), tuple(caches))


def _only(values: list[ir.Value]) -> ir.Value | None:
    return values[0] if values else None
