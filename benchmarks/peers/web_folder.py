"""A folder with model.onnx (SOURCE) laid out as transformers.js wants it: onnx/model_quantized.onnx, weights inside.

Tokenizer and configuration come from the Optimum export, from which SOURCE was quantized (``--files``).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def make(source: Path, files: Path, out: Path) -> None:
    import onnx

    (out / "onnx").mkdir(parents=True)
    onnx.save(onnx.load(str(source / "model.onnx")), str(out / "onnx" / "model_quantized.onnx"))
    for name in FILES:
        shutil.copyfile(files / name, out / name)


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:4]))
