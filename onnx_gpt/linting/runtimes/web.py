"""transformers.js 4.3 on onnxruntime-web 1.31 (browser) and onnxruntime-node 1.30.

Sources: @huggingface/transformers 4.3.1, src/models/modeling_utils.js (an empty cache is made of shapes in the graph: a
number stays, ``batch_size`` is the batch, any other symbol is 0), src/utils/model-loader.js (names of data files),
src/utils/dtypes.js (names of models), src/tokenization_utils.js (the template is read out of tokenizer_config.json).
Versions of the operators and of the file format: measured, both runtimes load them and refuse the next.
"""

from __future__ import annotations

from onnx_gpt.linting.expectation import GIB, Expectation

SUFFIXES = (
    "",
    "_fp16",
    "_int8",
    "_uint8",
    "_quantized",
    "_q4",
    "_q2",
    "_q1",
    "_q4f16",
    "_q2f16",
    "_q1f16",
    "_bnb4",
)
"""What the name of a model has for each dtype; ``_quantized`` is q8, the default in WebAssembly."""

EXPECTATION = Expectation(
    runtime="transformers.js 4.3 on onnxruntime-web 1.31",
    model_folder="onnx",
    model_names=tuple(f"model{suffix}.onnx" for suffix in SUFFIXES),
    inputs=frozenset(
        {"input_ids", "attention_mask", "position_ids", "num_logits_to_keep", "use_cache_branch"}
    ),
    needs_cache=True,
    feeds_optional=False,
    batch_symbol="batch_size",
    literal_cache=True,
    opset=26,
    ir_version=13,
    cliffs=False,
    left_pads=True,
    data_suffix="_data",
    data_limit=2 * GIB - 1,
    data_files=100,
    needs=("config.json", "tokenizer.json", "tokenizer_config.json"),
    wants=("generation_config.json",),
    template="inline",
    config="config.json",
)
