"""``onnx-gpt doctor``: is this machine fit."""

from __future__ import annotations

from exporter.errors import Exit
from onnx_gpt.commands._flags import Json
from onnx_gpt.commands._show import print_json, print_table
from onnx_gpt.diagnosis import doctor as diagnosis_of

SIGNS = {"ok": "✓", "warning": "!", "missing": "✗"}


def doctor(*, json: Json = False) -> int:
    """Say whether this machine is fit: Python, packages, CPU, threads, memory, disk, and what extras would allow.

    Exit status 8 where something that is needed is missing. Nothing is fetched.
    """
    diagnosis = diagnosis_of()
    if json:
        print_json(diagnosis.json())
    else:
        rows = [(SIGNS[c.status], c.name, c.found, c.remedy) for c in diagnosis.checks]
        print_table(("", "what", "found", "to do"), rows, figures=False)
        print("fit" if diagnosis.fit else "not fit: see ✗ above")
    return Exit.DONE if diagnosis.fit else Exit.ENVIRONMENT
