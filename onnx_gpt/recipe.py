"""The settings of one job, as they are echoed, reported and reproduced."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from calibration.scheme import NAMES, RoundToNearest, Scheme, scheme_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle import targets as bundle_targets
from onnx_gpt.parity.gate import DEFAULT_LIMITS
from onnx_gpt.report import Limits


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One job's settings.

    Attributes:
        quantize: ``none``, ``int8``, ``int4``, or ``keep`` (a GGUF's own codes).
        block_size: columns that share a scale; the scheme's measured default where None.
        table_bits: width of the embedding and head, 4 or 8; that of the layers where None.
        targets: runtimes to write for; several go into one folder each.
        context_length: rows of the rotary tables; the model's own where None.
        parity: compare with the reference and gate on it.
        limits: the gate's thresholds; the scheme's defaults where None.
        text: UTF-8 file to evaluate on; Python's own documentation where None.
        tokens: predicted tokens to evaluate on, at least.
    """

    quantize: str = "none"
    block_size: int | None = None
    table_bits: int | None = None
    targets: tuple[str, ...] = ("ort",)
    context_length: int | None = None
    parity: bool = True
    limits: Limits | None = None
    text: Path | None = None
    tokens: int = 2048

    def __post_init__(self) -> None:
        if self.quantize != "none" or self.block_size is not None or self.table_bits is not None:
            self.scheme()  # raises where they do not fit
        if not self.targets:
            raise OnnxGptError("target-unknown", "no target is named", "use --target ort", exit=Exit.USAGE)
        for name in self.targets:
            bundle_targets.target(name)

    def scheme(self) -> Scheme:
        """The scheme that the settings ask for; there is one unless ``quantize`` is ``none``."""
        return scheme_of(self.quantize, block_size=self.block_size, table_bits=self.table_bits)

    def echo(self) -> dict[str, Any]:
        """Plain values, for people and for the report."""
        return {
            "quantize": self.quantize,
            **self._grids(),
            "target": ",".join(self.targets),
            "context_length": self.context_length or "the model's own",
            **self._gate(),
        }

    def _gate(self) -> dict[str, Any]:
        if not self.parity:
            return {"parity": "not run"}
        return {
            "parity": (self.limits or DEFAULT_LIMITS[self.quantize]).model_dump(),
            "text": str(self.text) if self.text else "held-out part of Python's own documentation",
            "tokens": self.tokens,
        }

    def _grids(self) -> dict[str, Any]:
        if self.quantize not in NAMES:
            return {}
        scheme = self.scheme()
        if not isinstance(scheme, RoundToNearest):
            return {"block_size": "the source's own"}
        return {"block_size": scheme.layers.block_size, "table_bits": scheme.table.bits}
