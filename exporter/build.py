"""Description + weights → canonical graph: standard ONNX at opset 23, one spelling per idea, weights unread.

The graph keeps the contract of docs/architecture.md ("The graph's contract"). It is right for any padding:
positions are counted from ``attention_mask``, and masked keys are seen by nobody. Targets lower it to what
their runtime runs fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter import alibi, sinusoids
from exporter.control import END, MASKED, Control, start_of_logits
from exporter.decoder import (
    Alibi,
    Attention,
    Decoder,
    FeedForward,
    Layer,
    Linear,
    Norm,
    Rope,
    Sinusoids,
    Xielu,
)
from exporter.emitter import Emitter, typed
from exporter.weights import Weight

OPSET = 23


def build(decoder: Decoder, weights: Mapping[str, Weight], *, context_length: int | None = None) -> ir.Model:
    """The canonical float32 graph of a decoder.

    Args:
        decoder: what the family says.
        weights: by role, as `exporter.match.match_weights` gives them.
        context_length: rows of the tables of positions; the model's own by default.
    """
    return _Builder(decoder, weights, context_length or decoder.context_length).model()


class _Builder(Emitter):
    """The graph of one decoder. Methods are in the order of the data."""

    def __init__(self, decoder: Decoder, weights: Mapping[str, Weight], context_length: int) -> None:
        super().__init__(weights)
        self.decoder = decoder
        self.context_length = context_length
        self.input_ids = self.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        self.attention_mask = self.input(
            "attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"]
        )
        self.kept_from = start_of_logits(self)
        self.control = Control(self, self.input_ids, self.attention_mask)
        self.tables: dict[Rope, tuple[ir.Value, ir.Value]] = {}
        self.biased: dict[tuple[Alibi, int | None], ir.Value] = {}
        self.presents: list[ir.Value] = []

    def model(self) -> ir.Model:
        x = self.embed()
        for i, layer in enumerate(self.decoder.layers):
            x = self.layer(f"layers.{i}", layer, x)
        last = [x, self.kept_from, self.ints("int64_max", [END]), self.ints("axis_1", [1])]
        x = self.norm("norm", self.decoder.norm, self.op("Slice", last, name="logits.keep"))
        logits = self.head(x)
        logits.name = "logits"
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["batch_size", "kept", self.decoder.vocab_size])
        graph = self.graph([logits, *self.presents], name=self.decoder.family, opset=OPSET)
        return ir.Model(graph, ir_version=10, producer_name="onnx-gpt")

    # Tokens in, logits out ----------------------------------------------------------------------------------

    def embed(self) -> ir.Value:
        table = self.weight("embedding.weight")
        x = self.op("Gather", [table, self.input_ids], name="embedding", role="embedding", axis=0)
        if self.decoder.embedding_scale != 1.0:
            scale = self.scalar("embedding.scale", float(self.decoder.embedding_scale))
            x = self.op("Mul", [x, scale], name="embedding.scaled")
        found = self.decoder.positions
        if found is not None:
            if isinstance(found, Sinusoids):
                made = sinusoids.table(found, self.context_length, self.decoder.hidden_size)
                places = self.constant("positions.sinusoids", made)
            else:
                places = self.weight("positions.weight")
            rows = [places, self.control.positions]
            placed = self.op("Gather", rows, name="positions.rows", role="positions", axis=0)
            x = self.op("Add", [x, placed], name="embedding.placed")
        return self.norm("embedding_norm", self.decoder.embedding_norm, x)

    def head(self, x: ir.Value) -> ir.Value:
        if self.decoder.head_input is not None:
            x = self.linear("head_input", self.decoder.head_input, x)
        logits = self.tied_head(x) if self.decoder.tied else self.linear("head", self.decoder.head, x)
        if self.decoder.logit_softcap:
            cap = self.scalar("logits.cap", float(self.decoder.logit_softcap))
            scaled = self.op("Div", [logits, cap], name="logits.scaled")
            bounded = self.op("Tanh", [scaled], name="logits.tanh")
            logits = self.op("Mul", [bounded, cap], name="logits.capped")
        return logits

    def tied_head(self, x: ir.Value) -> ir.Value:
        """The embedding's own table, turned round in the graph so that it is stored once."""
        table = self.op("Transpose", [self.weight("embedding.weight")], name="head.table", perm=[1, 0])
        logits = self.op("MatMul", [x, table], name="head", role="head")
        if self.decoder.head.bias is not None:
            logits = self.op("Add", [logits, self.weight("head.bias")], name="head.biased")
        return logits

    # Layers -------------------------------------------------------------------------------------------------

    def layer(self, role: str, layer: Layer, x: ir.Value) -> ir.Value:
        """``[B, S, E]`` → ``[B, S, E]``."""
        normed = self.norm(f"{role}.attention_norm", layer.attention_norm, x)
        attended = self.attention(f"{role}.attention", layer.attention, normed)
        if layer.parallel:
            if layer.ffn_norm is not None:
                normed = self.norm(f"{role}.ffn_norm", layer.ffn_norm, x)
            fed = self.feed_forward(f"{role}.ffn", layer.ffn, normed)
            both = self.op("Add", [attended, fed], name=f"{role}.branches")
            return self.op("Add", [x, both], name=f"{role}.residual")
        attended = self.norm(f"{role}.attention_post_norm", layer.attention_post_norm, attended)
        x = self.op("Add", [x, attended], name=f"{role}.attention_residual")
        normed = self.norm(f"{role}.ffn_norm", layer.ffn_norm, x)
        fed = self.feed_forward(f"{role}.ffn", layer.ffn, normed)
        fed = self.norm(f"{role}.ffn_post_norm", layer.ffn_post_norm, fed)
        return self.op("Add", [x, fed], name=f"{role}.residual")

    def attention(self, role: str, attention: Attention, x: ir.Value) -> ir.Value:
        heads, kv_heads = attention.heads, attention.kv_heads
        q = self.linear(f"{role}.q", attention.q, x)
        k = self.linear(f"{role}.k", attention.k, x)
        v = self.linear(f"{role}.v", attention.v, x)
        q = self.placed(f"{role}.q", attention, attention.q_norm, q, heads)
        k = self.placed(f"{role}.k", attention, attention.k_norm, k, kv_heads)
        past, present = self.cache(int(role.split(".")[1]), attention)
        attributes: dict[str, Any] = {"scale": float(attention.scale)}
        if attention.softcap:
            attributes["softcap"] = float(attention.softcap)
        y = ir.Value(name=f"{role}.heads")
        self.op_into(
            "Attention",
            [q, k, v, self.mask(attention), *past],
            [y, *present],
            role=f"{role}.heads",
            q_num_heads=heads,
            kv_num_heads=kv_heads,
            **attributes,
        )
        return self.linear(f"{role}.o", attention.o, y)

    def mask(self, attention: Attention) -> ir.Value:
        """What a query sees: bool ``[B, 1, S, T]``, or with a bias by position float32 ``[B, H, S, T]``."""
        mask, found = self.control.mask(attention.window), attention.alibi
        if found is None:
            return mask
        key = (found, attention.window)
        if key not in self.biased:
            tables = {one for one, _ in self.biased} | {found}
            table = self.constant(f"alibi_{len(tables) - 1}", alibi.table(found, self.context_length))
            bias = self.control.bias(table, by_place=found.counts_padding)
            inputs = [mask, bias, self.scalar("masked", MASKED)]
            self.biased[key] = self.op("Where", inputs, name=f"{mask.name}.biased_{len(self.biased)}")
        return self.biased[key]

    def cache(self, i: int, attention: Attention) -> tuple[list[ir.Value], list[ir.Value]]:
        """Past inputs and present outputs of layer i, ``[B, K, past or total, D]``."""

        def shape(length: str) -> Sequence[int | str]:
            return ["batch_size", attention.kv_heads, length, attention.head_dim]

        past, present = [], []
        for which in ("key", "value"):
            dtype = ir.DataType.FLOAT
            past.append(self.input(f"past_key_values.{i}.{which}", dtype, shape("past_sequence_length")))
            present.append(typed(f"present.{i}.{which}", dtype, shape("total_sequence_length")))
        self.presents.extend(present)
        return past, present

    def placed(self, role: str, attention: Attention, norm: Norm | None, x: ir.Value, heads: int) -> ir.Value:
        """q or k ``[B, S, H·D]`` behind their norm and their rotation."""
        rope, size = attention.rope, attention.head_dim
        if rope is not None and attention.rotates_first:
            x = self.rotary(f"{role}_rope", rope, x, heads, size)
        x = self.head_norm(f"{role}_norm", norm, x, heads, size)
        if rope is not None and not attention.rotates_first:
            x = self.rotary(f"{role}_rope", rope, x, heads, size)
        return x

    def head_norm(self, role: str, norm: Norm | None, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """A norm over each head of ``[B, S, H·D]``, or over all of them together."""
        if norm is None or not norm.fits(head_dim):
            return self.norm(role, norm, x)
        split = self.ints(f"split_{heads}_{head_dim}", [0, 0, heads, head_dim])
        merge = self.ints(f"merge_{heads * head_dim}", [0, 0, heads * head_dim])
        x = self.op("Reshape", [x, split], name=f"{role}.split")
        return self.op("Reshape", [self.norm(role, norm, x, head_dim), merge], name=f"{role}.merge")

    def rotary(self, role: str, rope: Rope, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        attributes: dict[str, Any] = {"num_heads": heads}
        if rope.rotated != head_dim:
            attributes["rotary_embedding_dim"] = rope.rotated
        inputs = [x, *self.rotary_tables(rope), self.control.positions]
        return self.op("RotaryEmbedding", inputs, name=role, **attributes)

    def rotary_tables(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """cos and sin ``[context, rotated/2]``, in float32 as transformers computes them."""
        if rope not in self.tables:
            suffix = f"_{len(self.tables)}" if self.tables else ""
            steps = np.arange(self.context_length, dtype=np.float32)
            angles = np.outer(steps, np.array(rope.frequencies, np.float32))
            factor = np.float32(rope.factor)
            self.tables[rope] = (
                self.constant(f"rotary.cos{suffix}", np.cos(angles) * factor),
                self.constant(f"rotary.sin{suffix}", np.sin(angles) * factor),
            )
        return self.tables[rope]

    def feed_forward(self, role: str, ffn: FeedForward, x: ir.Value) -> ir.Value:
        up = self.linear(f"{role}.up", ffn.up, x)
        if ffn.gate is None:
            hidden = self.activation(role, ffn, up)
        else:
            gate = self.activation(role, ffn, self.linear(f"{role}.gate", ffn.gate, x))
            hidden = self.op("Mul", [gate, up], name=f"{role}.gated")
        return self.linear(f"{role}.down", ffn.down, hidden)

    def activation(self, role: str, ffn: FeedForward, x: ir.Value) -> ir.Value:
        kind = ffn.activation
        if kind == "xielu" and ffn.xielu is not None:
            return self.xielu(f"{role}.xielu", ffn.xielu, x)
        if kind == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x], name=f"{role}.sigmoid")], name=f"{role}.silu")
        if kind in ("relu", "relu2"):
            x = self.op("Relu", [x], name=f"{role}.relu")
            return x if kind == "relu" else self.op("Mul", [x, x], name=f"{role}.relu2")
        approximate = "tanh" if kind == "gelu_tanh" else "none"
        return self.op("Gelu", [x], name=f"{role}.gelu", approximate=approximate)

    def xielu(self, role: str, xielu: Xielu, x: ir.Value) -> ir.Value:
        a, b = (
            self.op(
                "Softplus",
                [self.weight(f"{role}.{side}")],
                name=f"{role}.{side}.softplus",
                role=f"{role}.{side}",
            )
            for side in ("positive", "negative")
        )
        relu = self.op("Relu", [x], name=f"{role}.relu")
        square = self.op("Mul", [relu, relu], name=f"{role}.square")
        elu = self.op("Elu", [x], name=f"{role}.elu")
        bent = self.op("Sub", [elu, x], name=f"{role}.bent")
        curves = (
            self.op("Mul", [square, a], name=f"{role}.up"),
            self.op("Mul", [bent, b], name=f"{role}.down"),
        )
        curved = self.op("Add", curves, name=f"{role}.curved")
        line = self.op("Mul", [elu, self.scalar("xielu.beta", xielu.beta)], name=f"{role}.line")
        return self.op("Add", [curved, line], name=f"{role}.sum")

    def linear(self, role: str, linear: Linear, x: ir.Value) -> ir.Value:
        y = self.op("MatMul", [x, self.weight(f"{role}.weight", transpose=True)], name=role, role=role)
        if linear.bias is not None:
            y = self.op("Add", [y, self.weight(f"{role}.bias")], name=f"{role}.biased")
        return y

    def norm(self, role: str, norm: Norm | None, x: ir.Value, channels: int | None = None) -> ir.Value:
        """x itself where there is no norm; one without a gain is of E channels unless others are given."""
        if norm is None:
            return x
        if norm.weight is None:
            size = channels or self.decoder.hidden_size
            gain = self.constant(f"norm.ones_{size}", np.ones(size, np.float32))
        else:
            gain = self.weight(f"{role}.weight")
        inputs = [x, gain]
        if norm.kind == "layer" and norm.bias is not None:
            inputs.append(self.weight(f"{role}.bias"))
        op = "RMSNormalization" if norm.kind == "rms" else "LayerNormalization"
        return self.op(op, inputs, name=role, role=role, axis=-1, epsilon=float(norm.epsilon))
