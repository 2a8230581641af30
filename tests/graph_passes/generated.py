"""GPT-like graphs as exporters might write them, drawn by hypothesis, and near misses that must stay what they are.

A `Spec` says what the decoder is and how each of its ideas is spelled; `build` writes the graph, `Runner` feeds it, in
its own interface or in the contract's. A near miss changes one thing in the first layer so that it only looks like what
the rules know: it computes something else, and has to go on doing so.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from decoders import session
from hypothesis import strategies as st

from exporter.onnx_format.reader import take_in

VOCAB, FFN, CONTEXT = 41, 40, 32
LOWEST = float(np.finfo(np.float32).min)

SPELLINGS: Mapping[str, Sequence[Any]] = {
    "opset": (17, 18, 20, 21, 22, 23, 24),
    "layers": (1, 2),
    "heads": ((4, 4), (4, 2), (2, 1)),
    "head_dim": (8, 16),
    "cache": (True, False),
    "mask_input": (True, True, False),
    "tied": (True, False),
    "norm": ("rms", "rms", "layer", "layer_op"),
    "square": ("pow", "mul"),
    "root": ("reciprocal", "divide_one", "divide"),
    "gain_first": (True, False),
    "casts": (True, False),
    "constants": ("node", "initializer"),
    "rotary": ("half", "interleaved", "none"),
    "rotated": (1, 2),
    "tables": ("cached", "computed", "rows"),
    "positions": ("counted", "range", "input"),
    "mask": ("additive", "where", "buffer"),
    "scale": ("after", "divide", "query", "both"),
    "repeat": ("expand", "concat"),
    "qk_norm": (False, False, True),
    "softcap": (0.0, 0.0, 4.0),
    "bias": (True, False),
    "linear": ("matmul", "gemm", "packed"),
    "ffn": ("swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2", "silu_div"),
    "half_weights": (False, False, True),
    "flipped_sums": (True, False),
    "unsqueezed_heads": (True, False),
}
"""Every choice that a graph takes, with its options."""

NEAR_MISSES = (
    "broadcast_gain",
    "scalar_gain",
    "other_reader",
    "given_out",
    "swapped_tables",
    "turned_back",
    "flipped_mask",
    "mask_of_next",
    "weak_mask",
    "wrong_mean_axis",
    "epsilon_per_channel",
    "cubed",
    "reversed_difference",
    "wrong_softmax_axis",
    "tiled_heads",
    "other_gate",
    "other_gelu",
    "key_not_rotated",
    "query_shifted",
    "no_residual",
    "uneven_scale",
    "values_of_keys",
    "unmasked",
)


SUITS: Mapping[str, Mapping[str, Any]] = {
    "broadcast_gain": {"norm": "rms"},
    "scalar_gain": {"norm": "rms"},
    "other_reader": {"norm": "rms"},
    "given_out": {"norm": "layer"},
    "reversed_difference": {"norm": "layer"},
    "swapped_tables": {"rotary": "half"},
    "turned_back": {"rotary": "interleaved"},
    "weak_mask": {"mask": "where"},
    "tiled_heads": {"heads": (4, 2)},
    "other_gate": {"ffn": "swiglu"},
    "other_gelu": {"ffn": "gelu_tanh"},
    "uneven_scale": {"scale": "after"},
}
"""Choices with which a near miss is one; any do for the others."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A decoder and its spelling; ``choices`` by the names of `SPELLINGS`."""

    choices: tuple[tuple[str, Any], ...]
    near_miss: str = ""
    seed: int = 0

    def __getattr__(self, name: str) -> Any:
        for key, value in self.choices:
            if key == name:
                return value
        raise AttributeError(name)

    def __repr__(self) -> str:
        choices = ", ".join(f"{name}={option!r}" for name, option in self.choices)
        return f"spec({choices}, near_miss={self.near_miss!r}, seed={self.seed})"

    @property
    def hidden(self) -> int:
        return int(self.heads[0] * self.head_dim)


