"""Bundles that several files of tests look at, and nobody changes."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnx_gpt


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx_gpt.Report]:
    """sample:tiny in 4 bits, proven against PyTorch."""
    out = tmp_path_factory.mktemp("certified") / "bundle"
    return out, onnx_gpt.optimize("sample:tiny", out, quantize="int4", tokens=256)
