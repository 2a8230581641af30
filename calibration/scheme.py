"""What a user asks of weight-only quantization, as values.

A scheme names a method and its grid; it knows nothing of graphs. ``int8``, ``int4`` and ``keep`` are the
names under which the command line knows them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import TypeAlias

from exporter.block_codes import BlockFormat
from exporter.errors import Exit, OnnxGptError


@dataclasses.dataclass(frozen=True)
class Grid:
    """A symmetric grid over its full range: ``w ≈ scale · code``, code in ``[−2^(bits−1), 2^(bits−1) − 1]``.

    A scale may be negative: the largest weight of a block then lands on the longer, negative side whatever its sign.

    Attributes:
        bits: width of a code: 2, 4 or 8.
        block_size: columns that share a scale, a power of two of at least 16 (32 for 2 bits: onnxruntime's kernel for
            2-bit blocks of 16 is 80 times slower).

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
    def format(self) -> BlockFormat:
        """How its codes and scales lie on disk."""
        return BlockFormat(self.bits, self.block_size, False, "float16")

    @property
    def bits_per_weight(self) -> float:
        """On disk, with float16 scales."""
        return self.bits + 16 / self.block_size


@dataclasses.dataclass(frozen=True)
class WeightOnly:
    """Grids for every matrix of a model; its subclasses say how codes are chosen.

    Attributes:
        layers: grid of the linear maps inside layers.
        table: grid of the embedding and of the head, tied or not.
        exceptions: other grids for some linear maps, by role, None where they stay float: ``("ffn.down", grid)`` is
            that of every layer, ``("ffn.*", grid)`` that of several maps, ``("layers.0-3+7.ffn.down", grid)`` of some
            layers, ``("layers.2?.*", grid)`` of those that match, ``("table", grid)`` that of the table. The first
            match counts.
    """

    layers: Grid
    table: Grid
    exceptions: tuple[tuple[str, Grid | None], ...] = ()

    def grid_of(self, role: str) -> Grid | None:
        """The grid of a linear map inside a layer, or of `TABLE`; None where it stays float."""
        usual = self.table if role == TABLE else self.layers
        return next((grid for pattern, grid in self.exceptions if fits(role, pattern)), usual)


TABLE = "table"
"""The role by which a scheme speaks of embedding and head. Only itself matches it."""

_SPANS = re.compile(r"layers\.(\d+(?:-\d+)?(?:\+\d+(?:-\d+)?)*)\.(.+)")


def fits(role: str, pattern: str) -> bool:
    """Whether a role is one that a pattern means."""
    if TABLE in (role, pattern):
        return role == pattern
    spans, own = _SPANS.fullmatch(pattern), _SPANS.fullmatch(role)
    if spans is None or own is None or not own[1].isdecimal():
        return any(fnmatch.fnmatchcase(role, glob) for glob in (pattern, f"*.{pattern}"))
    inside = any(first <= int(own[1]) <= last for first, last in layers_named(pattern))
    return inside and fnmatch.fnmatchcase(own[2], spans[2])


def layers_named(pattern: str) -> list[tuple[int, int]]:
    """First and last layer of each span that a pattern writes out, ``layers.0-3+28.ffn.down``; none of a glob."""
    spans = _SPANS.fullmatch(pattern)
    if spans is None:
        return []
    ends = [[int(end) for end in span.split("-")] for span in spans[1].split("+")]
    return [(span[0], span[-1]) for span in ends]


@dataclasses.dataclass(frozen=True)
class RoundToNearest(WeightOnly):
    """Round to nearest, scales searched for the least error of the weights (`calibration.quantization.rtn`)."""


@dataclasses.dataclass(frozen=True)
class Gptq(WeightOnly):
    """Codes chosen for the least error of each layer's outputs on a text (`calibration.quantization.gptq`).

    So is a table of fewer than 8 bits, by the inputs of the head; one of 8 is rounded to nearest.

    Attributes:
        damping: added to the diagonal of the inputs' second moment, of its mean.
    """

    damping: float = 0.01


@dataclasses.dataclass(frozen=True)
class Static(WeightOnly):
    """Activations and weights in 8 bits by scales fixed beforehand (`calibration.static`), for a rotated decoder.

    The grids are those of what cannot be static: ``layers`` of some down projections, ``table`` of embedding and head.

    Attributes:
        method: ``gptq`` chooses codes for the least error of each product on text, ``rtn`` rounds to nearest.
        by_token: inputs of down projections are rounded token by token, where that is not far off.
    """

    method: str = "gptq"
    by_token: bool = False


@dataclasses.dataclass(frozen=True)
class BiasCorrected(WeightOnly):
    """Round to nearest, and biases that make up for its mean on a text (`calibration.quantization.bias_correction`)."""


