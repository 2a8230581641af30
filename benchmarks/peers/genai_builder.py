"""onnxruntime-genai's model builder: a Hugging Face folder to int4 ONNX with genai's configuration.

``make`` is the builder with its defaults; ``make_pruned`` has it compute the last token's logits only.
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


def _build(source: Path, out: Path, *options: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        places = ["-i", str(source), "-o", str(out), "-c", cache]
        sys.argv = ["builder", *places, "-p", "int4", "-e", "cpu", *options]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


if __name__ == "__main__":
    main(make=making(make), make_pruned=making(make_pruned))