def spec(near_miss: str = "", seed: int = 0, **choices: Any) -> Spec:
    """The first option of each choice that is not given; some give way to others, or to what a near miss needs."""
    choices = {**choices, **SUITS.get(near_miss, {})}
    chosen = {name: choices.get(name, options[0]) for name, options in SPELLINGS.items()}
    if chosen["mask"] == "buffer":
        chosen["mask_input"] = chosen["mask_input"] and chosen["cache"]
    if not chosen["mask_input"] and chosen["positions"] == "counted":
        chosen["positions"] = "range"
    if chosen["cache"] and not chosen["mask_input"]:
        chosen["positions"] = "range"
    return Spec(tuple(chosen.items()), near_miss, seed)


def specs(near_misses: Sequence[str] = ("",)) -> st.SearchStrategy[Spec]:
    """Any decoder in any spelling."""
    parts = {name: st.sampled_from(options) for name, options in SPELLINGS.items()}
    return st.builds(spec, st.sampled_from(near_misses), st.integers(0, 99), **parts)


def build(given: Spec) -> ir.Model:
    """The graph, as a file would hold it."""
    return _Writer(given).model()


def taken_in(given: Spec) -> ir.Model:
    """The graph as a source gives it: weights are expressions."""
    model = ir.from_proto(ir.to_proto(build(given)))
    take_in(model)
    return model


