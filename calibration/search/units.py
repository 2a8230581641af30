"""What a search decides on: units of weights that share a decision, and the formats that each may take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from calibration.quantization.sites import site_of
from calibration.scheme import TABLE, Grid, RoundToNearest
from calibration.segments import LAYER
from exporter.errors import Exit, OnnxGptError

ALIGNMENT = 4096
"""Bytes: where a tensor of a file of weights begins."""
TIED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
"""Linear maps of one input, by the name of the product that passes make of them."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A format: one grid, and others for some parts of a unit.

    Attributes:
        grid: of all parts but
        own: those named here, by the last word of their role.
    """

    grid: Grid
    own: tuple[tuple[str, Grid], ...] = ()

    def grid_of(self, role: str) -> Grid:
        return dict(self.own).get(role.rpartition(".")[2], self.grid)

    def __str__(self) -> str:
        return "+".join([_text(self.grid), *(f"{name}={_text(grid)}" for name, grid in self.own)])


@dataclasses.dataclass(frozen=True)
class Part:
    """A linear map, or the table: its role and its shape ``(N, K)``."""

    role: str
    shape: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Unit:
    """Weights that are decided on together: query, key and value of a layer; gate and up; one map; the table.

    Attributes:
        name: ``layers.3.attention.qkv``, ``layers.3.ffn.down``, ``table``.
        layer: None for the table.
    """

    name: str
    parts: tuple[Part, ...]
    layer: int | None

    def takes(self, option: Option) -> bool:
        """Whether the option names parts of this unit alone."""
        return {name for name, _ in option.own} <= {part.role.rpartition(".")[2] for part in self.parts}

    def nbytes(self, option: Option) -> int:
        """What the unit takes in a file of weights, at most: every tensor begins at a multiple of `ALIGNMENT`."""
        return sum(_nbytes(rows, columns, grid) for grid, rows, columns in self.products(option))

    def products(self, option: Option) -> list[tuple[Grid, int, int]]:
        """Grid, N and K of each product that the unit becomes: neighbours of one grid are one; of each table."""
        if self.layer is None:
            return [(option.grid_of(part.role), *part.shape) for part in self.parts]
        found: list[tuple[Grid, int, int]] = []
        for grid, parts in itertools.groupby(self.parts, lambda part: option.grid_of(part.role)):
            shapes = [part.shape for part in parts]
            found.append((grid, sum(rows for rows, _ in shapes), shapes[0][1]))
        return found


Allocation: TypeAlias = Mapping[str, Option]
"""Options by the name of the unit; a unit that is not there stays float."""


def units_of(model: ir.Model) -> list[Unit]:
    """The units of a decoder as passes leave it, in order; the table is the last."""
    sites = [site for site in map(site_of, model.graph) if site is not None]
    tables = {site.table for site in sites if site.kind == "lookup" and site.role != "positions"}
    found: dict[str, list[Part]] = {}
    seen = set()
    for site in sites:
        if site.table in seen or site.role == "positions":
            continue
        seen.add(site.table)
        rows, columns = site.weight.shape
        if site.table in tables or site.role == "head":
            found.setdefault(TABLE, []).append(Part(TABLE, (rows, columns)))
            continue
        for role, weight in site.parts():
            stem, _, last = role.rpartition(".")
            name = f"{stem}.{TIED.get(last, last)}"
            found.setdefault(name, []).append(Part(role, (weight.shape[0], weight.shape[1])))
    ordered = [*(name for name in found if name != TABLE), *(name for name in found if name == TABLE)]
    return [Unit(name, tuple(found[name]), _layer(name)) for name in ordered]


def options_of(text: str) -> list[Option]:
    """``4/64,8/64,4/64+v=8/64`` as options.

    Raises:
        OnnxGptError: ``scheme-invalid`` (exit 2).
    """
    found = dict.fromkeys(_option(item.strip()) for item in text.split(",") if item.strip())
    if not found:
        raise _no_option(text)
    return list(found)


def scheme_of_allocation(units: Iterable[Unit], allocation: Allocation) -> RoundToNearest:
    """The scheme that quantizes the units of an allocation, and leaves the others float."""
    exceptions: list[tuple[str, Grid | None]] = []
    for unit in units:
        if unit.name in allocation:
            exceptions += [(part.role, allocation[unit.name].grid_of(part.role)) for part in unit.parts]
    any_grid = Grid(8, 32)  # of no weight: the last two exceptions are of all that are left
    return RoundToNearest(any_grid, any_grid, (*exceptions, (TABLE, None), ("*", None)))


def mixed_text(units: Sequence[Unit], allocation: Allocation, usual: Grid) -> str:
    """The ``mixed`` of a recipe for an allocation, the table's exception included: layers of one grid are one item."""
    layers: dict[tuple[str, Grid], list[int]] = {}
    items = []
    for unit in units:
        for part in unit.parts:
            grid = allocation[unit.name].grid_of(part.role)
            if unit.layer is None:
                items = [f"{TABLE}={_text(grid)}"]
            elif grid != usual:
                layers.setdefault((part.role.split(".", 2)[2], grid), []).append(unit.layer)
    items += [
        f"layers.{_spans(found)}.{name}={_text(grid)}"
        for (name, grid), found in sorted(layers.items(), key=str)
    ]
    return ",".join(items)


def _spans(layers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2+5``."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _option(text: str) -> Option:
    grid, *own = text.split("+")
    pairs = [item.partition("=") for item in own]
    if not all(name and equals for name, equals, _ in pairs):
        raise _no_option(text)
    return Option(_grid(grid, text), tuple((name, _grid(value, text)) for name, _, value in pairs))


def _grid(text: str, whole: str) -> Grid:
    numbers = text.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise _no_option(whole)
    return Grid(int(numbers[0]), int(numbers[1]))


def _text(grid: Grid) -> str:
    return f"{grid.bits}/{grid.block_size}"


def _no_option(text: str) -> OnnxGptError:
    return OnnxGptError(
        "scheme-invalid",
        f"{text!r} is no format",
        "write BITS/BLOCK, or BITS/BLOCK+PART=BITS/BLOCK: 4/64, 4/64+v=8/64",
        exit=Exit.USAGE,
    )


def _layer(name: str) -> int | None:
    found = LAYER.match(name)
    return int(found[1]) if found else None


def _nbytes(rows: int, columns: int, grid: Grid) -> int:
    blocks = rows * -(-columns // grid.block_size)
    return _aligned(blocks * grid.block_size * grid.bits // 8) + _aligned(2 * blocks)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
