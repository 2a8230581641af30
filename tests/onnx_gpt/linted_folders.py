"""Folders that a runtime would take, and one way for each finding to spoil them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_decoders import EOS, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, TEMPLATE, VOCAB, save_bundle

from onnx_gpt.linting.repairing import repair

SIZES = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_size": HIDDEN,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
}

Spoil = Callable[[Path], object]


def good(folder: Path, target: str) -> Path:
    """A folder without an error for a target."""
    raw = save_bundle(folder.with_name(f"{folder.name}-raw"), "shared", keep=True, eos=EOS)
    set_keys("config.json", model_type="llama", **SIZES)(raw)
    repair(raw, target, folder)
    if target == "mobile":
        (folder / "model.ort").write_bytes(b"\x20\0\0\0ORTM" + bytes(24))
        (folder / "required_operators.config").write_text("ai.onnx;23;Add\n")
    return folder


def model_path(folder: Path) -> Path:
    return next(iter([*folder.glob("onnx/*.onnx"), *folder.glob("*.onnx")]))


def set_keys(name: str, **keys: Any) -> Spoil:
    """Set keys of a JSON document; None removes one."""

    def spoil(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text("utf-8")) if path.exists() else {}
        document = {k: v for k, v in (document | keys).items() if v is not None}
        path.write_text(json.dumps(document), "utf-8")

    return spoil


def ends(token: int | None) -> Spoil:
    """The token that ends a text, in every document."""

    def spoil(folder: Path) -> None:
        for name in ("config.json", "generation_config.json"):
            set_keys(name, eos_token_id=token)(folder)

    return spoil


def genai(**keys: Any) -> Spoil:
    """Set keys of genai_config.json's model; a decoder's sizes and names are under ``decoder``."""

    def spoil(folder: Path) -> None:
        path = folder / "genai_config.json"
        document = json.loads(path.read_text("utf-8"))
        decoder = document["model"]["decoder"] | keys.pop("decoder", {})
        document["search"] |= keys.pop("search", {})
        document["model"] |= keys | {"decoder": decoder}
        path.write_text(json.dumps(document), "utf-8")

    return spoil


def edit(change: Callable[[onnx.ModelProto], None]) -> Spoil:
    """Change the graph, leaving its weights where they are."""

    def spoil(folder: Path) -> None:
        path = model_path(folder)
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return spoil


def dims(axis: int, name: str | int) -> Spoil:
    """Spell a dim of every past in another way; the presents too where they have the same dim."""

    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            if "key_values" in value.name or (value.name.startswith("present") and axis != 2):
                dim = value.type.tensor_type.shape.dim[axis]
                dim.Clear()
                if isinstance(name, int):
                    dim.dim_value = name
                elif name:
                    dim.dim_param = name

    return edit(change)


def rename(old: str, new: str) -> Spoil:
    """Call a value by another name."""

    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edit(change)


def retype(name: str, dtype: int) -> Spoil:
    """Declare another type."""

    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            if value.name == name:
                value.type.tensor_type.elem_type = dtype

    return edit(change)


def reshape(name: str, *shape: int | str) -> Spoil:
    def change(model: onnx.ModelProto) -> None:
        for values in (model.graph.input, model.graph.output):
            for value in values:
                if value.name == name:
                    value.CopyFrom(
                        helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shape)
                    )

    return edit(change)


def without(name: str) -> Spoil:
    """Delete a file, or an input or output."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()

    return spoil


def drop_value(name: str) -> Spoil:
    def change(model: onnx.ModelProto) -> None:
        for values in (model.graph.input, model.graph.output):
            for value in [value for value in values if value.name == name]:
                values.remove(value)

    return edit(change)


def add_input(name: str, dtype: int = TensorProto.INT64) -> Spoil:
    return edit(lambda model: model.graph.input.append(helper.make_tensor_value_info(name, dtype, [1])))


