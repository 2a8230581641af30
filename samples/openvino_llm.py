"""From an `openvino` bundle to a folder that openvino-genai's LLMPipeline opens, and text from it.

    onnx-gpt optimize sample:smollm2 -o smollm2 --target openvino --quantize int8
    python samples/openvino_llm.py smollm2 smollm2-genai "Why is the sky blue?"

The cache becomes the model's own state, with a `beam_idx` by which beams exchange rows of it, and the tokenizer becomes
two models. Needs openvino-genai, openvino-tokenizers and transformers.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def stateful(path: Path) -> ov.Model:
    """A bundle's model.onnx with its cache inside, empty at first, of as many rows as the tokens have."""
    model = ov.Core().read_model(path)
    beams = ops.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beams])
    names = {}
    for past in [p for p in model.get_parameters() if p.output(0).any_name.startswith("past_key_values")]:
        uses = list(past.output(0).get_target_inputs())
        ordered = ops.gather(past, beams, ops.constant(np.int64(0)))
        for use in uses:
            use.replace_source_output(ordered.output(0))
        name = past.output(0).any_name
        names[name] = name.replace("past_key_values", "present")
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, names)
    rows = ops.gather(ops.shape_of(model.input("input_ids")), ops.constant([0]), ops.constant(np.int64(0)))
    for state in [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]:
        _, heads, _, width = state.get_output_partial_shape(0)
        sizes = ops.constant(np.array([heads.get_length(), 0, width.get_length()], np.int64))
        state.set_arguments([ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, sizes], 0))])
    model.validate_nodes_and_infer_types()
    return model


def convert(bundle: Path, out: Path) -> None:
    """Write model, tokenizer and small files of a bundle as LLMPipeline wants them."""
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    out.mkdir(parents=True)
    ov.save_model(stateful(bundle / "model.onnx"), out / "openvino_model.xml", compress_to_fp16=False)
    words = convert_tokenizer(AutoTokenizer.from_pretrained(bundle), with_detokenizer=True)
    for model, name in zip(words, ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        ov.save_model(model, out / name)
    for name in FILES:
        if (bundle / name).exists():
            shutil.copy(bundle / name, out / name)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("bundle", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("prompt", nargs="?")
    chosen = options.parse_args()
    convert(chosen.bundle, chosen.out)
    if chosen.prompt is not None:
        import openvino_genai

        pipeline = openvino_genai.LLMPipeline(chosen.out, "CPU")
        print(pipeline.generate(chosen.prompt, max_new_tokens=64, do_sample=False))


if __name__ == "__main__":
    main()
