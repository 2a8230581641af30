"""onnxruntime-genai's model builder: a Hugging Face folder to ONNX with genai's configuration.

``make`` is int4 with the builder's defaults; ``make_pruned`` computes the last token's logits only; ``make_float``
is fp32.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.protocol import main, making


def make(source: Path, out: Path) -> None:
    _build(source, out)


def make_pruned(source: Path, out: Path) -> None:
    _build(source, out, "--extra_options", "prune_lm_head=true")


def make_float(source: Path, out: Path) -> None:
    _build(source, out, precision="fp32")


def _build(source: Path, out: Path, *options: str, precision: str = "int4") -> None:
    with tempfile.TemporaryDirectory() as cache:
        places = ["-i", str(source), "-o", str(out), "-c", cache]
        sys.argv = ["builder", *places, "-p", precision, "-e", "cpu", *options]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


if __name__ == "__main__":
    main(make=making(make), make_pruned=making(make_pruned), make_float=making(make_float))
