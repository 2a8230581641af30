"""``onnx-gpt verify``: a bundle against its certificate, on any machine."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import Exit
from onnx_gpt.certificate.verification import Level, Verification
from onnx_gpt.certificate.verification import verify as verification_of
from onnx_gpt.commands._flags import Json
from onnx_gpt.commands._show import print_table


def verify(
    bundle: Path,
    /,
    *,
    level: Level = "parity",
    certificate_digest: str | None = None,
    json: Json = False,
) -> int:
    """Hold a bundle against its certificate. Exit status 6 where anything is not as certified; all of it is listed.

    Needs neither the model that the bundle was made from nor PyTorch.

    Parameters
    ----------
    bundle
        Folder that optimize made.
    level
        integrity: every file, byte for byte. structure: also graphs, weights, configuration and tokenizer against
        each other. parity: also runs the probes again that travel with the certificate.
    certificate_digest
        SHA-256 of certificate.json, as optimize printed it: finds a bundle that was changed together with its
        certificate.
    """
    found = verification_of(bundle, level=level, certificate_digest=certificate_digest)
    if json:
        print(found.model_dump_json(indent=2))
    else:
        _show(found)
    return Exit.DONE if found.verdict == "pass" else Exit.VERIFICATION


def _show(found: Verification) -> None:
    if found.violations:
        rows = [(entry.code, entry.subject, entry.cause) for entry in found.violations]
        print_table(("violation", "of", "what"), rows, figures=False)
        print()
    rows = [
        (f"{name}: {way}", f"{kl.reference:.3g}", f"{kl.drift:.3g}")
        for name, ways in found.probes.items()
        for way, kl in ways.items()
    ]
    if rows:
        print_table(
            ("probes, mean KL (nats a token)", f"from {found.reference}", "from when it was made"), rows
        )
        print()
    for item in found.not_run:
        print(f"not proven when it was made: {item}")
    print(f"certificate {found.certificate or 'missing'}")
    levels = ", ".join(found.run)
    print(f"{found.bundle}: {levels}: {found.verdict}" + _count(len(found.violations)))


def _count(violations: int) -> str:
    return f" ({violations} violation{'s' if violations > 1 else ''})" if violations else ""