def add_node(domain: str, op: str) -> Spoil:
    """A node of an operator, and its domain."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(op, ["logits"], ["unused"], domain=domain, name="odd"))
        if all(entry.domain != domain for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return edit(change)


def function(model: onnx.ModelProto) -> None:
    """The logits by a function of the model, which doubles and halves them."""
    body = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Sub", ["b", "a"], ["c"])]
    opsets = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("own", "Same", ["a"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    head = model.graph.node[-1]
    head.output[0] = "scores"
    model.graph.node.append(helper.make_node("Same", ["scores"], ["logits"], domain="own", name="same"))


def without_cache(folder: Path) -> None:
    """Put a decoder without a cache in the model's place."""
    other = save_bundle(folder.with_name(f"{folder.name}-nocache"), "none")
    path = model_path(folder)
    for file in path.parent.glob(f"{path.name}?data*"):
        file.unlink()
    path.write_bytes((other / "model.onnx").read_bytes())


def default_for_keep(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "num_logits_to_keep"))


def packed(model: onnx.ModelProto) -> None:
    """A MatMulNBits, beside the graph."""
    inputs = ["packed_x", "packed_w", "packed_s"]
    for name, dtype, shape in zip(inputs, (1, 2, 1), ([4, 64], [32, 2, 16], [64]), strict=True):
        content = np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype))
        model.graph.initializer.append(numpy_helper.from_array(content, name))
    model.graph.node.append(
        helper.make_node(
            "MatMulNBits",
            inputs,
            ["packed"],
            domain="com.microsoft",
            K=64,
            N=32,
            bits=4,
            block_size=32,
            accuracy_level=4,
        )
    )


def data_file(folder: Path) -> Path:
    """The file of weights that the graph names."""
    path = model_path(folder)
    model = onnx.load(path, load_external_data=False)
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return path.with_name(next(entry.value for entry in entries if entry.key == "location"))


def move_data(name: str) -> Spoil:
    """Call the file of weights otherwise, in the graph too."""

    def spoil(folder: Path) -> None:
        old = data_file(folder)
        old.rename(old.with_name(name))

        def change(model: onnx.ModelProto) -> None:
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = name

        edit(change)(folder)

    return spoil


def link(folder: Path) -> None:
    """The file of weights as a link to another of the folder."""
    path = data_file(folder)
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real").name)


def link_out(folder: Path) -> None:
    """The file of weights as a link that leaves the model's folder."""
    path = data_file(folder)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def hard_link(folder: Path) -> None:
    os.link(data_file(folder), folder / "second")


def lose_data(folder: Path) -> None:
    data_file(folder).unlink()


def large(folder: Path) -> None:
    """A file of weights of more than 2 GB, sparse."""
    with data_file(folder).open("r+b") as file:
        file.truncate(2**31)


def move_out(folder: Path) -> None:
    """The model beside the documents and not in ``onnx``."""
    for file in list((folder / "onnx").iterdir()):
        file.rename(folder / file.name)
    (folder / "onnx").rmdir()


