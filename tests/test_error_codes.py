"""Every code that a user can meet is documented, and no documented code has gone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("exporter", "graph_passes", "calibration", "onnx_gpt")
RAISERS = {"OnnxGptError", "rejected", "unsupported", "Rule", "Finding", "_invalid"}
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+|network")


def codes() -> Iterator[str]:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                first = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                if getattr(node.func, "id", "") in RAISERS and CODE.fullmatch(str(first)):
                    yield str(first)


def test_the_codes_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    listed = {
        code for code in re.findall(r"`([a-z0-9-]+)`", text.split("## Codes")[1]) if CODE.fullmatch(code)
    }
    assert set(codes()) == listed
