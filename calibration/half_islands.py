"""Which nodes of a float graph cannot compute in float16, from what went through them on text.

- a value beyond a quarter of float16's range: what makes it, and what reads it;
- a norm whose squares sum to more than that: a runtime may add them up in float16;
- attention whose scores may be that large: |q|·|k|·scale over all tokens and heads bounds them;
- a value that rounding takes four times more of than of any without subnormals: as the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from calibration.ranges import NORMS
from calibration.statistics.half_range import HalfFit
from graph_passes.lowering.half import HALF_MAX
from graph_passes.matching import attribute, role_of

HEADROOM = 4.0
"""Calibration text is a sample: what comes later may be so much larger."""
LIMIT = HALF_MAX / HEADROOM
MOST_ROUNDING = 4 * 2.0**-11.8
"""2⁻¹¹·⁸ is the most that rounding takes of values none of which is subnormal, over their size."""

ATTENTIONS = {"GroupQueryAttention", "Attention"}


@dataclasses.dataclass(frozen=True)
class Island:
    """A node that stays float32.

    Attributes:
        role: its role, or name.
        reason: what would not fit, with the figure.
    """

    role: str
    reason: str


def islands(model: ir.Model, fits: Mapping[ir.Value, HalfFit]) -> tuple[Island, ...]:
    """The islands that a graph needs, in graph order, each node once.

    Args:
        fits: of the graph's float values. A function's inner values are no larger than its inputs and outputs are: an
            activation makes nothing larger.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        for island in _of(node, fits):
            found.setdefault(island.role, island.reason)
    order = {role_of(node): i for i, node in enumerate(model.graph)}
    return tuple(Island(role, found[role]) for role in sorted(found, key=lambda role: order[role]))


def _of(node: ir.Node, fits: Mapping[ir.Value, HalfFit]) -> Iterator[Island]:
    own = role_of(node)
    for value in node.outputs:
        reason = _unfit(fits.get(value))
        if reason:
            yield Island(own, f"its output {reason}")
            for user, _ in value.uses():
                yield Island(role_of(user), f"an input {reason}")
    if node.op_type in NORMS:
        summed = [node.inputs[i] for i in NORMS[node.op_type] if i < len(node.inputs)]
        rows = [fits[value].square for value in summed if value is not None and value in fits]
        square = sum(row**0.5 for row in rows) ** 2
        if square > LIMIT:
            yield Island(own, f"its squares sum to {square:.3g}")
    if node.op_type in ATTENTIONS:
        bound = _scores(node, fits)
        if bound > LIMIT:
            yield Island(own, f"its scores may reach {bound:.3g}")


def _scores(node: ir.Node, fits: Mapping[ir.Value, HalfFit]) -> float:
    """No score of an attention is larger, by Cauchy and Schwarz; rotations leave lengths as they are."""
    query, key = (fits.get(value) if value is not None else None for value in node.inputs[:2])
    past = 3 if node.op_type == "GroupQueryAttention" else 4
    heads = node.inputs[past] if past < len(node.inputs) else node.inputs[1]  # without a cache, keys by heads
    scale = attribute(node, "scale", 0.0)
    if not scale and heads is not None and heads.shape is not None and isinstance(heads.shape[-1], int):
        scale = heads.shape[-1] ** -0.5
    if query is None:
        return 0.0
    # where they are packed, |q|·|k| ≤ |qkv|²/2
    product = query.square / 2 if key is None else (query.square * key.square) ** 0.5
    return float(product * (scale or 1.0))


def _unfit(fit: HalfFit | None) -> str:
    if fit is None:
        return ""
    if fit.largest > LIMIT:
        return f"reaches {fit.largest:.6g}"
    if fit.rounding > MOST_ROUNDING:
        return f"loses {fit.rounding:.2g} of its size to rounding"
    return ""
