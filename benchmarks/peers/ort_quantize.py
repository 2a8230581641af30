"""onnxruntime's own quantizers on the Optimum export (SOURCE is that folder): weights of MatMul int8 per channel.

    make           quantize_dynamic. The embedding stays float: int8 too, its Gather would dequantize the whole table
                   at every step.
    make_static    quantize_static, QDQ: uint8 inputs of products, 99.999 % of what calibration text shows; what
                   products give stays float. By its defaults (least to greatest, outputs rounded too) the mean KL
                   is 3.2 and not 2.3.

Calibration reads the part of Python's documentation that our own calibration reads, never what `quality` judges.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from benchmarks.peers.protocol import main, making

WINDOWS, WINDOW = 8, 128
"""Of calibration text; the quantizer keeps every activation of all of them in memory."""
FIFTHS = 4
"""Of the text, from its start on: `onnx_gpt.parity.text.CALIBRATION_FIFTHS`, which this environment lacks."""


def make(source: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.mkdir(parents=True)
    quantize_dynamic(
        source / "model.onnx",
        out / "model.onnx",
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        use_external_data_format=True,
    )
    shutil.copyfile(source / "config.json", out / "config.json")


def make_static(source: Path, out: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    out.mkdir(parents=True)
    quantize_static(
        source / "model.onnx",
        out / "model.onnx",
        _Windows(source),
        op_types_to_quantize=["MatMul"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.Percentile,
        use_external_data_format=True,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    shutil.copyfile(source / "config.json", out / "config.json")


class _Windows:
    """A CalibrationDataReader: windows of text from an empty cache."""

    def __init__(self, source: Path) -> None:
        self._left = self._feeds(source)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)

    @staticmethod
    def _feeds(source: Path) -> Iterator[dict[str, Any]]:
        import numpy as np
        import onnxruntime
        from tokenizers import Tokenizer

        text = "".join(topics.values())
        ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text[: len(text) * FIFTHS // 5]).ids
        inputs = onnxruntime.InferenceSession(str(source / "model.onnx")).get_inputs()
        starts = np.linspace(0, len(ids) - WINDOW, WINDOWS).astype(int)
        for start in starts:
            feeds = {
                "input_ids": np.array([ids[start : start + WINDOW]], np.int64),
                "attention_mask": np.ones((1, WINDOW), np.int64),
                "position_ids": np.arange(WINDOW)[None],
            }
            pasts = {
                i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
                for i in inputs
                if i.name not in feeds
            }
            yield {i.name: (feeds | pasts)[i.name] for i in inputs}


if __name__ == "__main__":
    main(make=making(make), make_static=making(make_static))
