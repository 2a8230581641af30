"""Is this bundle what its certificate says? Needs no source, no torch: numpy and onnxruntime alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from exporter.errors import Exit, OnnxGptError, rejected
from onnx_gpt.certificate import integrity, structure
from onnx_gpt.certificate.parity_level import Measured, run_probes
from onnx_gpt.certificate.schema import CERTIFICATE, Probes
from onnx_gpt.certificate.violations import Violation, violation
from onnx_gpt.report import Frozen

Level = Literal["integrity", "structure", "parity"]
LEVELS: tuple[Level, ...] = get_args(Level)


class Verification(Frozen):
    """What `verify` found.

    Attributes:
        level: what was asked for.
        run: levels that were gone through; a later one is left out where it would run what an earlier one refuses.
        certificate: SHA-256 of ``certificate.json``; empty where there is none.
        target, source, reference: what the certificate says of them; empty where there is none.
        violations: everything that is wrong; none is a pass.
        probes: what was measured, by model and way.
        not_run: what was not proven when the bundle was made, in the certificate's own words.
    """

    bundle: str
    level: Level
    run: tuple[Level, ...]
    certificate: str
    target: str
    source: str
    reference: str
    violations: tuple[Violation, ...]
    probes: Measured
    not_run: tuple[str, ...]
    verdict: Literal["pass", "fail"]


def verify(
    bundle: str | Path, *, level: Level = "parity", certificate_digest: str | None = None
) -> Verification:
    """Hold a bundle against its certificate.

    Args:
        bundle: a folder that `optimize` made.
        level: ``integrity`` compares files; ``structure`` also graphs, weights and small files with each other;
            ``parity`` also runs the probes again.
        certificate_digest: the SHA-256 of ``certificate.json`` that was printed when the bundle was made. With it,
            whoever changes the bundle and its certificate together is found out as well.

    Raises:
        OnnxGptError: ``bundle-missing`` where there is no folder, ``level-unknown`` (exit 2). A bundle that is not what
            it should be is a result and no error.
    """
    folder = Path(bundle)
    if level not in LEVELS:
        raise OnnxGptError(
            "level-unknown",
            f"there is no level {level!r}",
            f"use one of {', '.join(LEVELS)}",
            exit=Exit.USAGE,
        )
    if not folder.is_dir():
        raise rejected("bundle-missing", f"there is no folder {folder}", "build one with `onnx-gpt optimize`")
    certificate, digest, found = integrity.read_certificate(folder)
    if certificate_digest is not None and certificate_digest.lower() != digest:
        cause = f"its SHA-256 is {digest or 'that of nothing'}, {certificate_digest!r:.80} was asked for"
        found.append(violation("certificate-digest", CERTIFICATE, cause))
    run: list[Level] = ["integrity"]
    probes: Measured = {}
    if certificate is not None:
        found += integrity.violations(folder, certificate, digest)
        if level != "integrity":
            run.append("structure")
            found += structure.violations(folder, certificate)
        if level == "parity" and not found:
            run.append("parity")
            probes, beyond = run_probes(folder, certificate)
            found += beyond
    known = certificate.probes if certificate is not None else None
    return Verification(
        bundle=str(bundle),
        level=level,
        run=tuple(run),
        certificate=digest,
        target=certificate.target if certificate else "",
        source=certificate.source.uri if certificate else "",
        reference=known.reference if isinstance(known, Probes) else "",
        violations=tuple(found),
        probes=probes,
        not_run=certificate.not_run if certificate else (),
        verdict="fail" if found else "pass",
    )
