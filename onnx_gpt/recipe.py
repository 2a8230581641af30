"""The settings of one job, as they are echoed, reported and reproduced."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from calibration.scheme import (
    HALF,
    METHODS,
    NAMES,
    Awq,
    BiasCorrected,
    Dynamic,
    Floats,
    Gptq,
    Scheme,
    WeightOnly,
    scheme_of,
)
from exporter.errors import Exit, OnnxGptError
from graph_passes import parse
from onnx_gpt.bundle.targets import ModelFile, chosen
from onnx_gpt.parity.limits import gate_of
from onnx_gpt.parity.text import require_some
from onnx_gpt.report import Limits
from onnx_gpt.unread import Read, require_read

OWN_TEXT = "Python's own documentation: better give text of your own"
HELD_OUT_TEXT = "held-out part of Python's own documentation"
"""What is read where no text is given: to calibrate, prune or train on, and to evaluate on."""
KV_CACHES = ("float", "int8")
TOKENS = 2048
"""Tokens that a bundle is evaluated on where the user names no number."""
GPTQ_WINDOWS = 48
"""Windows of 512 tokens that codes are chosen on: several times as many tokens as a layer has inputs. More cost time
and gain little (docs/experiments.md)."""
CODED = ("int4", "int8", "q4f16")
"""Schemes whose codes a method chooses."""
STATIC = ("w8a8",)
"""Schemes that always read calibration text."""


def _choice(default: Any, *others: Any) -> Any:
    """A setting that takes one of some values; None is no value, but that none is given."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One job's settings, declared once: Python, the command line and recipe files take it from here.

    Attributes:
        quantize: none: float32. int8, int4: weights only, symmetric. keep: a GGUF's own codes, as they are.
            w8a8: weights and activations, by scales from calibration text: the fastest for long prompts.
            dynamic8: the same by scales of each token, and no text: what browsers run fastest without a GPU.
            fp16: floats of half the size, but where text shows that they overflow; q4f16: the same with int4. For GPUs.
        block_size: Columns that share a scale: 16, 32, 64, 128 or 256. Smaller is more accurate, larger is smaller and
            faster. The scheme's measured one by default. 512 and w8a8: down projections token by token, faster still.
        table_bits: Width of the embedding and head, 4 or 8, that of the layers by default. 8 with int4 loses a quarter
            less.
        targets: Runtimes, separated by commas: ort, genai, web, mobile, model-package, openvino, optimum; several are
            written to one folder each. web:q8+q4 names some of a target's models.
        context_length: Largest number of tokens the bundle can hold; the model's own by default.
        parity: Compare with the reference on text, or leave the report saying "not run".
        limits: The gate's thresholds; those of the scheme by default.
        text: UTF-8 file to evaluate on; held-out English of Python's own documentation by default.
        tokens: Tokens to evaluate on, at least; 2048 by default.
        kv_cache: int8: keys and values take a quarter of the memory, scaled by channel from calibration text.
        verify: Run what every pass takes away and what it puts there on the same data, and compare.
        calibration: Text that gptq chooses codes on and scales of activations are taken from: .txt, .jsonl, .parquet,
            .npy, a folder. Python's documentation by default.
        calibration_windows: Windows of 512 tokens that are drawn from it: 48 for gptq, 16 for scales, 4 for float16.
        passes: Pipeline to run instead of the target's own: names and options, "fold, attention, opset{version=21}".
        method: How int4 and int8 choose their codes. rtn: round to nearest. gptq: for the least error of each product
            on calibration text; the default where calibration text is given.
        mixed: Other widths for some roles, ROLE=BITS, ROLE=BITS/BLOCK or ROLE=float, the first that fits:
            "attention.v=8,ffn.down=8/128,layers.0-3.ffn.gate=8".
    """

    quantize: str = _choice("none", *NAMES)
    block_size: int | None = None
    table_bits: int | None = _choice(None, 4, 8)
    targets: tuple[str, ...] = ("ort",)
    context_length: int | None = None
    parity: bool = True
    limits: Limits | None = None
    text: Path | None = None
    tokens: int | None = None
    kv_cache: str = _choice(*KV_CACHES)
    verify: bool = True
    calibration: Path | None = None
    calibration_windows: int | None = None
    passes: str | None = None
    method: str | None = _choice(None, *METHODS)
    mixed: str = ""

    def __post_init__(self) -> None:
        if self.quantize != "none":
            self.scheme()
        require_read(self, READS)
        if self.kv_cache not in KV_CACHES:
            raise OnnxGptError(
                "scheme-invalid",
                f"there is no key/value cache of type {self.kv_cache!r}",
                f"use one of {', '.join(KV_CACHES)}",
                exit=Exit.USAGE,
            )
        if self.calibration_windows is not None and self.calibration_windows < 1:
            raise OnnxGptError(
                "scheme-invalid",
                f"{self.calibration_windows} windows of calibration text are no text",
                "give a number above 0",
                exit=Exit.USAGE,
            )
        if self.tokens is not None:
            require_some(self.tokens)
        if self.passes is not None:
            parse(self.passes)  # raises where it is none

    def models(self) -> tuple[ModelFile, ...]:
        """Every model of the targets."""
        return tuple(model for name in self.targets for model in chosen(name).models)

    def of(self, model: ModelFile) -> Recipe:
        """The settings of one model: the job's own weights, or those that the target wants, and no target."""
        wanted = model.weights
        if wanted is None:
            return dataclasses.replace(self, **self._text(self.calibrates), targets=())
        chooses = wanted.quantize in CODED and self.method != "rtn"
        reads = chooses or wanted.quantize in (*STATIC, *HALF) or self.kv_cache != "float"
        return dataclasses.replace(
            self,
            quantize=wanted.quantize,
            block_size=wanted.block_size,
            table_bits=wanted.table_bits,
            mixed="",
            method=self.method if wanted.quantize in CODED else None,
            **self._text(reads),
            targets=(),
        )

    def _text(self, reads: bool) -> dict[str, Any]:
        """Calibration text of one model, where that reads any."""
        return {
            "calibration": self.calibration if reads else None,
            "calibration_windows": self.calibration_windows if reads else None,
        }

    def resolved(self) -> Recipe:
        """The same job with the defaults of its scheme written out, so that later ones do not change it."""
        scheme = self.scheme() if self.quantize in CODED else None
        if not isinstance(scheme, WeightOnly):
            return self
        windows = self.calibration_windows or (GPTQ_WINDOWS if self.chooses_codes else None)
        return dataclasses.replace(
            self,
            block_size=scheme.layers.block_size,
            table_bits=scheme.table.bits,
            method=self.resolved_method,
            calibration_windows=windows,
        )

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
        """``gptq`` where it is asked for, or where there is text for it and it can use that; w8a8 always has text."""
        reads = self.quantize in STATIC or (self.calibration is not None and self.quantize in CODED)
        usual = "gptq" if reads else "rtn"
        return self.method or usual

    @property
    def chooses_codes(self) -> bool:
        """Whether codes are chosen on calibration text."""
        return self.quantize != "none" and isinstance(self.scheme(), Gptq)

    @property
    def scales_channels(self) -> bool:
        """Whether the checkpoint's channels are turned or scaled, by what text says, before its graph is built."""
        return self.is_static or (self.quantize != "none" and isinstance(self.scheme(), Awq | BiasCorrected))

    @property
    def is_static(self) -> bool:
        """Whether activations have scales that are fixed beforehand."""
        return self.quantize in STATIC

    @property
    def is_dynamic(self) -> bool:
        """Whether activations are rounded by scales that the graph finds as it runs."""
        return self.quantize == "dynamic8"

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in float16."""
        return self.quantize in HALF

    @property
    def calibrates(self) -> bool:
        """Whether calibration text is read."""
        return self.kv_cache != "float" or self.chooses_codes or self.scales_channels or self.is_half

    @property
    def gate(self) -> str:
        """The key of `onnx_gpt.parity.limits.BUDGETS` that this job is judged by."""
        return gate_of(self.quantize, self.kv_cache, self.resolved_method)

    @property
    def takes_weights(self) -> bool:
        """Whether any model has its weights as the job says, and not as its target does."""
        models = self.models()
        return not models or any(model.weights is None for model in models)

    @property
    def has_codes(self) -> bool:
        """Whether a method chooses codes for any model."""
        if self.takes_weights:
            return self.quantize in (*CODED, *STATIC)
        return any(self.of(model).quantize in CODED for model in self.models())

    @property
    def reads_text(self) -> bool:
        """Whether calibration text is read for any model."""
        models = self.models()
        return any(self.of(model).calibrates for model in models) if models else self.calibrates

    def echo(self) -> dict[str, Any]:
        """Plain values, for people and for the report."""
        return {
            **self._weights(),
            "kv_cache": self.kv_cache,
            **self._calibration(),
            **({"target": ",".join(self.targets)} if self.targets else {}),
            "context_length": self.context_length or "the model's own",
            "verify": self.verify,
            **({"passes": self.passes} if self.passes is not None else {}),
            **self._gate(),
        }

    def _calibration(self) -> dict[str, Any]:
        if not self.calibrates:
            return {}
        return {"calibration": str(self.calibration or OWN_TEXT)}

    def _weights(self) -> dict[str, Any]:
        """How weights are kept: of the models that take the job's own settings, and of those that do not."""
        models = self.models()
        own = [f"{model.path}={model.weights.quantize}" for model in models if model.weights is not None]
        common = {"quantize": self.quantize, **self._grids()} if len(own) < len(models) or not models else {}
        return common | ({"models": ", ".join(own)} if own else {})

    def _gate(self) -> dict[str, Any]:
        if not self.parity:
            return {"parity": "not run"}
        given = self.limits.model_dump(exclude_none=True) if self.limits is not None else {}
        return {
            "parity": given or "the limits of the scheme and the model's size",
            "text": str(self.text or HELD_OUT_TEXT),
            "tokens": self.tokens or TOKENS,
        }

    def _grids(self) -> dict[str, Any]:
        if self.quantize not in NAMES:
            return {}
        scheme = self.scheme()
        if isinstance(scheme, Floats | Dynamic):
            return {}
        if not isinstance(scheme, WeightOnly):
            return {"block_size": "the source's own"}
        return {
            "method": self.resolved_method,
            "block_size": self.block_size or scheme.layers.block_size,
            "table_bits": scheme.table.bits,
            **({"mixed": self.mixed} if self.mixed else {}),
        }


READS = (
    Read(("limits", "text", "tokens"), lambda recipe: recipe.parity, "parity is not run", "let it run"),
    Read(
        ("quantize", "block_size", "table_bits", "mixed"),
        lambda recipe: recipe.takes_weights,
        "every model of these targets has weights of its own",
        "name the models that you want, --target web:q8 say",
    ),
    Read(
        ("block_size", "table_bits", "mixed"),
        lambda recipe: recipe.quantize != "none",
        "nothing is quantized",
        "name a scheme, --quantize int8 say",
    ),
    Read(
        ("method",),
        lambda recipe: recipe.has_codes,
        "no codes are chosen",
        "use --quantize int4, int8, q4f16 or w8a8",
    ),
    Read(
        ("calibration", "calibration_windows"),
        lambda recipe: recipe.reads_text,
        "nothing in this job reads calibration text",
        "use --quantize int4 or int8 with --method gptq",
    ),
)
"""What reads those settings of a job that not every job reads."""
