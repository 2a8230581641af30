"""onnxruntime's reduced build: an .ort file, or an .onnx file to convert into one.

https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html: one flatbuffer holds graph and
weights, and the build has the operators of the configuration that lies beside it; see `checks.mobile`.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_gpt.linting.expectation import Expectation

EXPECTATION = Expectation(
    runtime="onnxruntime 1.32, reduced build",
    inputs=frozenset({"input_ids", "attention_mask", "position_ids", "num_logits_to_keep"}),
    integers=(ir.DataType.INT64, ir.DataType.INT32),
    opset=28,
    ir_version=14,
)
