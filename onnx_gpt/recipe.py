"""The settings of one job, as they are echoed, reported and reproduced."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from calibration.scheme import NAMES, Gptq, Scheme, WeightOnly, scheme_of
from exporter.errors import Exit, OnnxGptError
from graph_passes import parse
from onnx_gpt.bundle import targets as bundle_targets
from onnx_gpt.parity.gate import DEFAULT_LIMITS, gate_of
from onnx_gpt.report import Limits

KV_CACHES = ("float", "int8")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One job's settings.

    Attributes:
        quantize: ``none``, ``int8``, ``int4``, ``w8a8``, or ``keep`` (a GGUF's own codes).
        block_size: columns that share a scale; the scheme's measured default where None.
        table_bits: width of the embedding and head, 4 or 8; that of the layers where None.
        targets: runtimes to write for; several go into one folder each.
        context_length: rows of the rotary tables; the model's own where None.
        parity: compare with the reference and gate on it.
        limits: the gate's thresholds; the scheme's defaults where None.
        text: UTF-8 file to evaluate on; Python's own documentation where None.
        tokens: predicted tokens to evaluate on, at least.
        kv_cache: ``float``, or ``int8`` with scales from calibration text.
        verify: run both sides of every rewrite on the same data.
        calibration: file or folder of text that activations are measured on; Python's own documentation where None.
        method: ``rtn`` rounds to nearest, ``gptq`` chooses codes on calibration text; where None, gptq if
            ``calibration`` is given.
        mixed: other widths for some roles, ``attention.v=8,ffn.down=8/128``.
        passes: a pipeline as text; the target's own, after what makes a foreign graph canonical, where None.
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
    kv_cache: str = "float"
    verify: bool = True
    calibration: Path | None = None
    passes: str | None = None
    method: str | None = None
    mixed: str = ""

    def __post_init__(self) -> None:
        options = (self.block_size, self.table_bits, self.method, self.mixed or None)
        if self.quantize != "none" or any(option is not None for option in options):
            self.scheme()  # raises where they do not fit
        if self.calibration is not None and not self.calibrates:
            raise OnnxGptError(
                "scheme-invalid",
                "calibration text is given, and nothing in this job reads it",
                "use --quantize int4 or int8 with --method gptq, or drop --calibration",
                exit=Exit.USAGE,
            )
        if self.kv_cache not in KV_CACHES:
            raise OnnxGptError(
                "scheme-invalid",
                f"there is no key/value cache of type {self.kv_cache!r}",
                f"use one of {', '.join(KV_CACHES)}",
                exit=Exit.USAGE,
            )
        if self.passes is not None:
            parse(self.passes)  # raises where it is none
        if not self.targets:
            raise OnnxGptError("target-unknown", "no target is named", "use --target ort", exit=Exit.USAGE)
        for name in self.targets:
            bundle_targets.target(name)

    def scheme(self) -> Scheme:
        """The scheme that the settings ask for; there is one unless ``quantize`` is ``none``."""
        return scheme_of(
            self.quantize,
            block_size=self.block_size,
            table_bits=self.table_bits,
            method=self.resolved_method,
            mixed=self.mixed,
        )

    @property
    def resolved_method(self) -> str:
        """``gptq`` where it is asked for, or where there is text for it and it can use that."""
        usual = "gptq" if self.calibration is not None and self.quantize in ("int4", "int8") else "rtn"
        return self.method or usual

    @property
    def chooses_codes(self) -> bool:
        """Whether codes are chosen on calibration text."""
        return self.quantize != "none" and isinstance(self.scheme(), Gptq)

    @property
    def is_static(self) -> bool:
        """Whether activations have scales that are fixed beforehand."""
        return self.quantize == "w8a8"

    @property
    def calibrates(self) -> bool:
        """Whether calibration text is read."""
        return self.kv_cache != "float" or self.chooses_codes or self.is_static

    @property
    def gate(self) -> str:
        """The key of `DEFAULT_LIMITS` that this job is judged by."""
        return gate_of(self.quantize, self.kv_cache)

    def echo(self) -> dict[str, Any]:
        """Plain values, for people and for the report."""
        return {
            "quantize": self.quantize,
            **self._grids(),
            "kv_cache": self.kv_cache,
            **self._calibration(),
            "target": ",".join(self.targets),
            "context_length": self.context_length or "the model's own",
            "verify": self.verify,
            **({"passes": self.passes} if self.passes is not None else {}),
            **self._gate(),
        }

    def _calibration(self) -> dict[str, Any]:
        if not self.calibrates:
            return {}
        return {
            "calibration": str(self.calibration or "Python's own documentation: better give text of your own")
        }

    def _gate(self) -> dict[str, Any]:
        if not self.parity:
            return {"parity": "not run"}
        return {
            "parity": (self.limits or DEFAULT_LIMITS[self.gate]).model_dump(),
            "text": str(self.text) if self.text else "held-out part of Python's own documentation",
            "tokens": self.tokens,
        }

    def _grids(self) -> dict[str, Any]:
        if self.quantize not in NAMES:
            return {}
        scheme = self.scheme()
        if not isinstance(scheme, WeightOnly):
            return {"block_size": "the source's own"}
        return {
            "method": self.resolved_method,
            "block_size": scheme.layers.block_size,
            "table_bits": scheme.table.bits,
            **({"mixed": self.mixed} if self.mixed else {}),
        }
