"""The third level: every model gives on the probes what it gave, near enough to what the reference gave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exporter.errors import OnnxGptError
from onnx_gpt.certificate.probes import Reached, rerun
from onnx_gpt.certificate.schema import CERTIFICATE, Certificate, ProbedModel, Probes
from onnx_gpt.certificate.violations import Violation, violation
from onnx_gpt.parity.candidate import Candidate

Measured = dict[str, dict[str, Reached]]
"""By model, and by how it was run: ``prefill``, ``decode``."""


def run_probes(folder: Path, certificate: Certificate) -> tuple[Measured, list[Violation]]:
    """Run every model that has probes; what was measured, and what is beyond its limit."""
    if not isinstance(certificate.probes, Probes) or not certificate.probes.models:
        cause = "the bundle was made without probes: build it with parity, or ask for --level structure"
        return {}, [violation("probes-missing", CERTIFICATE, cause)]
    measured: Measured = {}
    found: list[Violation] = []
    for name, model in certificate.probes.models.items():
        try:
            measured[name] = rerun(Candidate(folder / name), certificate.probes, model)
        except OnnxGptError as error:
            found.append(violation("probe-failed", name, f"[{error.code}] {error.cause}"))
            continue
        found += _beyond(name, model, measured[name])
    return measured, found


def _beyond(name: str, model: ProbedModel, reached: dict[str, Reached]) -> Iterator[Violation]:
    for way, kl in reached.items():
        if not kl.reference <= model.max_kl:
            cause = f"{way}: mean KL from the reference is {kl.reference:.3g} > {model.max_kl:.3g}"
            yield violation("probe-reference", name, f"{cause} (it was {model.measured:.3g})")
        if not kl.drift <= model.max_drift:
            cause = f"{way}: mean KL from what it gave is {kl.drift:.3g} > {model.max_drift:.3g}"
            yield violation("probe-steps" if way == "decode" else "probe-drift", name, cause)
