"""What a check finds, and all that was found."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as a runtime expects it.

    Attributes:
        code: stable kebab-case identifier; docs/linter.md explains each.
        severity: ``error`` where the runtime fails or gives wrong tokens, ``warning`` where it is slow or incomplete.
        where: the file, and the value, node or key in it.
        cause: what is there, and what the runtime makes of it.
        fix: what to do.
        mechanical: whether ``--fix`` does it.
    """

    code: str
    severity: Severity
    where: str
    cause: str
    fix: str
    mechanical: bool = False

    def __str__(self) -> str:
        return f"{self.severity} [{self.code}] {self.where}: {self.cause}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All findings of one source for one runtime.

    Attributes:
        source: as the user named it.
        target: name of the target.
        runtime: the runtime and its version, whose expectations these are.
        graphs: the model files that were read, relative to the folder.
    """

    source: str
    target: str
    runtime: str
    graphs: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings because of which the runtime fails, or gives wrong tokens."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": "onnx-gpt/lint/1",
            "source": self.source,
            "target": self.target,
            "runtime": self.runtime,
            "graphs": list(self.graphs),
            "verdict": "pass" if self.ok else "fail",
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
