"""Opens a model for a search of formats: its units, a text to measure on, and what earlier runs have measured already.

`onnx_gpt.searching.sensitivities` measures, `onnx_gpt.searching.allocating` chooses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.data.windows import require_apart
from calibration.quantization.weight_only import Coders
from calibration.scheme import RoundToNearest
from calibration.search.code_book import CodeBook
from calibration.search.ledger import Ledger
from calibration.search.measuring import Measurer
from calibration.search.units import Allocation, Option, Unit, units_of
from calibration.segments import Segment
from exporter import sources
from exporter.errors import rejected
from exporter.sources.sample import cache_folder
from graph_passes import run_pipeline
from onnx_gpt.bundle.staging import kept_folder
from onnx_gpt.bundle.targets import chosen
from onnx_gpt.exporting import Exported, export, pipeline_of, require_contract
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.parity.prove import evaluation_text
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe

CODED, MEASURED, LENGTH = 16, 4, 128
"""Windows of calibration text that codes are chosen on, others that are measured on, and how many tokens of those."""

Losses = Mapping[str, Mapping[Option, float]]
"""KL by the name of the unit and its option."""


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A model that formats are compared on.

    Attributes:
        exported: as the passes of the target leave it.
        units: of its graph.
        measurer: of KLs.
        ledger: what has been measured of this model on this text.
        coding: tokens that codes are chosen on ``[N, S]``; None where they are rounded.
        book: of codes.
        scratch: a folder that goes with the study.
        progress: told what happens.
    """

    exported: Exported
    units: Sequence[Unit]
    measurer: Measurer
    ledger: Ledger
    coding: np.ndarray | None
    book: CodeBook
    scratch: Path
    work: Path
    progress: Progress

    @property
    def model(self) -> ir.Model:
        return self.exported.model

    @property
    def method(self) -> str:
        return "rtn" if self.coding is None else "gptq"

    def losses(self, wanted: Mapping[str, Sequence[Option]], base: Allocation | None = None) -> Losses:
        """The KL of the model with one unit at a time in another format, as measured now or before.

        Args:
            base: formats of the other units; float where None.
        """
        keys = {
            (unit, option): self._key(unit, option, base or {}) for unit in wanted for option in wanted[unit]
        }
        missing = {
            unit: [option for option in options if self.ledger.get(keys[unit, option]) is None]
            for unit, options in wanted.items()
        }
        self._choose_codes(missing, base or {})
        for delta in self.measurer.deltas(base or {}, missing, self.progress.advance):
            self.ledger.put(keys[delta.unit, delta.option], delta.kl)
        return {
            unit: {option: self._known(keys[unit, option]) for option in options}
            for unit, options in wanted.items()
        }

    def whole(self, allocation: Allocation) -> float:
        """The KL of a whole allocation, as measured now or before."""
        key = json.dumps([self.method, "whole", _digest(allocation)])
        known = self.ledger.get(key)
        if known is not None:
            return known
        self._choose_codes({}, allocation)
        return self.ledger.put(key, self.measurer.whole(allocation))

    def _key(self, unit: str, option: Option, base: Allocation) -> str:
        return json.dumps([self.method, _digest(base), unit, str(option)])

    def _known(self, key: str) -> float:
        value = self.ledger.get(key)
        assert value is not None
        return value

    def _choose_codes(self, wanted: Mapping[str, Sequence[Option]], base: Allocation) -> None:
        if self.coding is None:
            return
        pairs = [
            (part.role, option.grid_of(part.role))
            for unit in self.units
            if unit.layer is not None
            for option in [*wanted.get(unit.name, ()), *([base[unit.name]] if unit.name in base else [])]
            for part in unit.parts
        ]
        self.book.choose(self.model, pairs, self.coding, self.scratch, self.progress.advance)


@contextmanager
def study(source: str, recipe: Recipe, method: str, work: Path | None, progress: Progress) -> Iterator[Study]:
    """Open a model.

    Args:
        recipe: whose calibration text, context and passes are used; where it has parity, text of that is kept out.
        method: ``rtn`` or ``gptq``.
        work: folder that measurements are kept in, by model and text; one in the user's cache by default.

    Raises:
        OnnxGptError: what loading, exporting and reading text raise.
    """
    progress.stage("load")
    opened = sources.load(source)
    exported = export(opened, recipe.context_length)
    pipeline = pipeline_of(exported, recipe.passes, chosen(recipe.targets[0]).models[0].pipeline)
    passes = run_pipeline(exported.model, pipeline, verify=False)  # the job itself proves them
    require_contract(exported.model, passes)
    windows = calibration_windows(opened, exported, recipe.calibration, CODED + MEASURED).tokens
    if recipe.parity:
        require_apart(windows, evaluation_text(opened, exported, recipe).windows)
    if len(windows) < 2 * MEASURED:
        raise rejected(
            "calibration-too-short",
            f"the calibration data holds {len(windows)} windows, {2 * MEASURED} are needed at least",
            "give more text",
        )
    measured, coding = windows[:MEASURED, :LENGTH], windows[MEASURED:]
    where = kept_folder(work or cache_folder() / "search")
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-search-") as folder:
        progress.stage("measure")
        books: list[CodeBook] = []

        def coders(segment: Segment, scheme: RoundToNearest) -> Coders:
            return {} if method == "rtn" else books[0].coders(segment, scheme)

        measurer = Measurer(
            exported.model, units_of(exported.model), measured, Path(folder), coders_of=coders
        )
        text = hashlib.sha256(np.ascontiguousarray(windows, "<i8").tobytes()).hexdigest()[:16]
        here = where / f"{measurer.digest}-{text}"
        books.append(CodeBook(here / "codes"))
        yield Study(
            exported,
            measurer.units,
            measurer,
            Ledger(here / "measured.jsonl"),
            coding if method == "gptq" else None,
            books[0],
            Path(folder),
            where,
            progress,
        )


def _digest(allocation: Allocation) -> str:
    """Of the formats of some units; empty for float."""
    text = json.dumps(sorted((unit, str(option)) for unit, option in allocation.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if allocation else ""
