"""The report that every bundle carries: what was done, what it cost, what was proven. Schema `onnx-gpt/report/1`."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pydantic

SCHEMA = "onnx-gpt/report/1"


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, protected_namespaces=())


class SourceFacts(_Frozen):
    uri: str
    family: str
    parameters: int


class Stage(_Frozen):
    """One step of the job. ``peak_rss_bytes`` is the process's peak up to the end of the step."""

    name: str
    seconds: float
    peak_rss_bytes: int
    nodes: int | None = None


class ProofFacts(_Frozen):
    """What running both sides of a pass's rewrites said, each structure once.

    ``worst`` is the largest error against float64, as a multiple of that of the graph that was replaced; 0 where none
    was above the noise.
    """

    witnesses: int
    proven: int
    worst: float
    unproven: tuple[str, ...]


class PassFacts(_Frozen):
    name: str
    kind: str
    fired: int
    refused: tuple[str, ...]
    nodes_before: int
    nodes_after: int
    seconds: float
    proof: ProofFacts | None = None


class GraphFacts(_Frozen):
    """The graph as it lies in the file. ``inlined_nodes`` counts a function's nodes at each of its calls."""

    nodes: int
    inlined_nodes: int
    ops: dict[str, int]


class Check(_Frozen):
    """One comparison of the bundle with itself. ``value`` and ``limit`` are mean KL divergences, nats a token."""

    value: float
    limit: float
    passed: bool


class Limits(_Frozen):
    """Thresholds of the gate; None is not gated."""

    max_kl: float
    min_top1: float
    max_perplexity_ratio: float


class Parity(_Frozen):
    """Agreement of a bundle with its reference.

    KL is KL(reference ‖ bundle) in nats for each predicted token. ``top1`` counts a position as agreeing where the
    bundle's choice is the reference's, or a tie of it within the reference's own noise (``near_ties`` counts those).
    """

    reference: str
    text: str
    tokens: int
    max_abs: float
    mean_kl: float
    p99_kl: float
    max_kl: float
    top1: float
    near_ties: int
    perplexity: float
    reference_perplexity: float
    greedy_tokens: int
    greedy_agreed: int
    greedy_divergence: Literal["none", "near tie", "different"]
    checks: dict[str, Check]
    limits: Limits
    verdict: Literal["pass", "fail"]
    failures: tuple[str, ...] = ()


class Report(_Frozen):
    """What `optimize` returns and writes to ``report.json``."""

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

    def json_text(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


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
    """Largest resident set of this process so far.

    Linux's own high-water mark where there is one: getrusage's starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
