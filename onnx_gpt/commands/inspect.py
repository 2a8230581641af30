"""``onnx-gpt inspect``: facts from headers alone."""

from __future__ import annotations

import re
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
        print_table(("fact", "value"), [(key, _text(value)) for key, value in facts.items()], figures=False)
    return 0


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(dict.fromkeys(f"{_any_layer(key)}: {item}" for key, item in value.items()))
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _any_layer(name: str) -> str:
    """``past_key_values.3.key`` → ``past_key_values.{i}.key``: layers that are alike are one line."""
    return re.sub(r"\.\d+\.", ".{i}.", name)
