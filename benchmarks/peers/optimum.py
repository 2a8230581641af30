"""Optimum: a Hugging Face folder traced by torch's exporter to fp32 ONNX."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.protocol import main, making


def make(source: Path, out: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(source), str(out), task="text-generation-with-past", do_validation=False)


if __name__ == "__main__":
    main(make=making(make))