def template_beside(folder: Path) -> None:
    set_keys("tokenizer_config.json", chat_template=None)(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def many_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["added_tokens"].append({**document["added_tokens"][0], "id": VOCAB + 5, "content": "<|far|>"})
    path.write_text(json.dumps(document), "utf-8")


WEB: Mapping[str, Spoil] = {
    "batch-fixed": dims(0, 1),
    "batch-symbol": dims(0, "batch"),
    "cache-absent": without_cache,
    "cache-dim-open": dims(3, "head_size"),
    "cache-incomplete": drop_value("present.1.value"),
    "cache-mismatch": retype("present.0.key", TensorProto.FLOAT16),
    "cache-names": lambda folder: [
        rename(f"past_key_values.{i}.{w}", f"cache_{w}_{i}")(folder)
        for i in range(LAYERS)
        for w in ("key", "value")
    ],
    "cache-rank": reshape("past_key_values.0.key", "batch_size", 1, "past"),
    "config-graph-mismatch": set_keys("config.json", num_key_value_heads=2),
    "config-key-absent": set_keys("config.json", num_hidden_layers=None),
    "eos-absent": lambda folder: [
        set_keys(name, eos_token_id=None)(folder) for name in ("config.json", "generation_config.json")
    ],
    "eos-differs": lambda folder: [
        set_keys(name, eos_token_id=3)(folder) for name in ("config.json", "generation_config.json")
    ],
    "external-data-large": large,
    "external-data-link": link,
    "external-data-name": move_data("weights.bin"),
    "external-data-unlisted": set_keys("config.json", **{"transformers.js_config": {"dtype": "fp32"}}),
    "external-data-unusable": lose_data,
    "file-absent": without("tokenizer.json"),
    "input-dtype": retype("attention_mask", TensorProto.INT32),
    "input-missing": rename("input_ids", "tokens"),
    "input-unknown": add_input("cache_position"),
    "ir-version-newer": edit(lambda model: setattr(model, "ir_version", 14)),
    "keep-has-default": edit(default_for_keep),
    "logits-dtype": retype("logits", TensorProto.INT64),
    "logits-rank": reshape("logits", "batch_size", VOCAB),
    "model-absent": lambda folder: model_path(folder).unlink(),
    "model-default-absent": set_keys(
        "config.json", **{"transformers.js_config": {"use_external_data_format": {"model.onnx": 1}}}
    ),
    "model-misplaced": move_out,
    "model-type-unknown": set_keys("config.json", model_type="mamba"),
    "nbits-on-wasm": lambda folder: [
        edit(packed)(folder),
        set_keys(
            "config.json",
            **{"transformers.js_config": {"use_external_data_format": {"model_quantized.onnx": 1}}},
        )(folder),
        move_data("model_quantized.onnx_data")(folder),
        model_path(folder).rename(folder / "onnx" / "model_quantized.onnx"),
    ],
    "operator-unavailable": add_node("my.domain", "Odd"),
    "opset-newer": edit(lambda model: setattr(model.opset_import[0], "version", 27)),
    "output-missing": rename("logits", "scores"),
    "past-dim-fixed": dims(2, 16),
    "template-absent": set_keys("tokenizer_config.json", chat_template=None),
    "template-not-inline": template_beside,
    "token-id-range": set_keys("generation_config.json", eos_token_id=VOCAB),
    "tokenizer-larger": many_tokens,
}
"""Ways to spoil a folder for the web, by the code that is found."""

OTHERS: Mapping[tuple[str, str], Spoil] = {
    ("genai", "cache-dtype"): lambda folder: [
        retype(f"{kind}.{i}.{w}", TensorProto.INT8)(folder)
        for kind in ("past_key_values", "present")
        for i in range(LAYERS)
        for w in ("key", "value")
    ],
    ("genai", "genai-file"): genai(decoder={"filename": "other.onnx"}),
    ("genai", "genai-integers"): lambda folder: [
        add_input("position_ids", TensorProto.INT32)(folder),
        reshape("position_ids", "batch_size", "sequence_length")(folder),
        genai(decoder={"inputs": {"position_ids": "position_ids"}})(folder),
    ],
    ("genai", "genai-length"): genai(search={"max_length": 100_000}),
    ("genai", "genai-names"): rename("present.0.key", "present_key.0"),
    ("genai", "genai-type"): genai(type="gpt2"),
    ("genai", "token-id-range"): genai(eos_token_id=VOCAB),
    ("mobile", "operators-config-absent"): without("required_operators.config"),
    ("mobile", "ort-format-absent"): without("model.ort"),
    ("mobile", "ort-format-invalid"): lambda folder: (
        (folder / "model.ort").write_bytes(b"nothing of the kind") and None
    ),
    ("mobile", "ort-format-large"): lambda folder: os.truncate(folder / "model.ort", 2**31),
    ("openvino", "function-not-inlined"): edit(function),
    ("openvino", "operator-unavailable"): add_node("com.microsoft", "SparseAttention"),
    ("optimum", "cache-misread"): set_keys("config.json", model_type="phi3"),
    ("optimum", "left-padding"): lambda folder: None,
    ("ort", "external-data-link"): hard_link,
    ("ort", "cache-dim-open"): dims(3, "head_size"),
}
"""The same for other targets, by target and code."""