@dataclasses.dataclass(frozen=True)
class Awq(WeightOnly):
    """Round to nearest after channels were scaled for the least error on a text (`calibration.quantization.awq`)."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """The source's own codes, scales and minima, bit for bit; what the source holds as floats stays float."""


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Activations in 8 bits by a scale for each token, found as the graph runs (`calibration.dynamic`); weights too."""


@dataclasses.dataclass(frozen=True)
class Floats:
    """Weights stay floats, in the type that the graph computes in."""


WeightScheme: TypeAlias = WeightOnly | Keep
"""What `quantize_weights` takes."""
Scheme: TypeAlias = WeightScheme | Dynamic | Floats

HALF = {"fp16": "none", "q4f16": "int4"}
"""Schemes whose graph computes in float16 (`graph_passes.lowering.half`), and what becomes of their weights."""

BLOCK_SIZE = {8: 32, 4: 32}
"""Block sizes by bits where the user asks for none; measured in docs/experiments.md."""

STATIC_BLOCK_SIZE = 64
"""Block size of the down projections of w8a8: 32 loses a tenth less, 128 a tenth more and runs prompts 4 % faster."""
WHOLE_TOKEN = 512
"""Block size from which on w8a8 takes a token's inputs of a down projection as one block, in an integer product."""

NAMES = ("int8", "int4", "w8a8", "dynamic8", "keep", "fp16", "q4f16")
METHODS: Mapping[str, type[WeightOnly]] = {
    "rtn": RoundToNearest,
    "gptq": Gptq,
    "awq": Awq,
    "bias": BiasCorrected,
}
GRIDLESS: Mapping[str, tuple[Scheme, str]] = {
    "keep": (Keep(), "takes the source's own grid"),
    "dynamic8": (Dynamic(), "has a grid of its own"),
    "fp16": (Floats(), "has no grid; q4f16 has one"),
}
"""Schemes that leave nothing to choose, and why."""


def scheme_of(
    name: str,
    *,
    block_size: int | None = None,
    table_bits: int | None = None,
    method: str = "rtn",
    mixed: str = "",
) -> Scheme:
    """The scheme that ``--quantize NAME`` asks for.

    Args:
        name: one of `NAMES`.
        block_size: columns that share a scale; a measured default for each width.
        table_bits: width of the embedding and head; that of the layers by default. A 4-bit table does a quarter of
            int4's damage; 8 bits cost a decode step 5 % and SmolLM2 14 MB.
        method: one of `METHODS`.
        mixed: other widths for some roles, ``attention.v=8,ffn.down=8/128``: a pattern, bits, and a block size where it
            is not that of the others; or ``float``.

    Raises:
        OnnxGptError: ``scheme-invalid`` (exit 2) for an unknown name, or options that do not fit the scheme.
    """
    if name not in NAMES:
        raise _invalid(f"there is no quantization scheme {name!r}", f"use one of {', '.join(NAMES)}")
    if method not in METHODS:
        raise _invalid(f"there is no method {method!r}", f"use one of {', '.join(METHODS)}")
    if name in GRIDLESS:
        scheme, why = GRIDLESS[name]
        if block_size is not None or table_bits is not None or mixed or method != "rtn":
            raise _invalid(f"{name} {why}", "drop block size, table bits, method and mixed")
        return scheme
    if name == "w8a8":
        if method in ("awq", "bias") or mixed or table_bits not in (None, 8):
            raise _invalid(
                "w8a8 has 8 bits everywhere, by gptq or rtn", "drop table bits, mixed, awq and bias"
            )
        return _static(STATIC_BLOCK_SIZE if block_size is None else block_size, method)
    bits = int(HALF.get(name, name).removeprefix("int"))

    def grid(width: int, block: int | None = block_size) -> Grid:
        return Grid(width, BLOCK_SIZE.get(width, 32) if block is None else block)

    exceptions = tuple((role, grid(*widths) if widths else None) for role, widths in _mixed(mixed).items())
    return METHODS[method](grid(bits), grid(bits if table_bits is None else table_bits), exceptions)


def _static(block_size: int, method: str) -> Static:
    asked = Grid(8, block_size)
    by_token = asked.block_size >= WHOLE_TOKEN
    down = Grid(8, STATIC_BLOCK_SIZE) if by_token else asked
    return Static(down, Grid(8, BLOCK_SIZE[8]), method=method, by_token=by_token)


def _mixed(text: str) -> Mapping[str, tuple[int, ...]]:
    """``attention.v=8,ffn.down=8/128`` as bits, and block sizes where there are some, by role; empty for ``float``."""
    found: dict[str, tuple[int, ...]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        role, _, grid = item.partition("=")
        numbers = [] if grid == "float" else grid.split("/")
        if not role or len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
            raise _invalid(
                f"{item!r} is no exception to a grid", "write ROLE=BITS, ROLE=BITS/BLOCK or ROLE=float"
            )
        if role in found:
            raise _invalid(f"mixed names {role!r} twice", "say once what its weights are to be")
        found[role] = tuple(int(number) for number in numbers)
    return found


def _invalid(cause: str, remedy: str) -> OnnxGptError:
    return OnnxGptError("scheme-invalid", cause, remedy, exit=Exit.USAGE)
