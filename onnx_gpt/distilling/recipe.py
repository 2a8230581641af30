"""The settings of one distillation, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

from calibration.scheme import WeightOnly, scheme_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.recipe import HELD_OUT_TEXT, OWN_TEXT
from onnx_gpt.unread import Read, require_read

MOST_BATCH = 1024
"""Windows of 512 tokens that a step reads, and what they become on the way."""
RATES = {"trained": 5e-5, "untrained": 1e-3, "scales": 1e-3}
"""Learning rates where none is asked for; measured in docs/experiments.md."""
Quantized = Literal["int4", "int8"]
"""Schemes whose scales can be trained."""


@dataclasses.dataclass(frozen=True)
class DistillRecipe:
    """What `onnx_gpt.distill` is to do, declared once: Python and the command line take it from here.

    Attributes:
        data: Text to train on: .txt, .jsonl, .parquet, .npy, a folder. Python's documentation by default.
        steps: Steps at most; training ends when the loss on held-out windows keeps rising.
        batch: Windows of text in a step, 512 tokens each where the context holds as many.
        rate: Largest learning rate. A measured one by default.
        mix: Share of the cross-entropy with the text itself, 0 to 1; 1 is training without a teacher.
        temperature: That both distributions are taken at.
        hidden: Weight of the distance between the hidden states behind the last layers; 0 for none.
        quantize: int4 or int8: keep the codes that rounding gives the student, and train scales of blocks, norms and
            biases. The result's weights lie on that grid: optimize it with the same --quantize.
        seed: Of an untrained student's weights and of the order of the text.
        text: UTF-8 file to measure perplexity on; held-out English of Python's own documentation by default.
        tokens: Tokens to measure it on, at least.
    """

    data: Path | None = None
    steps: int = 200
    batch: int = 4
    rate: float | None = None
    mix: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0
    quantize: Quantized | None = None
    seed: int = 0
    text: Path | None = None
    tokens: int = 2048

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.tokens < 1 or self.seed < 0:
            raise invalid("steps, batch and tokens are 1 at least, the seed 0", "give larger numbers")
        if self.batch > MOST_BATCH:
            raise invalid(
                f"a batch of {self.batch} windows is more than {MOST_BATCH}", "give a smaller --batch"
            )
        rate = 1.0 if self.rate is None else self.rate
        if not (0 < rate <= 1 and 0 < self.temperature <= 100):
            raise invalid("a learning rate is above 0 and at most 1, a temperature at most 100", "change it")
        if not (0 <= self.mix <= 1 and 0 <= self.hidden < math.inf):
            raise invalid("mix is a share, 0 to 1, and hidden a weight, 0 or more", "change it")
        if self.quantize not in (None, *get_args(Quantized)):
            known = " or ".join(get_args(Quantized))
            raise invalid(f"scales of {self.quantize!r} cannot be trained", f"use {known}")
        require_read(self, READS)

    @property
    def scheme(self) -> WeightOnly | None:
        """Whose grids the student's codes lie on; None where weights themselves are trained."""
        if self.quantize is None:
            return None
        scheme = scheme_of(self.quantize)
        assert isinstance(scheme, WeightOnly)
        return scheme

    def echo(self, rate: float | None = None) -> dict[str, Any]:
        """Plain values, for people and for the report.

        Args:
            rate: the one that is taken where none was asked for.
        """
        return {
            "data": str(self.data or OWN_TEXT),
            "steps": self.steps,
            "batch": self.batch,
            "rate": self.rate or rate or "measured",
            "mix": self.mix,
            "temperature": self.temperature,
            "hidden": self.hidden,
            **({"quantize": self.quantize} if self.quantize else {}),
            "seed": self.seed,
            "text": str(self.text or HELD_OUT_TEXT),
            "tokens": self.tokens,
        }


READS = (
    Read(
        ("temperature",),
        lambda recipe: recipe.mix < 1,
        "with a mix of 1 the teacher's distributions are not trained on",
        "use a smaller --mix",
    ),
)
"""What reads those settings of a distillation that not every one reads."""


def invalid(cause: str, remedy: str) -> OnnxGptError:
    """The error for settings that mean nothing."""
    return OnnxGptError("distill-invalid", cause, remedy, exit=Exit.USAGE)
