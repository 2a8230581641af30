"""``onnx-gpt inspect``: facts from headers alone."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from onnx_gpt.commands._show import print_json, print_table
from onnx_gpt.inspection import inspect as facts_of


def inspect(source: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Say what a source, a bundle or an .onnx file is, without reading weights or running anything.

    Parameters
    ----------
    source
        Anything that optimize takes, a bundle, or an .onnx file.
    json
        Print JSON.
    """
    facts = facts_of(source)
    if json:
        print_json(facts)
    else:
        print_table(("fact", "value"), [(key, _text(value)) for key, value in facts.items()])
    return 0


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
