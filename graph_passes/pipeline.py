"""A pipeline is text: names of passes in order, each with its options, ``fold, attention, opset{version=21}``.

It parses to steps and prints back; the report of a bundle records it. Passes run one after the other on one
model, which they change in place, and the graph's invariants are checked after each.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, Protocol, cast

import onnx_ir as ir
import pydantic

from exporter.discovery import modules_of
from exporter.errors import Exit, OnnxGptError
from graph_passes.inference.facts import annotate
from graph_passes.outcome import NearMiss, Outcome
from graph_passes.proof.difference import Before, record_differences
from graph_passes.proof.invariants import Snapshot, check
from graph_passes.proof.prove import Proof, prove
from graph_passes.proof.witness import recording

Kind = Literal["exact", "fp", "lossy"]
Option = bool | int | float | str


class Pass(Protocol):
    """What a pass's file offers. Its docstring states the identity that it uses.

    ``KIND`` is what the rewrite does to values: ``exact`` keeps every bit, ``fp`` reorders float arithmetic
    (error at most 4× that of the unfused graph against float64), ``lossy`` changes them and has to be asked
    for. A pass with ``INTERFACE = True`` gives the graph other inputs and outputs. What it does cannot be proven on
    two sides with the same inputs: it tells by itself, on calls of the graph, that it may.
    """

    __name__: str
    KIND: Kind

    @staticmethod
    def apply(model: ir.Model, **options: Option) -> Outcome: ...


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass of a pipeline with its options."""

    name: str
    options: tuple[tuple[str, Option], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}{{{', '.join(f'{key}={_print(value)}' for key, value in self.options)}}}"


@dataclasses.dataclass(frozen=True)
class PassReport:
    """What a pass did.

    Attributes:
        fired: rewrites made.
        refused: rewrites that nearly applied, each with the condition that failed.
        misses, tried: as of `Outcome`.
        nodes_before, nodes_after: nodes of the graph.
        seconds: wall time, checks included.
        proof: what running both sides of its rewrites said; None where that was not asked for.
    """

    name: str
    kind: Kind
    fired: int
    refused: tuple[str, ...]
    nodes_before: int
    nodes_after: int
    seconds: float
    proof: Proof | None = None
    misses: tuple[NearMiss, ...] = ()
    tried: int = 0


@functools.cache
def passes_by_name() -> Mapping[str, Pass]:
    """Passes by file name."""
    return cast(Mapping[str, Pass], modules_of("graph_passes.passes"))


_STEP = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")
_OPTION = re.compile(r"\s*([a-z][a-z0-9_]*)\s*=\s*([^\s,=]+)\s*(?:,|$)")


def parse(text: str) -> tuple[Step, ...]:
    """Read a pipeline.

    Raises:
        OnnxGptError: ``pipeline-invalid`` (exit 2) for text that is no pipeline, an unknown pass or option, or a value
            that the option cannot have.
    """
    steps = []
    for name, options in _all_of(_STEP, text, text):
        known = passes_by_name().get(name)
        if known is None:
            raise _invalid(f"there is no pass called {name!r}", f"use some of {', '.join(passes_by_name())}")
        given = tuple((key, _value(raw)) for key, raw in _all_of(_OPTION, options or "", text))
        _require_options(name, known, given)
        steps.append(Step(name, given))
    return tuple(steps)


def _require_options(name: str, known: Pass, given: Sequence[tuple[str, Option]]) -> None:
    """Refuse options that a pass does not declare, and values of another type."""
    declared = dict(inspect.signature(known.apply, eval_str=True).parameters)
    del declared["model"]
    for key, value in given:
        if key not in declared:
            raise _invalid(
                f"pass {name!r} has no option {key!r}",
                f"its options are: {', '.join(sorted(declared))}" if declared else "it has no options",
            )
        try:
            pydantic.TypeAdapter(declared[key].annotation).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            why = error.errors()[0]["msg"].lower()
            raise _invalid(
                f"{key}={_print(value)} of pass {name!r}: {why}", "give it another value"
            ) from error


def to_text(steps: Sequence[Step]) -> str:
    """The text that `parse` reads back to the same steps."""
    return ", ".join(map(str, steps))


def run_pipeline(
    model: ir.Model, pipeline: str | Sequence[Step], *, verify: bool = True
) -> tuple[PassReport, ...]:
    """Run passes on a model, which is changed in place. No weight is read.

    Args:
        verify: run what each pass took away and what it put there, on the same data (`graph_passes.proof.prove`).

    Raises:
        OnnxGptError: ``pipeline-invalid`` (exit 2); ``rewrite-wrong`` (exit 1), with the model half changed.
    """
    steps = parse(pipeline) if isinstance(pipeline, str) else tuple(pipeline)
    annotate(model)
    seen = dict[Kind, set[Hashable]]() if verify else None
    return tuple(_run(model, step, seen) for step in steps)


def _run(model: ir.Model, step: Step, seen: dict[Kind, set[Hashable]] | None) -> PassReport:
    """One pass and its checks. Rewrites whose structure is in ``seen`` have been proven by an earlier one of that kind.

    A pass that changes the graph's interface is not run on both sides here: what goes in is not the same.
    """
    rewrite = passes_by_name()[step.name]
    started = time.perf_counter()
    before = Snapshot.of(model)
    proof = None
    interface = getattr(rewrite, "INTERFACE", False)
    if seen is None or interface:
        outcome = rewrite.apply(model, **dict(step.options))
        check(model, before, step.name, interface=interface)
    else:
        structure = Before(model)
        with recording(model, seen.setdefault(rewrite.KIND, set())) as recorder:
            outcome = rewrite.apply(model, **dict(step.options))
        check(model, before, step.name)
        record_differences(structure, model, recorder)
        proof = prove(recorder.witnesses, step.name, rewrite.KIND)
    return PassReport(
        step.name,
        rewrite.KIND,
        outcome.fired,
        outcome.refused,
        before.nodes,
        model.graph.num_nodes(),
        time.perf_counter() - started,
        proof,
        outcome.misses,
        outcome.tried,
    )


def _all_of(pattern: re.Pattern[str], text: str, whole: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text):
        match = pattern.match(text, at)
        if match is None or (match.end() == len(text) and text.rstrip().endswith(",")):
            raise _invalid(
                f"{whole!r} is not a pipeline (at {text[at:]!r})", "write it as 'name, name{option=value}'"
            )
        found.append((match[1], match[2]))
        at = match.end()
    return found


def _value(raw: str) -> Option:
    if raw in ("true", "false"):
        return raw == "true"
    for number in (int, float):
        try:
            return number(raw)
        except ValueError:
            continue
    return raw


def _print(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _invalid(cause: str, remedy: str) -> OnnxGptError:
    return OnnxGptError("pipeline-invalid", cause, remedy, exit=Exit.USAGE)
