"""Description + weights → canonical graph: standard ONNX at opset 23, one spelling per idea, weights unread.

The graph keeps the contract of docs/architecture.md ("The graph's contract"). It is right for any padding: positions
are counted from ``attention_mask``, and masked keys are seen by nobody. Targets lower it to what their runtime runs
fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from exporter.decoder import Attention, Decoder, FeedForward, Layer, Linear, Norm, Rope
from exporter.weights import Weight, WeightTensor

OPSET = 23
ROLE = "onnx_gpt.role"
"""Metadata key under which a node carries its role, e.g. ``layers.3.ffn.down``."""


def build(decoder: Decoder, weights: Mapping[str, Weight], *, context_length: int | None = None) -> ir.Model:
    """The canonical float32 graph of a decoder.

    Args:
        decoder: what the family says.
        weights: by role, as `exporter.match.match_weights` gives them.
        context_length: rows of the rotary tables; the model's own by default.
    """
    return _Builder(decoder, weights, context_length or decoder.context_length).model()


class _Builder:
    """Emits nodes in order. One instance builds one graph."""

    def __init__(self, decoder: Decoder, weights: Mapping[str, Weight], context_length: int) -> None:
        self.decoder = decoder
        self.weights = weights
        self.context_length = context_length
        self.tape = tape.Tape()
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}
        self.ropes: dict[Rope, tuple[ir.Value, ir.Value]] = {}
        self.masks: dict[int | None, ir.Value] = {}

    # Graph-level pieces ------------------------------------------------------------------------------------------

    def model(self) -> ir.Model:
        decoder = self.decoder
        self.input_ids = self.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        self.attention_mask = self.input(
            "attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"]
        )
        keep = self.logits_to_keep()
        self.sequence()
        x = self.embed()
        for i, layer in enumerate(decoder.layers):
            x = self.layer(f"layers.{i}", layer, x)
        x = self.op(
            "Slice",
            [x, keep, self.ints("int64_max", [2**63 - 1]), self.ints("axis_1", [1])],
            name="logits.keep",
        )
        x = self.norm("norm", decoder.norm, x)
        logits = self.head(x)
        logits.name = "logits"
        self.typed(logits, ir.DataType.FLOAT, ["batch_size", "kept", decoder.vocab_size])
        self.outputs.insert(0, logits)
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.tape.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name=decoder.family,
        )
        return ir.Model(graph, ir_version=10, producer_name="onnx-gpt")

    def logits_to_keep(self) -> ir.Value:
        """Start of the logits' slice: −n for the last n tokens, and −0 = 0 for all of them."""
        value = self.input("num_logits_to_keep", ir.DataType.INT64, [])
        value.const_value = ir.tensor(np.array(0, np.int64), name=value.name)
        self.initializers["num_logits_to_keep"] = value  # a default, so that feeding it is optional
        negative = self.op("Neg", [value], name="logits.start")
        return self.op("Reshape", [negative, self.ints("shape_1", [1])], name="logits.start_1d")

    def sequence(self) -> None:
        """What is known of the tokens: how many, which are real, and where they stand."""
        one = self.ints("axis_1", [1])
        self.total = self.op("Shape", [self.attention_mask], name="total", start=1, end=2)
        self.length = self.op("Shape", [self.input_ids], name="length", start=1, end=2)
        past = self.op("Sub", [self.total, self.length], name="past")
        counted = self.op(
            "CumSum", [self.attention_mask, self.scalar("axis_1_scalar", 1)], name="positions.count"
        )
        positions = self.op("Sub", [counted, one], name="positions.total")
        positions = self.op("Max", [positions, self.ints("axis_0", [0])], name="positions.clipped")
        self.positions = self.op(
            "Slice", [positions, past, self.ints("int64_max", [2**63 - 1]), one], name="positions"
        )
        self.past = past

    def mask(self, window: int | None) -> ir.Value:
        """bool ``[B, 1, S, T]``: query s may see key t. Made once for each window."""
        if window not in self.masks:
            name = "mask" if window is None else f"mask.window_{window}"
            zero, one = self.scalar("zero", 0), self.scalar("one", 1)
            total = self.op("Squeeze", [self.total], name=f"{name}.total")
            past = self.op("Squeeze", [self.past], name=f"{name}.past")
            keys = self.op("Range", [zero, total, one], name=f"{name}.keys")
            queries = self.op("Range", [past, total, one], name=f"{name}.queries")
            queries = self.op("Unsqueeze", [queries, self.ints("axis_1", [1])], name=f"{name}.queries_column")
            seen = self.op("LessOrEqual", [keys, queries], name=f"{name}.causal")
            if window is not None:
                oldest = self.op(
                    "Sub", [queries, self.ints(f"window_{window}", [window])], name=f"{name}.oldest"
                )
                recent = self.op("Greater", [keys, oldest], name=f"{name}.recent")
                seen = self.op("And", [seen, recent], name=f"{name}.causal_recent")
            valid = self.op("Cast", [self.attention_mask], name=f"{name}.valid", to=ir.DataType.BOOL)
            valid = self.op("Unsqueeze", [valid, self.ints("axes_1_2", [1, 2])], name=f"{name}.valid_4d")
            self.masks[window] = self.op("And", [seen, valid], name=name)
        return self.masks[window]

    def embed(self) -> ir.Value:
        table = self.weight("embedding.weight")
        x = self.op("Gather", [table, self.input_ids], name="embedding", role="embedding", axis=0)
        if self.decoder.embedding_scale != 1.0:
            scale = self.constant("embedding.scale", np.array(self.decoder.embedding_scale, np.float32))
            x = self.op("Mul", [x, scale], name="embedding.scaled")
        if self.decoder.positions is not None:
            rows = self.weight("positions.weight")
            placed = self.op(
                "Gather", [rows, self.positions], name="positions.rows", role="positions", axis=0
            )
            x = self.op("Add", [x, placed], name="embedding.placed")
        return x

    def head(self, x: ir.Value) -> ir.Value:
        decoder = self.decoder
        if decoder.tied:
            table = self.op("Transpose", [self.weight("embedding.weight")], name="head.table", perm=[1, 0])
            logits = self.op("MatMul", [x, table], name="head", role="head")
            if decoder.head.bias is not None:
                logits = self.op("Add", [logits, self.weight("head.bias")], name="head.biased")
        else:
            logits = self.linear("head", decoder.head, x)
        if decoder.logit_softcap:
            cap = self.constant("logits.cap", np.array(decoder.logit_softcap, np.float32))
            bounded = self.op(
                "Tanh", [self.op("Div", [logits, cap], name="logits.scaled")], name="logits.tanh"
            )
            logits = self.op("Mul", [bounded, cap], name="logits.capped")
        return logits

    # Layers ------------------------------------------------------------------------------------------------------

    def layer(self, role: str, layer: Layer, x: ir.Value) -> ir.Value:
        attended = self.attention(
            f"{role}.attention", layer.attention, self.norm(f"{role}.attention_norm", layer.attention_norm, x)
        )
        if layer.parallel:
            fed = self.feed_forward(
                f"{role}.ffn", layer.ffn, self.norm(f"{role}.ffn_norm", layer.ffn_norm, x)
            )
            both = self.op("Add", [attended, fed], name=f"{role}.branches")
            return self.op("Add", [x, both], name=f"{role}.residual")
        if layer.attention_post_norm is not None:
            attended = self.norm(f"{role}.attention_post_norm", layer.attention_post_norm, attended)
        x = self.op("Add", [x, attended], name=f"{role}.attention_residual")
        fed = self.feed_forward(f"{role}.ffn", layer.ffn, self.norm(f"{role}.ffn_norm", layer.ffn_norm, x))
        if layer.ffn_post_norm is not None:
            fed = self.norm(f"{role}.ffn_post_norm", layer.ffn_post_norm, fed)
        return self.op("Add", [x, fed], name=f"{role}.residual")

    def attention(self, role: str, attention: Attention, x: ir.Value) -> ir.Value:
        q = self.linear(f"{role}.q", attention.q, x)
        k = self.linear(f"{role}.k", attention.k, x)
        v = self.linear(f"{role}.v", attention.v, x)
        if attention.q_norm is not None:
            q = self.head_norm(f"{role}.q_norm", attention.q_norm, q, attention.heads, attention.head_dim)
        if attention.k_norm is not None:
            k = self.head_norm(f"{role}.k_norm", attention.k_norm, k, attention.kv_heads, attention.head_dim)
        if attention.rope is not None:
            q = self.rotary(f"{role}.q_rope", attention.rope, q, attention.heads, attention.head_dim)
            k = self.rotary(f"{role}.k_rope", attention.rope, k, attention.kv_heads, attention.head_dim)
        past, present = self.cache(int(role.split(".")[1]), attention)
        attributes: dict[str, Any] = {
            "q_num_heads": attention.heads,
            "kv_num_heads": attention.kv_heads,
            "scale": float(attention.scale),
        }
        if attention.softcap:
            attributes["softcap"] = float(attention.softcap)
        y = self.value(f"{role}.heads")
        self.tape.op_multi_out(
            "Attention",
            [q, k, v, self.mask(attention.window), *past],
            attributes,
            outputs=[y, *present],
            name=f"{role}.heads",
            metadata_props={ROLE: f"{role}.heads"},
        )
        return self.linear(f"{role}.o", attention.o, y)

    def cache(self, i: int, attention: Attention) -> tuple[list[ir.Value], list[ir.Value]]:
        """Past inputs and present outputs of layer i, ``[B, K, past or total, D]``."""
        past, present = [], []
        for which in ("key", "value"):
            shape = ["batch_size", attention.kv_heads, "past_sequence_length", attention.head_dim]
            past.append(self.input(f"past_key_values.{i}.{which}", ir.DataType.FLOAT, shape))
            shape = ["batch_size", attention.kv_heads, "total_sequence_length", attention.head_dim]
            out = self.value(f"present.{i}.{which}")
            self.typed(out, ir.DataType.FLOAT, shape)
            present.append(out)
        self.outputs.extend(present)
        return past, present

    def head_norm(self, role: str, norm: Norm, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        split = self.ints(f"split_{heads}_{head_dim}", [0, 0, heads, head_dim])
        merge = self.ints(f"merge_{heads * head_dim}", [0, 0, heads * head_dim])
        x = self.op("Reshape", [x, split], name=f"{role}.split")
        return self.op("Reshape", [self.norm(role, norm, x), merge], name=f"{role}.merge")

    def rotary(self, role: str, rope: Rope, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        attributes = {"num_heads": heads}
        if rope.rotated != head_dim:
            attributes["rotary_embedding_dim"] = rope.rotated
        return self.op(
            "RotaryEmbedding", [x, *self.rotary_tables(rope), self.positions], name=role, **attributes
        )

    def rotary_tables(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """cos and sin ``[context, rotated/2]``, in float32 as transformers computes them."""
        if rope not in self.ropes:
            suffix = "" if not self.ropes else f"_{len(self.ropes)}"
            angles = np.outer(
                np.arange(self.context_length, dtype=np.float32), np.array(rope.frequencies, np.float32)
            )
            factor = np.float32(rope.factor)
            self.ropes[rope] = (
                self.constant(f"rotary.cos{suffix}", np.cos(angles) * factor),
                self.constant(f"rotary.sin{suffix}", np.sin(angles) * factor),
            )
        return self.ropes[rope]

    def feed_forward(self, role: str, ffn: FeedForward, x: ir.Value) -> ir.Value:
        up = self.linear(f"{role}.up", ffn.up, x)
        if ffn.gate is None:
            hidden = self.activation(role, ffn.activation, up)
        else:
            gate = self.linear(f"{role}.gate", ffn.gate, x)
            hidden = self.op("Mul", [self.activation(role, ffn.activation, gate), up], name=f"{role}.gated")
        return self.linear(f"{role}.down", ffn.down, hidden)

    def activation(self, role: str, kind: str, x: ir.Value) -> ir.Value:
        if kind == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x], name=f"{role}.sigmoid")], name=f"{role}.silu")
        if kind == "relu":
            return self.op("Relu", [x], name=f"{role}.relu")
        return self.op(
            "Gelu", [x], name=f"{role}.gelu", approximate="tanh" if kind == "gelu_tanh" else "none"
        )

    def linear(self, role: str, linear: Linear, x: ir.Value) -> ir.Value:
        y = self.op("MatMul", [x, self.weight(f"{role}.weight", transpose=True)], name=role, role=role)
        if linear.bias is not None:
            y = self.op("Add", [y, self.weight(f"{role}.bias")], name=f"{role}.biased")
        return y

    def norm(self, role: str, norm: Norm, x: ir.Value) -> ir.Value:
        inputs = [x, self.weight(f"{role}.weight")]
        if norm.kind == "layer" and norm.bias is not None:
            inputs.append(self.weight(f"{role}.bias"))
        op = "RMSNormalization" if norm.kind == "rms" else "LayerNormalization"
        return self.op(op, inputs, name=role, role=role, axis=-1, epsilon=float(norm.epsilon))

    # Values ------------------------------------------------------------------------------------------------------

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], *, name: str, role: str = "", **attributes: Any
    ) -> ir.Value:
        out = self.value(name)
        self.tape.op(
            op_type,
            inputs,
            attributes=attributes,
            output=out,
            name=name,
            metadata_props={ROLE: role} if role else None,
        )
        return out

    def value(self, name: str) -> ir.Value:
        return ir.Value(name=name)

    @staticmethod
    def typed(value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def weight(self, role: str, *, transpose: bool = False) -> ir.Value:
        if role not in self.initializers:
            self.initializer(WeightTensor(role, self.weights[role], transpose=transpose))
        return self.initializers[role]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.initializers:
            self.initializer(ir.tensor(array, name=name))
        return self.initializers[name]

    def ints(self, name: str, values: Sequence[int]) -> ir.Value:
        return self.constant(name, np.array(values, np.int64))

    def scalar(self, name: str, value: int) -> ir.Value:
        return self.constant(name, np.array(value, np.int64))

    def initializer(self, tensor: ir.TensorProtocol) -> None:
        self.initializers[str(tensor.name)] = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape),
            const_value=tensor,
        )
