"""mobius: graphs built from onnxscript modules.

``make`` is fp32 from a Hugging Face folder, ``make_gguf`` keeps a GGUF's own codes.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.protocol import main, making


def make(source: Path, out: Path) -> None:
    _mobius("build", "--config", str(source), "--dtype", "f32", "--ep", "cpu", str(out))


def make_gguf(source: Path, out: Path) -> None:
    _mobius("build-gguf", str(source), "--output", str(out), "--keep-quantized", "--ep", "cpu")


def _mobius(*arguments: str) -> None:
    from mobius.__main__ import main as mobius

    mobius(list(arguments))


if __name__ == "__main__":
    main(make=making(make), make_gguf=making(make_gguf))