class _Writer:
    """Writes one graph, node by node, as an exporter would trace it."""

    def __init__(self, given: Spec) -> None:
        self.s = given
        self.rng = np.random.default_rng(given.seed)
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []
        self.batch, self.length = "batch_size", "sequence_length"
        self.layer = 0

    # Nodes and constants ------------------------------------------------------------------------------

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        node = ir.node(
            op_type, list(inputs), attributes, num_outputs=outputs, name=f"/n{len(self.nodes)}/{op_type}"
        )
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}_output_{i}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def constant(self, array: Any, dtype: Any = None) -> ir.Value:
        tensor = ir.tensor(np.asarray(array, dtype))
        if self.s.constants == "node":
            return self.op("Constant", value=tensor)  # type: ignore[no-any-return]
        return self.initializer(f"c{len(self.initializers)}", tensor.numpy())

    def ints(self, *values: int) -> ir.Value:
        return self.constant(values, np.int64)

    def number(self, value: float) -> ir.Value:
        return self.constant(value, np.float32)

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(np.array(array, order="C"), name=name))
        self.initializers.append(value)
        return value

    def weight(self, name: str, *shape: int, centre: float = 0.0) -> ir.Value:
        spread = 1.5 / math.sqrt(shape[0]) if len(shape) == 2 else 0.3
        array = (centre + spread * self.rng.standard_normal(shape)).astype(np.float32)
        if not self.s.half_weights:
            return self.initializer(name, array)
        stored = self.initializer(name, array.astype(np.float16))
        return self.op("Cast", stored, to=ir.DataType.FLOAT)  # type: ignore[no-any-return]

    def input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        value = ir.val(name, dtype, shape)
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, *shape: int | str) -> None:
        value = self.op("Identity", value)
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.outputs.append(value)

    def misses(self, name: str) -> bool:
        return self.layer == 0 and self.s.near_miss == name

    def mean(self, x: ir.Value, axis: int) -> ir.Value:
        if self.s.opset < 18:
            return self.op("ReduceMean", x, axes=[axis], keepdims=1)  # type: ignore[no-any-return]
        return self.op("ReduceMean", x, self.ints(axis), keepdims=1)  # type: ignore[no-any-return]

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op("Add", b, a) if self.s.flipped_sums else self.op("Add", a, b)  # type: ignore[no-any-return]

    def shaped(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.op("Reshape", x, self.ints(*shape))  # type: ignore[no-any-return]

    def cut(self, x: ir.Value, start: int, end: int, axis: int = -1, step: int = 1) -> ir.Value:
        bounds = [self.ints(v) for v in (start, end, axis, step)]
        return self.op("Slice", x, *bounds)  # type: ignore[no-any-return]

    # What a call says ---------------------------------------------------------------------------------

    def model(self) -> ir.Model:
        s = self.s
        ids = self.input("input_ids", ir.DataType.INT64, self.batch, self.length)
        self.ids = ids
        self.total_name = "total_sequence_length" if s.cache else self.length
        self.mask_in = None
        if s.mask_input:
            self.mask_in = self.input("attention_mask", ir.DataType.INT64, self.batch, self.total_name)
        self.position_in = None
        if s.positions == "input":
            self.position_in = self.input("position_ids", ir.DataType.INT64, self.batch, self.length)
        self.pasts = [self._past(i) for i in range(s.layers)] if s.cache else []
        self._lengths()
        self.mask = self._mask()
        x = self._embed(ids)
        if s.rotary != "none":
            self.cos, self.sin = self._tables()
        for self.layer in range(s.layers):
            x = self._block(x)
        self.layer = -1
        logits = self._head(self._norm(x, "norm", s.hidden))
        self.output(logits, "logits", ir.DataType.FLOAT, self.batch, self.length, VOCAB)
        self.outputs.insert(0, self.outputs.pop())
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": s.opset},
            name="generated",
        )
        return ir.Model(graph, ir_version=10, producer_name="pytorch")

    def _past(self, i: int) -> tuple[ir.Value, ir.Value]:
        shape = (self.batch, self.s.heads[1], "past_sequence_length", self.s.head_dim)
        key, value = (
            self.input(f"past_key_values.{i}.{w}", ir.DataType.FLOAT, *shape) for w in ("key", "value")
        )
        return key, value

    def _dim(self, x: ir.Value, axis: int) -> ir.Value:
        return self.op("Gather", self.op("Shape", x), self.constant(axis, np.int64), axis=0)  # type: ignore[no-any-return]

    def _lengths(self) -> None:
        """S, P and T as scalars."""
        self.tokens = self._dim(self.ids, 1)
        if self.s.cache:
            self.past = self._dim(self.pasts[0][0], 2)
            self.total = self.op("Add", self.past, self.tokens)
        else:
            self.past, self.total = self.constant(0, np.int64), self.tokens

    def _positions(self) -> ir.Value:
        """[B, S], or [1, S] where they are counted without the mask."""
        if self.position_in is not None:
            return self.position_in
        if self.s.positions == "range" or self.mask_in is None:
            span = self.op("Range", self.past, self.total, self.constant(1, np.int64))
            return self.op("Unsqueeze", span, self.ints(0))  # type: ignore[no-any-return]
        counted = self.op("CumSum", self.mask_in, self.constant(1, np.int64))
        counted = self.op(
            "Max", self.op("Sub", counted, self.constant(1, np.int64)), self.constant(0, np.int64)
        )
        start = self.op("Unsqueeze", self.past, self.ints(0))
        end = self.ints(2**63 - 1)
        return self.op("Slice", counted, start, end, self.ints(1))  # type: ignore[no-any-return]

    def _seen(self) -> ir.Value:
        """bool [S, T], or [1, 1, S, T] of a buffer: the key is not after the query."""
        flipped, ahead = (self.s.near_miss == name for name in ("flipped_mask", "mask_of_next"))
        one = self.constant(1, np.int64)
        if self.s.mask == "buffer":
            square = np.ones((CONTEXT, CONTEXT), np.bool_)
            kind = np.triu(square) if flipped else np.tril(square, int(ahead))
            buffer = self.initializer("bias", kind[None, None])
            for axis, (start, end) in (
                (2, (self.past, self.total)),
                (3, (self.constant(0, np.int64), self.total)),
            ):
                bounds = [self.op("Unsqueeze", v, self.ints(0)) for v in (start, end)]
                buffer = self.op("Slice", buffer, *bounds, self.ints(axis), self.ints(1))
            return buffer
        keys = self.op(
            "Unsqueeze", self.op("Range", self.constant(0, np.int64), self.total, one), self.ints(0)
        )
        queries = self.op("Unsqueeze", self.op("Range", self.past, self.total, one), self.ints(1))
        if ahead:
            queries = self.op("Add", queries, one)
        return self.op("GreaterOrEqual" if flipped else "LessOrEqual", keys, queries)  # type: ignore[no-any-return]

    def _mask(self) -> ir.Value:
        """What `_scores` wants: bool [·, ·, S, T], or numbers to add."""
        seen = self._seen()
        if self.s.mask != "buffer":
            seen = self.op("Unsqueeze", seen, self.ints(0, 1))
        if self.mask_in is not None:
            valid = self.op("Cast", self.mask_in, to=ir.DataType.BOOL)
            seen = self.op("And", seen, self.op("Unsqueeze", valid, self.ints(1, 2)))
        if self.s.mask != "additive":
            return seen
        low = -2.0 if self.s.near_miss == "weak_mask" else LOWEST
        return self.op("Where", seen, self.number(0.0), self.number(low))  # type: ignore[no-any-return]

    def _tables(self) -> tuple[ir.Value, ir.Value]:
        """cos and sin, [B, S, R] with each angle twice, R rotated channels; interleaved: pairs side by side."""
        s = self.s
        rotated = s.head_dim // s.rotated
        frequencies = (10.0 ** (-np.arange(0, rotated, 2) / rotated)).astype(np.float32)
        twice = (
            (lambda a: np.repeat(a, 2, -1))
            if s.rotary == "interleaved"
            else (lambda a: np.concatenate([a, a], -1))
        )
        positions = self._positions()
        if s.tables == "computed":
            column = self.op("Unsqueeze", self.op("Cast", positions, to=ir.DataType.FLOAT), self.ints(2))
            angles = self.op("Mul", column, self.constant(twice(frequencies)[None, None]))
            cos, sin = self.op("Cos", angles), self.op("Sin", angles)
        elif s.tables == "rows":
            column = self.op("Unsqueeze", self.op("Cast", positions, to=ir.DataType.FLOAT), self.ints(2))
            angles = self.op("MatMul", column, self.constant(frequencies[None, None]))
            if s.rotary == "half":
                angles = self.op("Concat", angles, angles, axis=-1)
            else:
                pairs = [self.op("Unsqueeze", angles, self.ints(3)) for _ in range(2)]
                angles = self.shaped(self.op("Concat", *pairs, axis=-1), 0, 0, rotated)
            cos, sin = self.op("Cos", angles), self.op("Sin", angles)
        else:
            angles = twice(np.arange(CONTEXT, dtype=np.float32)[:, None] * frequencies)
            tables = [self.initializer(name, f(angles)) for name, f in (("cos", np.cos), ("sin", np.sin))]
            cos, sin = (self.op("Gather", table, positions, axis=0) for table in tables)
        return (sin, cos) if s.near_miss == "swapped_tables" else (cos, sin)

    def _embed(self, ids: ir.Value) -> ir.Value:
        self.table = self.weight("embed.weight", VOCAB, self.s.hidden)
        x = self.op("Gather", self.table, ids, axis=0)
        if self.s.rotary == "none":
            table = self.weight("wpe.weight", CONTEXT, self.s.hidden)
            x = self.op("Add", x, self.op("Gather", table, self._positions(), axis=0))
        return x  # type: ignore[no-any-return]

    def _head(self, x: ir.Value) -> ir.Value:
        if self.s.tied:
            return self.op("MatMul", x, self.op("Transpose", self.table, perm=[1, 0]))  # type: ignore[no-any-return]
        return self.op("MatMul", x, self.weight("lm_head.weight", self.s.hidden, VOCAB))  # type: ignore[no-any-return]

    # Norms --------------------------------------------------------------------------------------------

    def _norm(self, x: ir.Value, name: str, size: int) -> ir.Value:
        s = self.s
        gain = self._gain(f"{name}.weight", size)
        if s.norm == "layer_op" and not name.endswith("_norm"):
            bias = self.weight(f"{name}.bias", size)
            return self.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=1e-3)  # type: ignore[no-any-return]
        plain = x
        if s.casts:
            x = self.op("Cast", x, to=ir.DataType.FLOAT)
        layer = s.norm.startswith("layer") and not name.endswith("_norm")
        if layer:
            pair = (x, self.mean(x, -1))
            x = self.op("Sub", *(pair[::-1] if self.misses("reversed_difference") else pair))
        exponent = 3.0 if self.misses("cubed") else 2.0
        square = (
            self.op("Pow", x, self.number(exponent))
            if s.square == "pow" or exponent == 3
            else self.op("Mul", x, x)
        )
        axis = -2 if self.misses("wrong_mean_axis") else -1
        variance = self.mean(square, axis)
        if self.misses("cubed"):
            variance = self.op("Abs", variance)
        if self.misses("given_out") and name.endswith("norm1"):
            self.output(variance, "variance", ir.DataType.FLOAT, self.batch, self.length, 1)
        epsilon = self.number(1e-3)
        if self.misses("epsilon_per_channel"):
            epsilon = self.constant(np.linspace(1e-3, 1.0, size), np.float32)
        root = self.op("Sqrt", self.op("Add", variance, epsilon))
        normed = self._divided(x, root)
        if self.misses("other_reader") and name.endswith("norm1"):
            self.extra = self.op("Mul", normed, self.number(0.1))
        if s.casts:
            normed = self.op("Cast", normed, to=ir.DataType.FLOAT)
        y = self.op("Mul", gain, normed) if s.gain_first else self.op("Mul", normed, gain)
        del plain
        return self.add(y, self.weight(f"{name}.bias", size)) if layer else y

    def _gain(self, name: str, size: int) -> ir.Value:
        if self.misses("broadcast_gain"):
            return self.weight(name, 1, centre=1.0)
        if self.misses("scalar_gain"):
            return self.number(1.25)
        return self.weight(name, size, centre=1.0)

    def _divided(self, x: ir.Value, root: ir.Value) -> ir.Value:
        if self.s.root == "divide":
            return self.op("Div", x, root)  # type: ignore[no-any-return]
        if self.s.root == "divide_one":
            return self.op("Mul", x, self.op("Div", self.number(1.0), root))  # type: ignore[no-any-return]
        return self.op("Mul", x, self.op("Reciprocal", root))  # type: ignore[no-any-return]

    # Attention ----------------------------------------------------------------------------------------

    def _block(self, x: ir.Value) -> ir.Value:
        at = f"layers.{self.layer}"
        normed = self._norm(x, f"{at}.norm1", self.s.hidden)
        attended = self._attention(normed, f"{at}.attn")
        if self.misses("other_reader") and self.s.norm != "layer_op":
            attended = self.op("Add", attended, self.extra)
        x = attended if self.misses("no_residual") else self.add(x, attended)
        return self.add(x, self._ffn(self._norm(x, f"{at}.norm2", self.s.hidden), f"{at}.mlp"))

    def _linear(self, x: ir.Value, name: str, into: int, out: int, bias: bool) -> ir.Value:
        if self.s.linear == "gemm":
            rows = self.shaped(x, -1, into)
            inputs = [rows, self.weight(f"{name}.weight", into, out)]
            inputs.append(
                self.weight(f"{name}.bias", out) if bias else self.constant(np.zeros(out), np.float32)
            )
            shape = self.op("Concat", self.op("Shape", self.ids), self.ints(out), axis=0)
            return self.op("Reshape", self.op("Gemm", *inputs), shape)  # type: ignore[no-any-return]
        y = self.op("MatMul", x, self.weight(f"{name}.weight", into, out))
        return self.add(y, self.weight(f"{name}.bias", out)) if bias else y  # type: ignore[no-any-return]

    def _projections(self, x: ir.Value, at: str) -> list[ir.Value]:
        heads, kv = self.s.heads
        d, hidden = self.s.head_dim, self.s.hidden
        if self.s.linear == "packed":
            packed = self._linear(x, f"{at}.qkv", hidden, (heads + 2 * kv) * d, self.s.bias)
            bounds = np.cumsum([0, heads * d, kv * d, kv * d]).tolist()
            return [self.cut(packed, a, b, axis=2) for a, b in itertools.pairwise(bounds)]
        sizes = {"q": heads, "k": kv, "v": kv}
        return [self._linear(x, f"{at}.{name}", hidden, n * d, self.s.bias) for name, n in sizes.items()]

    def _attention(self, x: ir.Value, at: str) -> ir.Value:
        s = self.s
        heads, kv = s.heads
        q, k, v = self._projections(x, at)
        if self.misses("values_of_keys"):
            v = k
        q, k = self._split(q, heads, f"{at}.q_norm"), self._split(k, kv, f"{at}.k_norm")
        v = self._split(v, kv, "")
        if s.rotary != "none":
            q = self._rotate(q, shifted=self.misses("query_shifted"))
            k = k if self.misses("key_not_rotated") else self._rotate(k)
        if s.cache:
            past_k, past_v = self.pasts[self.layer]
            k, v = self.op("Concat", past_k, k, axis=2), self.op("Concat", past_v, v, axis=2)
            shape = (self.batch, kv, "total_sequence_length", s.head_dim)
            self.output(k, f"present.{self.layer}.key", ir.DataType.FLOAT, *shape)
            self.output(v, f"present.{self.layer}.value", ir.DataType.FLOAT, *shape)
        k, v = self._repeat(k), self._repeat(v)
        y = self.op("MatMul", self._weights(q, k), v)
        y = self.op("Transpose", y, perm=[0, 2, 1, 3])
        return self._linear(self.shaped(y, 0, 0, heads * s.head_dim), f"{at}.o", s.hidden, s.hidden, s.bias)

    def _split(self, x: ir.Value, heads: int, norm: str) -> ir.Value:
        """[B, S, H·D] → [B, H, S, D]"""
        x = self.shaped(x, 0, 0, heads, self.s.head_dim)
        if norm and self.s.qk_norm:
            x = self._norm(x, norm, self.s.head_dim)
        return self.op("Transpose", x, perm=[0, 2, 1, 3])  # type: ignore[no-any-return]

    def _rotate(self, x: ir.Value, *, shifted: bool = False) -> ir.Value:
        s, d = self.s, self.s.head_dim
        rotated = d // s.rotated
        cos, sin = (self.op("Unsqueeze", table, self.ints(1)) for table in (self.cos, self.sin))
        if shifted:  # by no angle that positions could give
            cos, sin = self.op("Mul", cos, self.number(0.5)), self.op("Mul", sin, self.number(0.5))
        head = x if rotated == d else self.cut(x, 0, rotated)
        if s.rotary == "half":
            first, second = self.cut(head, 0, rotated // 2), self.cut(head, rotated // 2, 2**63 - 1)
            parts = (
                (first, self.op("Neg", second))
                if self.misses("turned_back")
                else (self.op("Neg", second), first)
            )
            if self.misses("turned_back"):
                parts = (second, self.op("Neg", first))
            turned = self.op("Concat", *parts, axis=-1)
        else:
            even, odd = self.cut(head, 0, 2**63 - 1, step=2), self.cut(head, 1, 2**63 - 1, step=2)
            parts = (odd, self.op("Neg", even)) if self.misses("turned_back") else (self.op("Neg", odd), even)
            columns = [self.op("Unsqueeze", part, self.ints(-1)) for part in parts]
            turned = self.op("Concat", *columns, axis=-1)
            turned = (
                self.shaped(turned, 0, 0, 0, rotated) if s.unsqueezed_heads else self._flattened(turned, head)
            )
        y = self.op("Add", self.op("Mul", head, cos), self.op("Mul", turned, sin))
        return y if rotated == d else self.op("Concat", y, self.cut(x, rotated, 2**63 - 1), axis=-1)  # type: ignore[no-any-return]

    def _flattened(self, pairs: ir.Value, like: ir.Value) -> ir.Value:
        return self.op("Reshape", pairs, self.op("Shape", like))  # type: ignore[no-any-return]

    def _repeat(self, x: ir.Value) -> ir.Value:
        """[B, K, T, D] → [B, H, T, D]"""
        heads, kv = self.s.heads
        groups, d = heads // kv, self.s.head_dim
        if groups == 1:
            return x
        tiled = self.misses("tiled_heads") and kv > 1
        axis = 1 if tiled else 2
        five = self.op("Unsqueeze", x, self.ints(axis))
        if self.s.repeat == "concat":
            many = self.op("Concat", *[five] * groups, axis=axis)
        else:
            batch, total = (self.op("Unsqueeze", self._dim(x, i), self.ints(0)) for i in (0, 2))
            counts = [self.ints(groups), self.ints(kv)] if tiled else [self.ints(kv), self.ints(groups)]
            shape = self.op("Concat", batch, *counts, total, self.ints(d), axis=0)
            many = self.op("Expand", five, shape)
        return self.shaped(many, 0, heads, -1, d) if not tiled else self._merged(many, x, heads)

    def _merged(self, many: ir.Value, x: ir.Value, heads: int) -> ir.Value:
        batch, total = (self.op("Unsqueeze", self._dim(x, i), self.ints(0)) for i in (0, 2))
        shape = self.op("Concat", batch, self.ints(heads), total, self.ints(self.s.head_dim), axis=0)
        return self.op("Reshape", many, shape)  # type: ignore[no-any-return]

    def _weights(self, q: ir.Value, k: ir.Value) -> ir.Value:
        """softmax of the scores, [B, H, S, T]"""
        s = self.s
        scale = s.head_dim**-0.5
        k = self.op("Transpose", k, perm=[0, 1, 3, 2])
        if s.scale == "query":
            scores = self.op("MatMul", self.op("Mul", q, self.number(scale)), k)
        elif s.scale == "both":
            root = self.number(math.sqrt(scale))
            scores = self.op("MatMul", self.op("Mul", q, root), self.op("Mul", k, root))
        elif s.scale == "divide":
            scores = self.op("Div", self.op("MatMul", q, k), self.number(1 / scale))
        else:
            scores = self.op("Mul", self.op("MatMul", q, k), self.number(scale))
        if self.misses("uneven_scale"):
            scores = self.op(
                "Mul", scores, self.constant(np.linspace(0.5, 2, s.heads[0]).reshape(-1, 1, 1), np.float32)
            )
        if s.softcap:
            bounded = self.op("Tanh", self.op("Div", scores, self.number(s.softcap)))
            scores = self.op("Mul", bounded, self.number(s.softcap))
        if not self.misses("unmasked"):
            scores = self._masked(scores)
        return self.op("Softmax", scores, axis=2 if self.misses("wrong_softmax_axis") else -1)  # type: ignore[no-any-return]

    def _masked(self, scores: ir.Value) -> ir.Value:
        if self.s.mask == "additive":
            return self.add(scores, self.mask)
        low = self.number(-2.0 if self.s.near_miss == "weak_mask" else LOWEST)
        return self.op("Where", self.mask, scores, low)  # type: ignore[no-any-return]

    # Feed-forward -------------------------------------------------------------------------------------

    def _ffn(self, x: ir.Value, at: str) -> ir.Value:
        s = self.s
        up = self._linear(x, f"{at}.up", s.hidden, FFN, s.bias)
        if s.ffn in ("swiglu", "geglu", "silu_div"):
            gate = self._linear(x, f"{at}.gate", s.hidden, FFN, False)
            up = self.op("Mul", self._activation(gate, up), up)
        else:
            up = self._activation(up, up)
        return self._linear(up, f"{at}.down", FFN, s.hidden, s.bias)

    def _activation(self, x: ir.Value, other: ir.Value) -> ir.Value:
        kind = self.s.ffn
        if kind == "relu":
            return self.op("Relu", x)  # type: ignore[no-any-return]
        if kind == "relu2":
            return self.op("Pow", self.op("Relu", x), self.number(2.0))  # type: ignore[no-any-return]
        if kind == "swiglu":
            return self.op("Mul", x, self.op("Sigmoid", other if self.misses("other_gate") else x))  # type: ignore[no-any-return]
        one, half = self.number(1.0), self.number(0.5)
        if kind == "silu_div":
            return self.op("Div", x, self.op("Add", self.op("Exp", self.op("Neg", x)), one))  # type: ignore[no-any-return]
        off = 1.1 if self.misses("other_gelu") else 1.0
        if kind == "gelu_tanh":
            cube = self.op("Mul", self.op("Pow", x, self.number(3.0)), self.number(0.044715 * off))
            inner = self.op("Mul", self.op("Add", x, cube), self.number(math.sqrt(2 / math.pi)))
            return self.op("Mul", self.op("Mul", x, half), self.op("Add", self.op("Tanh", inner), one))  # type: ignore[no-any-return]
        erf = self.op("Erf", self.op("Div", x, self.number(math.sqrt(2) * off)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, one)), half)  # type: ignore[no-any-return]


