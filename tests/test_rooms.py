"""The law of the rooms: a room imports only rooms above it, and heavy libraries live in one place each."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("exporter", "graph_passes", "calibration", "onnx_gpt")
HOMES = {
    "torch": ("exporter/reference.py", "exporter/sources/module.py", "calibration/distillation/"),
    "transformers": ("exporter/reference.py",),
}
RUNNERS = ("onnx_gpt/", "graph_passes/proof/evaluate.py", "calibration/collecting.py")
"""Where onnxruntime may be imported."""
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_rooms_above_and_heavy_libraries_at_home(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    own = ROOMS.index(relative.split("/")[0])
    for name in imported(path):
        top = name.split(".")[0]
        if top in ROOMS:
            assert ROOMS.index(top) <= own, f"{relative} imports {name}, a room below it"
        if top in HOMES:
            assert relative.startswith(HOMES[top]), f"{relative} imports {top}"
        if top == "onnxruntime":
            assert relative.startswith(RUNNERS), f"{relative} imports onnxruntime"


def test_commands_that_need_no_reference_never_import_torch(tmp_path: Path) -> None:
    """inspect, a weight-only optimize without parity, and verify, in a process where importing torch is an error."""
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from onnx_gpt.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for arguments in (
        ["inspect", "sample:tiny"],
        ["optimize", "sample:tiny", "-o", str(tmp_path / "b"), "--quantize", "int4", "--no-parity"],
        ["verify", str(tmp_path / "b")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
