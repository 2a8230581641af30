"""The report that every bundle carries: what was done, what it cost, what was proven. Schema `onnx-gpt/report/1`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

SCHEMA = "onnx-gpt/report/1"


class Frozen(pydantic.BaseModel):
    """Results as values, for programs as JSON."""

    model_config = pydantic.ConfigDict(frozen=True, protected_namespaces=(), populate_by_name=True)


class SourceFacts(Frozen):
    uri: str
    family: str
    parameters: int


class Stage(Frozen):
    """One step of the job. ``peak_rss_bytes`` is the process's peak up to the end of the step."""

    name: str
    seconds: float
    peak_rss_bytes: int
    nodes: int | None = None


class ProofFacts(Frozen):
    """What running both sides of a pass's rewrites said, each structure once.

    ``worst`` is the largest error against float64, as a multiple of that of the graph that was replaced; 0 where none
    was above the noise.
    """

    witnesses: int
    proven: int
    worst: float
    unproven: tuple[str, ...]


class PassFacts(Frozen):
    name: str
    kind: str
    fired: int
    refused: tuple[str, ...]
    nodes_before: int
    nodes_after: int
    seconds: float
    proof: ProofFacts | None = None


class GraphFacts(Frozen):
    """The graph as it lies in the file. ``inlined_nodes`` counts a function's nodes at each of its calls."""

    nodes: int
    inlined_nodes: int
    ops: dict[str, int]


class Check(Frozen):
    """One case: what a single forward pass would not show.

    ``value`` is the largest difference of two ways to the same logits, in ``unit``: multiples of the reference's own
    noise where the candidate is float, else the mean KL divergence in nats a token. A case without a value held, was
    broken, or was not run, and ``detail`` says why.
    """

    verdict: Literal["pass", "fail", "not run"]
    detail: str
    value: float | None = None
    limit: float | None = None
    unit: Literal["x noise", "x rounding", "nats a token", ""] = ""


Largest = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
"""A limit that is a number: what is compared with NaN is never too large."""
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class Limits(Frozen):
    """Thresholds of the gate: what is None is the default for the scheme and the size of the model (docs/parity.md).

    The 99th percentile of the KL may be 10 times its mean's limit, the largest 100 times.
    """

    max_kl: Largest | None = None
    min_top1: Share | None = None
    max_perplexity_ratio: Largest | None = None

    def or_else(self, default: Limits) -> Limits:
        """These, with another's where there are none."""
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        return default.model_copy(update=given)

    def numbers(self) -> tuple[float, float, float]:
        """All three, none of them left open."""
        if self.max_kl is None or self.min_top1 is None or self.max_perplexity_ratio is None:
            raise ValueError(f"limits are left open: {self}")
        return self.max_kl, self.min_top1, self.max_perplexity_ratio


class Deviation(Frozen):
    """Difference of two sets of logits, each row less its mean: root mean square over the vocabulary.

    ``worst`` is that of the worst position, ``rms`` the root mean square over all positions.
    """

    worst: float
    rms: float


class Noise(Frozen):
    """How far the reference is from itself, computed in other ways: the scale of what float arithmetic may do.

    ``ways`` names them with what each gave; ``worst`` and ``rms`` are the largest of each, and no less than half a
    unit in the last place of the logits.
    """

    worst: float
    rms: float
    positions: int
    ways: dict[str, Deviation]


class Parity(Frozen):
    """Agreement of a candidate with its reference. Schema `onnx-gpt/parity/2` (docs/parity.md).

    KL is KL(reference ‖ candidate) in nats for each predicted token. ``top1`` counts a position as agreeing where the
    candidate's choice is the reference's, or a tie of it within the reference's own noise. ``near_ties`` counts choices
    that differ where the reference gives both at least nine tenths of the same probability. Errors are standard errors.
    """

    schema_: str = pydantic.Field(default="onnx-gpt/parity/2", alias="schema", serialization_alias="schema")
    candidate: str = ""
    reference: str
    scheme: str = ""
    parameters: int | None = None
    text: str
    tokens: int
    max_abs: float
    mean_kl: float
    mean_kl_error: float = 0.0
    p99_kl: float
    max_kl: float
    top1: float
    near_ties: int
    perplexity: float
    reference_perplexity: float
    perplexity_ratio_error: float = 0.0
    greedy_tokens: int
    greedy_agreed: int
    greedy_divergence: Literal["none", "near tie", "different"]
    noise: Noise | None = None
    deviation: Deviation | None = None
    checks: dict[str, Check]
    limits: Limits
    verdict: Literal["pass", "fail"]
    failures: tuple[str, ...] = ()

    @property
    def not_run(self) -> dict[str, str]:
        """Cases that were not run, and why."""
        return {name: check.detail for name, check in self.checks.items() if check.verdict == "not run"}


class ModelFacts(Frozen):
    """One of several models of a bundle: its own settings, how it was made, and what was proven of it."""

    recipe: dict[str, Any]
    pipeline: str
    passes: tuple[PassFacts, ...]
    graph: GraphFacts
    quantization: dict[str, int] = pydantic.Field(default_factory=dict)
    calibration: dict[str, Any] = pydantic.Field(default_factory=dict)
    parity: Parity | Literal["not run"]


class Report(Frozen):
    """What `optimize` returns and writes to ``report.json``.

    Where a bundle holds several models, ``models`` has the facts of each by its path, and ``pipeline`` to ``parity`` up
    here are those of the first. ``certificates`` has the SHA-256 of ``certificate.json`` by target; report.json itself,
    which is certified, is without. ``search`` is what a budget came to: the formats' frontier, and the
    point of it that was chosen (`onnx_gpt.searching.allocating.Found`). ``predicted`` is what a plan expected, beside
    what came of it (`onnx_gpt.planning.prediction`); ``lineage`` the steps that made the source (`onnx_gpt.lineage`).
    """

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    version: str
    source: SourceFacts
    recipe: dict[str, Any]
    pipeline: str
    stages: tuple[Stage, ...]
    passes: tuple[PassFacts, ...]
    graph: GraphFacts
    quantization: dict[str, int] = pydantic.Field(default_factory=dict)
    calibration: dict[str, Any] = pydantic.Field(default_factory=dict)
    files: dict[str, int]
    parity: Parity | Literal["not run"]
    models: dict[str, ModelFacts] = pydantic.Field(default_factory=dict)
    certificates: dict[str, str] = pydantic.Field(default_factory=dict)
    search: dict[str, Any] = pydantic.Field(default_factory=dict)
    predicted: dict[str, Any] = pydantic.Field(default_factory=dict)
    lineage: tuple[dict[str, Any], ...] = ()

    def json_text(self) -> str:
        optional = ("models", "certificates", "search", "predicted", "lineage")
        empty = {name for name in optional if not getattr(self, name)}
        return self.model_dump_json(by_alias=True, indent=2, exclude=empty) + "\n"


class Stages:
    """A stopwatch for the stages of one job."""

    def __init__(self, on_start: Any = None) -> None:
        self.done: list[Stage] = []
        self._on_start = on_start or (lambda name: None)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, int]]:
        """Time a stage. The yielded dict may be given ``nodes``."""
        self._on_start(name)
        facts: dict[str, int] = {}
        start = time.perf_counter()
        yield facts
        self.done.append(
            Stage(
                name=name,
                seconds=round(time.perf_counter() - start, 3),
                peak_rss_bytes=peak_rss_bytes(),
                nodes=facts.get("nodes"),
            )
        )


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far; 0 where the system does not tell.

    Linux's own high-water mark where there is one: getrusage's starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
