"""OpenVINO 2026.4's ONNX reader, and openvino-genai, which turns caches by these names into state.

Operators of com.microsoft: openvinotoolkit/openvino, src/frontends/onnx/frontend/src/op/com.microsoft, one file each.
It inlines no functions of a model (measured): a function is an operator that it does not know.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_gpt.linting.expectation import Expectation

CONTRIB = frozenset(
    """
    Attention BiasAdd BiasGelu BifurcationDetector DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul
    EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul GatherBlockQuantized GatherND Gelu GroupNorm
    GroupQueryAttention MatMulIntegerToFloat MatMulNBits MultiHeadAttention Pad QLinearAdd QLinearAveragePool
    QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax
    QLinearWhere QuantizeLinear QuickGelu Range RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization Trilu
    """.split()  # noqa: SIM905 (a table)
)

EXPECTATION = Expectation(
    runtime="OpenVINO 2026.4",
    inputs=frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx"}),
    integers=(ir.DataType.INT64,),
    contrib=CONTRIB,
    cliffs=False,
    wants=("config.json", "tokenizer.json"),
)
