"""onnxruntime on a CPU, run by `onnx_gpt.Generator` or by a program of the user's.

Versions of the operators and of the file format: measured, onnxruntime 1.32 loads them and refuses the next.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_gpt.linting.expectation import Expectation

EXPECTATION = Expectation(
    runtime="onnxruntime 1.32 on CPU",
    inputs=frozenset({"input_ids", "attention_mask", "position_ids", "num_logits_to_keep"}),
    integers=(ir.DataType.INT64, ir.DataType.INT32),
    opset=28,
    ir_version=14,
    wants=("tokenizer.json",),
)
