"""What a user asks of weight-only quantization, as values.

A scheme names a method and its grid; it knows nothing of graphs. ``int8``, ``int4`` and ``keep`` are the
names under which the command line knows them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from exporter.errors import Exit, OnnxGptError

Bits: TypeAlias = Literal[2, 4, 8]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A symmetric grid over its full range: ``w ≈ scale · code``, code in ``[−2^(bits−1), 2^(bits−1) − 1]``.

    A scale may be negative: the largest weight of a block then lands on the longer, negative side whatever
    its sign.

    Attributes:
        bits: width of a code: 2, 4 or 8.
        block_size: columns that share a scale, a power of two of at least 16 (32 for 2 bits: onnxruntime's
            kernel
            for 2-bit blocks of 16 is 80 times slower).

    Raises:
        OnnxGptError: ``scheme-invalid`` for widths and blocks that no fast kernel takes.
    """

    bits: int
    block_size: int

    def __post_init__(self) -> None:
        smallest = 32 if self.bits == 2 else 16
        if self.bits not in (2, 4, 8):
            raise _invalid(f"no kernel multiplies {self.bits}-bit weights", "use 2, 4 or 8 bits")
        if self.block_size < smallest or self.block_size & (self.block_size - 1):
            raise _invalid(
                f"a block of {self.block_size} is not possible with {self.bits}-bit weights",
                f"use a power of two of at least {smallest}",
            )

    @property
    def low(self) -> int:
        """Smallest signed code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest signed code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def bits_per_weight(self) -> float:
        """On disk, with float16 scales."""
        return self.bits + 16 / self.block_size


@dataclasses.dataclass(frozen=True)
class RoundToNearest:
    """Round to nearest, scales searched for the least squared error (`calibration.quantization.rtn`).

    Attributes:
        layers: grid of the linear maps inside layers.
        table: grid of the embedding and of the head, tied or not.
    """

    layers: Grid
    table: Grid


@dataclasses.dataclass(frozen=True)
class Keep:
    """The source's own codes, scales and minima, bit for bit; what the source holds as floats stays float."""


Scheme: TypeAlias = RoundToNearest | Keep

BLOCK_SIZE = {8: 32, 4: 32}
"""Block sizes by bits where the user asks for none; measured in docs/experiments.md."""

NAMES = ("int8", "int4", "keep")


def scheme_of(name: str, *, block_size: int | None = None, table_bits: int | None = None) -> Scheme:
    """The scheme that ``--quantize NAME`` asks for.

    Args:
        name: one of `NAMES`.
        block_size: columns that share a scale; a measured default for each width.
        table_bits: width of the embedding and head; that of the layers by default. A 4-bit table does a quarter of
            int4's damage; 8 bits cost a decode step 5 % and SmolLM2 14 MB.

    Raises:
        OnnxGptError: ``scheme-invalid`` (exit 2) for an unknown name, or options that do not fit the scheme.
    """
    if name not in NAMES:
        raise _invalid(f"there is no quantization scheme {name!r}", f"use one of {', '.join(NAMES)}")
    if name == "keep":
        if block_size is not None or table_bits is not None:
            raise _invalid("keep takes the source's own grid", "drop the block size and the table bits")
        return Keep()
    bits = int(name.removeprefix("int"))

    def grid(width: int) -> Grid:
        return Grid(width, BLOCK_SIZE.get(width, 32) if block_size is None else block_size)

    return RoundToNearest(grid(bits), grid(bits if table_bits is None else table_bits))


def _invalid(cause: str, remedy: str) -> OnnxGptError:
    return OnnxGptError("scheme-invalid", cause, remedy, exit=Exit.USAGE)
