"""onnxruntime-genai 0.18: names and sizes are those of genai_config.json (`checks.genai`).

Sources: microsoft/onnxruntime-genai, src/config.h, src/models/model.cpp, src/models/kv_cache.cpp and
src/models/position_inputs.cpp. It asks the session for required inputs alone, so that defaults stay as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_gpt.linting.expectation import Expectation

EXPECTATION = Expectation(
    runtime="onnxruntime-genai 0.18 on CPU",
    integers=(ir.DataType.INT64, ir.DataType.INT32),
    needs_cache=True,
    feeds_optional=False,
    opset=28,
    ir_version=14,
    needs=("genai_config.json", "tokenizer.json", "tokenizer_config.json"),
    config="genai_config.json",
)