# Running ------------------------------------------------------------------------------------------


class Runner:
    """Runs a decoder, in whichever interface it has, on a prompt and what follows.

    Args:
        model: as generated, or after any passes.
    """

    def __init__(self, model: ir.Model) -> None:
        self.run = session(model)
        self.inputs = {value.name: value for value in self.run.get_inputs()}
        self.outputs = [value.name for value in self.run.get_outputs()]

    @property
    def is_cached(self) -> bool:
        return any(name.startswith("past") for name in self.inputs)

    def logits(self, chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """Everything but the cache, chunk by chunk side by side; the whole at once where there is no cache.

        Args:
            chunks: ids and validity ``[B, S]`` of each call.
        """
        if not self.is_cached:
            chunks = [tuple(np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))]  # type: ignore[list-item]
        batch = len(chunks[0][0])
        cache = {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
            for name, value in self.inputs.items()
            if name.startswith("past")
        }
        mask = np.zeros((batch, 0), np.int64)
        collected: dict[str, list[np.ndarray]] = {}
        for ids, valid in chunks:
            mask = np.concatenate([mask, valid], axis=1)
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -ids.shape[1] :]
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
            results = self.run.run(None, {name: given[name] for name in self.inputs if name in given})
            named = dict(zip(self.outputs, results, strict=True))
            cache = {name: named[name.replace("past_key_values", "present")] for name in cache}
            for name, array in named.items():
                if not name.startswith("present"):
                    collected.setdefault(name, []).append(array)
        return {name: np.concatenate(arrays, axis=1) for name, arrays in collected.items()}


def calls(given: Spec) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """What is tried: one row in three calls; two rows of which one is shorter, where the graph has a mask to say so
    and counts positions by it."""
    rng = np.random.default_rng(given.seed)
    row = rng.integers(0, VOCAB, (1, 7))
    tried = [[(row[:, a:b], np.ones((1, b - a), np.int64)) for a, b in ((0, 4), (4, 6), (6, 7))]]
    if given.mask_input and given.positions != "range":
        ids = rng.integers(0, VOCAB, (2, 5))
        tried.append([(ids, np.array([[1] * 5, [1] * 3 + [0] * 2])), (ids[:, :1], np.ones((2, 1), np.int64))])
    return tried
