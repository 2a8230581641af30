"""``onnx-gpt inspect``: facts from headers alone, and what a runtime would not like."""

from __future__ import annotations

import re
from typing import Any

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.commands._flags import Json, OptionalOut, Switch
from onnx_gpt.commands._show import print_json, print_table, stderr
from onnx_gpt.inspection import inspect as facts_of
from onnx_gpt.linting.finding import Verdict
from onnx_gpt.linting.linter import lint
from onnx_gpt.linting.repairing import repair


def inspect(
    source: str,
    /,
    *,
    target: str | None = None,
    fix: Switch = False,
    out: OptionalOut = None,
    json: Json = False,
) -> int:
    """Say what a source, a bundle or an .onnx file is, without reading weights or running anything.

    With a target: what of a bundle, or of a folder that another exporter wrote, is not as that runtime expects it. Exit
    status 6 where it would fail or give wrong tokens.

    Parameters
    ----------
    source
        Anything that optimize takes, a bundle, or an .onnx file.
    target
        Runtime to check for: ort, genai, web, mobile, openvino or optimum. docs/linter.md explains each finding.
    fix
        Write a new folder in which everything mechanical is repaired, and check that one.
    out
        Where --fix writes. It must not exist.
    """
    if fix != (out is not None) or (fix and target is None):
        raise OnnxGptError(
            "fix-usage",
            "a repair needs a target and a new folder, and a new folder a repair",
            "use `--target web --fix -o NEW`",
            exit=Exit.USAGE,
        )
    if target is None:
        _show_facts(facts_of(source), json)
        return Exit.DONE
    if out is not None:
        repaired = repair(source, target, out)
        verdict, document = repaired.after, repaired.json()
        for change in repaired.changes:
            stderr.print(f"  {change}")
    else:
        verdict = lint(source, target)
        document = verdict.json()
    if json:
        print_json(document)
    else:
        _show_verdict(verdict)
    return Exit.DONE if verdict.ok else Exit.VERIFICATION


def _show_verdict(verdict: Verdict) -> None:
    for finding in verdict.findings:
        print(f"{finding}\n  → {finding.fix}{' (--fix does)' if finding.mechanical else ''}")
    count = len(verdict.findings) - len(verdict.errors)
    print(f"{verdict.source} for {verdict.runtime}: {len(verdict.errors)} errors, {count} warnings")


def _show_facts(facts: dict[str, Any], json: bool) -> None:
    if json:
        print_json(facts)
    else:
        print_table(("fact", "value"), [(key, _text(value)) for key, value in facts.items()], figures=False)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        lines = (f"{_any_layer(key)}: {_text(item)}" for key, item in value.items())
        return "\n".join(dict.fromkeys(lines))
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _any_layer(name: str) -> str:
    """``past_key_values.3.key`` → ``past_key_values.{i}.key``: layers that are alike are one line."""
    return re.sub(r"\.\d+\.", ".{i}.", name)
