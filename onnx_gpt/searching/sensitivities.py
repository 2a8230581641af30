"""How much of the model each unit of weights costs in each format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from calibration.search.units import Option, Unit, options_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.searching.search import Losses, study

SCHEMA = "onnx-gpt/sensitivity/1"
Method = Literal["rtn", "gptq"]
OPTIONS = "4/128,4/64,4/32,4/64+v=8/64,8/64"
"""Formats that are compared where the user names none."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        source, method: as asked for.
        tokens: whose logits were compared.
        units: in the order of the graph; the table is the last.
        losses: mean KL in nats a token with that unit alone in that format, all else float.
    """

    source: str
    method: str
    tokens: int
    units: tuple[Unit, ...]
    losses: Losses

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "method": self.method,
            "tokens": self.tokens,
            "units": [
                {
                    "unit": unit.name,
                    "weights": sum(rows * columns for rows, columns in (part.shape for part in unit.parts)),
                    "formats": {
                        str(option): {"kl": kl, "bytes": unit.nbytes(option)}
                        for option, kl in self.losses[unit.name].items()
                    },
                }
                for unit in self.units
            ],
        }


def sensitivity(
    source: str,
    *,
    options: str = OPTIONS,
    method: Method = "rtn",
    calibration: Path | None = None,
    target: str = "ort",
    work: Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure the KL of a model's logits with one unit of weights at a time in another format.

    Units are query, key and value of a layer together, gate and up together, every other linear map, and the table.
    Every measurement is kept in ``work`` as soon as it is made, and found there by the next run.

    Args:
        source: what `exporter.sources.load` takes.
        options: formats, ``4/64,8/64,4/64+v=8/64``: bits and block, and those of some parts of a unit.
        method: ``rtn`` rounds to nearest; ``gptq`` chooses codes on calibration text.
        calibration: text that is measured, and that codes are chosen on; Python's documentation by default.
        target: whose graph is measured.
        work: folder of measurements; one in the user's cache by default.

    Raises:
        OnnxGptError: ``scheme-invalid`` (exit 2); what opening the model and the text raise.
    """
    formats = options_of(options)
    recipe = Recipe("int4", method="gptq", calibration=calibration, targets=(target,), parity=False)
    with study(source, recipe, method, work, progress or Silent()) as opened:
        if options != OPTIONS:
            _require_taken(opened.units, formats)
        losses = opened.losses(wanted(opened.units, formats))
        return Sensitivity(source, method, opened.measurer.compared, tuple(opened.units), losses)


def _require_taken(units: Sequence[Unit], formats: Sequence[Option]) -> None:
    """Raise ``scheme-invalid`` (exit 2) for a format that the user names and no unit can take."""
    for option in formats:
        if not any(unit.takes(option) for unit in units):
            parts = sorted({part.role.rpartition(".")[2] for unit in units for part in unit.parts})
            raise OnnxGptError(
                "scheme-invalid",
                f"no unit of this model has parts as {option} names them",
                f"its units are made of {', '.join(parts)}",
                exit=Exit.USAGE,
            )


def wanted(units: Sequence[Unit], formats: Sequence[Option]) -> dict[str, list[Option]]:
    """The formats that each unit can take."""
    return {unit.name: [option for option in formats if unit.takes(option)] for unit in units}
