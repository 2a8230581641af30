"""Codes of single linear maps on several grids, chosen on the float model's own inputs and kept in files.

In a quantized model codes answer for the layers before them (`calibration.quantization.calibrated`); these cannot,
since what is before them is still open. They are what formats are compared by.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration import collecting
from calibration.collecting import Stream
from calibration.progress import Advance
from calibration.quantization import gptq
from calibration.quantization.calibrated import fill_file
from calibration.quantization.sites import Site
from calibration.quantization.tensors import Coder, Filed
from calibration.scheme import Grid, RoundToNearest
from calibration.segments import Segment, cut
from calibration.statistics.hessian import Hessian
from calibration.threads import single_threaded_blas
from exporter.block_codes import BlockFormat, Coded
from exporter.weights import Weight

Wanted = Iterable[tuple[str, Grid]]
"""Roles of linear maps inside layers, with a grid."""


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """Rows of several coders of one format, one after the other."""

    parts: Sequence[Filed]

    @property
    def format(self) -> BlockFormat:
        return self.parts[0].format

    def coded(self, start: int, stop: int, scale: np.ndarray | None) -> Coded:
        found = []
        first = 0
        for part in self.parts:
            rows = part.shape[0]
            a, b = max(start - first, 0), min(stop - first, rows)
            if a < b:
                found.append(part.coded(a, b, None))
            first += rows
        codes = np.concatenate([coded.codes for coded in found])
        return Coded(codes, np.concatenate([coded.scale for coded in found]), None)


class CodeBook:
    """Codes in a folder; those of an earlier run are used again.

    Args:
        folder: of these weights on this text; the files stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shapes: dict[str, tuple[int, int]] = {}

    def choose(
        self, model: ir.Model, wanted: Wanted, tokens: np.ndarray, scratch: Path, advance: Advance
    ) -> None:
        """Choose the codes that are not there yet.

        Args:
            model: a float decoder as passes leave it.
            tokens: int64 ``[N, S]``.
            scratch: a folder for what goes from layer to layer.
        """
        segments = cut(model)
        for segment in segments:
            self._shapes |= {
                role: _shape(weight) for site in segment.sites() for role, weight in site.parts()
            }
        missing = [(role, grid) for role, grid in dict.fromkeys(wanted) if not self._is_there(role, grid)]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stream = Stream(tokens, scratch)
        with single_threaded_blas():
            for i, segment in enumerate(segments[:-1]):
                advance(i, len(segments) - 1, f"{segment.name}, codes")
                roles = {role for site in segment.sites() for role, _ in site.parts()}
                self._segment(segment, [entry for entry in missing if entry[0] in roles], stream, scratch)

    def coders(self, segment: Segment, scheme: RoundToNearest) -> dict[str, list[Coder | None]]:
        """Coders for `quantize_weights`, for the products inside layers that a scheme quantizes."""
        return {
            str(site.table.name): self._coders(site, scheme)
            for site in segment.sites()
            if site.kind == "multiply" and all(role.startswith("layers.") for role, _ in site.parts())
        }

    def _coders(self, site: Site, scheme: RoundToNearest) -> list[Coder | None]:
        found: list[Coder | None] = []
        for grid, parts in itertools.groupby(site.parts(), lambda part: scheme.grid_of(part[0])):
            found.append(None if grid is None else Joined([self._filed(role, grid) for role, _ in parts]))
        return found

    def _segment(
        self, segment: Segment, missing: list[tuple[str, Grid]], stream: Stream, scratch: Path
    ) -> None:
        sites = [site for site in segment.sites() if site.kind == "multiply"]
        inputs = dict.fromkeys(str(site.input.name) for site in sites) if missing else {}
        asked = dict.fromkeys([*segment.outgoing, *(name for name in inputs if name not in segment.incoming)])
        piece = collecting.load(segment, list(asked), scratch / "piece")
        moments: dict[str, Hessian] = {}
        for batch, values in collecting.run(piece, segment, stream):
            for name in inputs:
                moments[name] = moments.get(name, Hessian.empty(values[name].shape[-1])).add(values[name])
            stream.put(batch, {name: values[name] for name in segment.outgoing})
        stream.advance(segment.passing)
        for name in inputs:
            objective = gptq.objective(moments[name].finish(), name=name)
            weights = {
                role: weight for site in sites if site.input.name == name for role, weight in site.parts()
            }
            for role, grid in missing:
                if role in weights:
                    self._choose(role, weights[role], grid, objective)

    def _choose(self, role: str, weight: Weight, grid: Grid, objective: gptq.Objective) -> None:
        filed = self._filed(role, grid)
        # Of this process alone: another run may be filling the same folder.
        with tempfile.TemporaryDirectory(prefix="partial-", dir=self.folder) as mine:
            partial = dataclasses.replace(filed, stem=Path(mine) / filed.stem.name)
            fill_file(partial, weight, grid, objective, role)
            for suffix in (".codes", ".scale"):  # the scales come last: where they are, all is there
                name = filed.stem.name + suffix
                (Path(mine) / name).replace(self.folder / name)

    def _is_there(self, role: str, grid: Grid) -> bool:
        stem = self._filed(role, grid).stem
        return stem.with_name(stem.name + ".scale").exists()

    def _filed(self, role: str, grid: Grid) -> Filed:
        stem = self.folder / f"{role}.{grid.bits}.{grid.block_size}"
        return Filed(grid.format, self._shapes[role], stem)


def _shape(weight: Weight) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]
