"""onnxruntime's quantize_dynamic on the Optimum export (SOURCE is that folder): MatMul weights int8 per channel.

The embedding stays float: int8 too, its Gather dequantizes the whole table at every step.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.peers.protocol import main, making


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


if __name__ == "__main__":
    main(make=making(make))
