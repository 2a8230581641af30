"""onnxruntime-genai's model builder: a Hugging Face folder to int4 ONNX (MatMulNBits) with genai's configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.peers.protocol import main, making


def make(source: Path, out: Path) -> None:
    from onnxruntime_genai.models.builder import create_model

    with tempfile.TemporaryDirectory() as cache:
        create_model("", str(source), str(out), "int4", "cpu", cache)


if __name__ == "__main__":
    main(make=making(make))
