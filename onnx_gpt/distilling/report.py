"""What distillation says of itself. Schema `onnx-gpt/distill/1`."""

from __future__ import annotations

from typing import Any

import pydantic

from onnx_gpt.pruning.report import Side
from onnx_gpt.report import Frozen, Stage

SCHEMA = "onnx-gpt/distill/1"


class Teacher(Frozen):
    """Who taught.

    Attributes:
        parameters: of its decoder.
        perplexity: on the text that the student is measured on.
        kept: most likely tokens whose probabilities are kept for each position; the others are one bucket.
        tail: mean probability of that bucket.
        cache_bytes: of what it said, on disk.
    """

    source: str
    parameters: int
    perplexity: float
    kept: int
    tail: float
    cache_bytes: int


class Point(Frozen):
    """The student on training text that is held out, after so many steps: the loss that it trains on, in nats a
    token."""

    step: int
    loss: float


class Training(Frozen):
    """What was done.

    Attributes:
        steps: that were planned.
        done: that were made, fewer where the held-out loss kept rising.
        best: after which of them the student is the one that was written; 0 where training did not help.
        tokens: that were trained on, repeats counted.
        unique_tokens: of the training text.
        trained: elements that changed, of ``elements``.
        curve: of the held-out loss; the first is before training.
        resumed: steps at which an interrupted run went on.
        processor_seconds: of this process, teacher's cache included, since the last resume.
    """

    steps: int
    done: int
    best: int
    tokens: int
    unique_tokens: int
    trained: int
    elements: int
    curve: tuple[Point, ...]
    resumed: tuple[int, ...] = ()
    processor_seconds: float


class DistillReport(Frozen):
    """What `distill` returns, and writes to ``report.json``.

    Attributes:
        before, after: the student; before is None where it began at random.
        perplexity_ratio: after over before; None likewise.
        recovered: share of the log perplexity that the student had lost against its teacher and has got back,
            ``(ln before − ln after) / (ln before − ln teacher)``; None where it had lost none.
        quantized: ``int4`` and the like where scales of fixed codes were trained, else None.
        variant: whether only onnx-gpt reads the result.
    """

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    version: str
    source: str
    family: str
    recipe: dict[str, Any]
    stages: tuple[Stage, ...]
    teacher: Teacher
    calibration: dict[str, Any]
    text: str
    training: Training
    before: Side | None = None
    after: Side
    perplexity_ratio: float | None = None
    recovered: float | None = None
    quantized: str | None = None
    variant: bool = False

    def json_text(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"
