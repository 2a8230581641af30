"""Optimum's ORTModelForCausalLM (optimum-onnx 0.1, transformers 4.57).

Source: optimum/onnxruntime/modeling_decoder.py. The empty cache is made of config.json (kv heads, head dim) in the type
of the logits; caches are told by ``.key`` and ``.value`` in their names.
"""

from __future__ import annotations

from onnx_gpt.linting.expectation import Expectation

EXPECTATION = Expectation(
    runtime="optimum-onnx 0.1 on onnxruntime",
    model_names=("model.onnx",),
    inputs=frozenset({"input_ids", "attention_mask", "position_ids", "use_cache_branch"}),
    feeds_optional=False,
    opset=28,
    ir_version=14,
    left_pads=True,
    needs=("config.json",),
    wants=("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    config="config.json",
)
