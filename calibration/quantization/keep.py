"""A source's own quantization, taken over bit for bit: its codes, scales and minima are the result."""

from __future__ import annotations

from exporter.block_codes import BlockFormat
from exporter.weight_expressions import Stack
from exporter.weights import Weight


def takes(form: BlockFormat, columns: int) -> bool:
    """Whether rows of so many columns in this format go to onnxruntime's kernels as they are."""
    smallest = 32 if form.bits == 2 else 16
    whole = columns % form.block == 0
    return form.bits in (2, 4, 8) and form.block >= smallest and form.block & (form.block - 1) == 0 and whole


def hides_codes(weight: Weight) -> bool:
    """Whether an expression without a format of its own is made from a weight that has one."""
    base = getattr(weight, "base", None)
    parts = getattr(weight, "parts", ()) if base is None else (base,)
    return any(part.format is not None or hides_codes(part) for part in parts)


def runs(weight: Weight) -> list[Weight]:
    """A weight as the longest pieces, one under the other, of one format each (or float).

    Q and K may be Q4_K where V is Q6_K. Each piece then becomes its own product and the outputs are joined:
    that is exact and keeps every byte as it was, where one grid for all of them would need wider codes.
    """
    if not isinstance(weight, Stack) or weight.format is not None:
        return [weight]
    pieces: list[list[Weight]] = []
    for part in weight.parts:
        for piece in runs(part):
            if pieces and pieces[-1][0].format == piece.format:
                pieces[-1].append(piece)
            else:
                pieces.append([piece])
    return [same[0] if len(same) == 1 else Stack(tuple(same)) for same in pieces]
