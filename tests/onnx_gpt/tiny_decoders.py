"""Decoders of two layers, written node by node, that compute the same function with three kinds of cache.

They are made here and not by the exporter, so that the runner is tested against the contract of its graphs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 2, 1, 16, 2, 512
HIDDEN = HEADS * HEAD_DIM
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
VOCAB = 256 + len(SPECIAL)
EOS = 256
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_bundle(
    folder: Path,
    kind: str = "shared",
    *,
    keep: bool = False,
    positions: bool = False,
    integers: int = TensorProto.INT64,
    floats: int = TensorProto.FLOAT,
    open_head_dim: bool = False,
    config: bool = True,
    eos: int | list[int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a bundle: ``kind`` is ``shared``, ``growing`` or ``none``; `keep` gives it num_logits_to_keep."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _Decoder(kind, keep, positions, integers, floats, open_head_dim, seed).model()
    onnx.save(model, str(folder / "model.onnx"))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": SPECIAL[0]})
    )
    if config:
        values = {"max_position_embeddings": CONTEXT, "head_dim": HEAD_DIM, "eos_token_id": eos}
        (folder / "config.json").write_text(json.dumps(values))
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token for each byte (not in the order of their values), then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer


class _Decoder:
    def __init__(
        self,
        kind: str,
        keep: bool,
        positions: bool,
        integers: int,
        floats: int,
        open_head_dim: bool,
        seed: int,
    ) -> None:
        self.kind, self.keep, self.positions = kind, keep, positions
        self.integers, self.floats, self.open_head_dim = integers, floats, open_head_dim
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        shape = ["batch_size", "sequence_length"]
        inputs = [helper.make_tensor_value_info("input_ids", self.integers, shape)]
        total = ["batch_size", "total_sequence_length"]
        if self.kind != "none":
            inputs.append(helper.make_tensor_value_info("attention_mask", self.integers, total))
        if self.positions:
            inputs.append(helper.make_tensor_value_info("position_ids", self.integers, shape))
        outputs = [helper.make_tensor_value_info("logits", self.floats, ["batch_size", "kept", VOCAB])]
        angles = np.outer(np.arange(CONTEXT), 100.0 ** -np.linspace(0, 1, HEAD_DIM // 2))
        self.cos = self.weight("cos", np.cos(angles))
        self.sin = self.weight("sin", np.sin(angles))
        self.sequence()
        x = self.op("Gather", [self.weight("embedding", self.normal(VOCAB, HIDDEN)), "input_ids"])
        for i in range(LAYERS):
            x = self.op("Add", [x, self.attention(i, x)])
            if self.kind != "none":
                last = "open" if self.open_head_dim else HEAD_DIM
                for part in ("key", "value"):
                    for name, length, into in (
                        (f"past_key_values.{i}.{part}", "past_sequence_length", inputs),
                        (f"present.{i}.{part}", "total_sequence_length", outputs),
                    ):
                        shape = ["batch_size", KV_HEADS, length, last]
                        into.append(helper.make_tensor_value_info(name, self.floats, shape))
        if self.keep:
            inputs.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
            self.weights.append(numpy_helper.from_array(np.array(0, np.int64), "num_logits_to_keep"))
            start = self.op("Reshape", [self.op("Neg", ["num_logits_to_keep"]), self.ints("one", 1)])
            x = self.op("Slice", [x, start, self.ints("far", 2**62), self.ints("axis", 1)])
        self.op("MatMul", [x, self.weight("head", 3 * self.normal(HIDDEN, VOCAB))], outputs=["logits"])
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def sequence(self) -> None:
        """Lengths, and for standard Attention the positions and the causal mask."""
        length = self.op("Shape", ["input_ids"], start=1, end=2)
        total = length if self.kind == "none" else self.op("Shape", ["attention_mask"], start=1, end=2)
        if self.kind == "shared":
            counted = self.op("ReduceSum", ["attention_mask", self.ints("axis", 1)], keepdims=0)
            counted = self.op("Cast", [counted], to=TensorProto.INT32)
            one = self.weight("one_int32", np.array([1]), np.int32)
            self.lengths = [self.op("Sub", [counted, one]), self.scalar(total, TensorProto.INT32)]
            return
        zero, one = self.weight("zero", np.array(0), np.int64), self.weight("unit", np.array(1), np.int64)
        past = self.scalar(self.op("Sub", [total, length]), TensorProto.INT64)
        end = self.scalar(total, TensorProto.INT64)
        queries = self.op("Range", [past, end, one])
        self.places = self.op("Unsqueeze", [queries, self.ints("first", 0)])
        column = self.op("Unsqueeze", [queries, self.ints("axis", 1)])
        self.mask = self.op("LessOrEqual", [self.op("Range", [zero, end, one]), column])

    def attention(self, i: int, x: str) -> str:
        q = self.op("MatMul", [x, self.weight(f"q{i}", self.normal(HIDDEN, HIDDEN))])
        k = self.op("MatMul", [x, self.weight(f"k{i}", self.normal(HIDDEN, KV_HEADS * HEAD_DIM))])
        v = self.op("MatMul", [x, self.weight(f"v{i}", self.normal(HIDDEN, KV_HEADS * HEAD_DIM))])
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        out = [f"attended.{i}", f"present.{i}.key", f"present.{i}.value"]
        inside = self.kind == "shared" and not self.positions
        if not inside:
            tables = [self.cos, self.sin, "position_ids" if self.positions else self.places]
            q = self.op("RotaryEmbedding", [q, *tables], num_heads=HEADS)
            k = self.op("RotaryEmbedding", [k, *tables], num_heads=KV_HEADS)
        if self.kind == "shared":
            self.op(
                "GroupQueryAttention",
                [q, k, v, *past, *self.lengths, *([self.cos, self.sin] if inside else [])],
                outputs=out,
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=int(inside),
            )
        else:
            cached = self.kind == "growing"
            self.op(
                "Attention",
                [q, k, v, self.mask, *(past if cached else [])],
                outputs=out if cached else out[:1],
                q_num_heads=HEADS,
                kv_num_heads=KV_HEADS,
            )
        return self.op("MatMul", [out[0], self.weight(f"o{i}", self.normal(HIDDEN, HIDDEN))])

    def op(
        self,
        kind: str,
        inputs: list[str],
        *,
        outputs: list[str] | None = None,
        domain: str = "",
        **attributes: int,
    ) -> str:
        outputs = outputs or [f"{kind}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def scalar(self, x: str, dtype: int) -> str:
        return self.op("Cast", [self.op("Squeeze", [x])], to=dtype)

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape) / np.sqrt(shape[0] if shape[0] < VOCAB else 1)

    def ints(self, name: str, value: int) -> str:
        return self.weight(name, np.array([value]), np.int64)

    def weight(self, name: str, array: np.ndarray, dtype: type | None = None) -> str:
        if all(w.name != name for w in self.weights):
            dtype = dtype or helper.tensor_dtype_to_np_dtype(self.floats)
            self.weights.append(numpy_helper.from_array(array.astype(dtype), name))
        return name
