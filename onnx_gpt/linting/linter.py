"""Runs the checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from exporter.discovery import modules_of
from onnx_gpt.linting.finding import Finding, Verdict
from onnx_gpt.linting.subject import Subject, read_subject


def lint(source: str | Path, target: str) -> Verdict:
    """What of a folder, or of an .onnx file, is not as a target's runtime expects it. Reads headers only.

    Args:
        source: a bundle, a folder that another exporter wrote, or an .onnx file with what lies beside it.
        target: ``web``, ``ort``, ``genai``, ``mobile``, ``openvino`` or ``optimum``.

    Raises:
        OnnxGptError: where the source is none, or a file of it is malformed; see `onnx_gpt.linting.subject`.
    """
    subject = read_subject(source, target)
    return judge(subject, str(source))


def judge(subject: Subject, source: str) -> Verdict:
    """All findings of a subject, errors first, else in the order of the checks."""
    findings = sorted(_merged(_findings(subject)), key=lambda finding: finding.severity != "error")
    names = tuple(graph.name for graph in subject.graphs)
    return Verdict(source, subject.target, subject.expected.runtime, names, tuple(findings))


def _merged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """What is found in every layer alike is said once."""
    places: dict[Finding, list[str]] = {}
    for finding in findings:
        alike = dataclasses.replace(finding, where=finding.where.partition(": ")[0])
        places.setdefault(alike, []).append(finding.where)
    for finding, where in places.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        yield dataclasses.replace(finding, where=f"{where[0]}{more}")


def _findings(subject: Subject) -> Iterator[Finding]:
    for module in modules_of("onnx_gpt.linting.checks").values():
        if subject.target in getattr(module, "TARGETS", (subject.target,)):
            yield from module.check(subject)
