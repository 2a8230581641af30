"""A Llama at any size as torch's older exporter spells it, some 240 nodes a layer, weights unread and zero.

For the passes alone: nothing here can be run at seven billion parameters, and nothing has to be.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.emitter import Emitter, typed
from exporter.weights import Zeros

END = 2**63 - 1
FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64


@dataclasses.dataclass(frozen=True)
class Shape:
    """Dims of a Llama; the defaults are Llama-2-7B's with Mistral's KV heads."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    ffn: int = 11008
    vocab: int = 32000

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        kv = self.kv_heads * self.head_dim
        layer = self.hidden * (2 * self.hidden + 2 * kv + 3 * self.ffn + 2)
        return self.layers * layer + (2 * self.vocab + 1) * self.hidden


def spelled_llama(shape: Shape) -> ir.Model:
    """The graph: inputs ``input_ids``, ``attention_mask``, ``position_ids``, a cache; outputs logits and presents."""
    return _Writer(shape).model()


class _Writer(Emitter):
    def __init__(self, shape: Shape) -> None:
        super().__init__(_weights(shape))
        self.shape = shape
        self.count = 0
        self.tokens = self.input("input_ids", INT, ["batch_size", "sequence_length"])
        self.valid = self.input("attention_mask", INT, ["batch_size", "total_sequence_length"])
        self.places = self.input("position_ids", INT, ["batch_size", "sequence_length"])
        self.presents: list[ir.Value] = []

    def __call__(self, op_type: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """One node; numbers and lists become constants."""
        self.count += 1
        values = [v if isinstance(v, ir.Value) or v is None else self._number(v) for v in inputs]
        return self.op(op_type, values, name=f"n{self.count}", **attributes)

    def _number(self, given: Any) -> ir.Value:
        array = np.array(given, np.float32 if isinstance(given, float) else np.int64)
        return self.constant(f"c.{array.dtype}.{array.shape}.{array.tolist()}", array)

    def model(self) -> ir.Model:
        x = self("Gather", self.weight("embedding"), self.tokens)
        self.mask, self.cos, self.sin = self.causal(x), *self.angles()
        for i in range(self.shape.layers):
            x = self.layer(i, x)
        logits = self("MatMul", self.norm("norm", x), self.weight("head", transpose=True))
        logits.name, logits.type = "logits", ir.TensorType(FLOAT)
        logits.shape = ir.Shape(["batch_size", "sequence_length", self.shape.vocab])
        graph = self.graph([logits, *self.presents], name="spelled", opset=18)
        return ir.Model(graph, ir_version=10)

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """A dim as a vector of one, the long way round."""
        return self("Unsqueeze", self("Gather", self("Shape", x), axis), [0])

    def causal(self, x: ir.Value) -> ir.Value:
        total, length = self.dim(self.valid, 1), self.dim(x, 1)
        keys = self("Range", 0, self("Squeeze", total), 1)
        first = self("Squeeze", self("Sub", total, length))
        queries = self("Unsqueeze", self("Range", first, self("Squeeze", total), 1), [1])
        seen = self("Unsqueeze", self("LessOrEqual", keys, queries), [0, 1])
        real = self("Unsqueeze", self("Cast", self.valid, to=ir.DataType.BOOL), [1, 2])
        return self("Where", self("And", seen, real), 0.0, float(np.finfo(np.float32).min))

    def angles(self) -> tuple[ir.Value, ir.Value]:
        D = self.shape.head_dim
        frequencies = (10000.0 ** (-np.arange(0, D, 2) / D)).astype(np.float32)
        places = self("Cast", self("Unsqueeze", self.places, [2]), to=FLOAT)
        half = self("Mul", places, self.constant("frequencies", frequencies.reshape(1, 1, -1)))
        both = self("Concat", half, half, axis=-1)
        return self("Unsqueeze", self("Cos", both), [1]), self("Unsqueeze", self("Sin", both), [1])

    def layer(self, i: int, x: ir.Value) -> ir.Value:
        normed = self.norm(f"{i}.attention_norm", x)
        x = self("Add", x, self.attention(i, normed))
        normed = self.norm(f"{i}.ffn_norm", x)
        gate, up = self.linear(f"{i}.gate", normed), self.linear(f"{i}.up", normed)
        hidden = self("Mul", self("Mul", gate, self("Sigmoid", gate)), up)
        return self("Add", x, self.linear(f"{i}.down", hidden))

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        wide = self("Cast", x, to=FLOAT)
        mean = self("ReduceMean", self("Pow", wide, 2.0), [-1])
        scaled = self("Mul", wide, self("Div", 1.0, self("Sqrt", self("Add", mean, 1e-5))))
        return self("Mul", self.weight(name), self("Cast", scaled, to=FLOAT))

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        return self("MatMul", x, self.weight(name, transpose=True))

    def attention(self, i: int, x: ir.Value) -> ir.Value:
        s = self.shape
        q, k, v = (
            self.heads(self.linear(f"{i}.{name}", x), heads)
            for name, heads in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads))
        )
        k, v = self.join(i, "key", self.rotate(k)), self.join(i, "value", v)
        root = float(s.head_dim) ** -0.25
        keys = self("Transpose", self.repeat(k), perm=[0, 1, 3, 2])
        scores = self("MatMul", self("Mul", self.rotate(q), root), self("Mul", keys, root))
        p = self("Softmax", self("Add", scores, self.mask), axis=-1)
        p = self("Where", self("IsNaN", p), 0.0, p)
        y = self("Transpose", self("MatMul", p, self.repeat(v)), perm=[0, 2, 1, 3])
        shape = self("Concat", self.dim(x, 0), self.dim(x, 1), [-1], axis=0)
        return self.linear(f"{i}.o", self("Reshape", y, shape))

    def heads(self, x: ir.Value, heads: int) -> ir.Value:
        shape = self("Concat", self.dim(x, 0), self.dim(x, 1), [-1], [self.shape.head_dim], axis=0)
        return self("Transpose", self("Reshape", x, shape), perm=[0, 2, 1, 3])

    def rotate(self, x: ir.Value) -> ir.Value:
        middle = self("Div", self.dim(x, 3), [2])
        turned = self("Neg", self("Slice", x, middle, [END], [3]))
        turned = self("Concat", turned, self("Slice", x, [0], middle, [3]), axis=-1)
        return self("Add", self("Mul", x, self.cos), self("Mul", turned, self.sin))

    def join(self, i: int, which: str, x: ir.Value) -> ir.Value:
        def shape(length: str) -> list[int | str]:
            return ["batch_size", self.shape.kv_heads, length, self.shape.head_dim]

        past = self.input(f"past_key_values.{i}.{which}", FLOAT, shape("past_sequence_length"))
        joined = self("Concat", past, x, axis=-2)
        like = typed(f"present.{i}.{which}", FLOAT, shape("total_sequence_length"))
        joined.name, joined.type, joined.shape = like.name, like.type, like.shape
        self.presents.append(joined)
        return joined

    def repeat(self, x: ir.Value) -> ir.Value:
        s = self.shape
        B, K, T, D = (self.dim(x, axis) for axis in range(4))
        wanted = self("Concat", B, K, [s.heads // s.kv_heads], T, D, axis=0)
        ones = self("ConstantOfShape", self("Shape", wanted), value=ir.tensor(np.array([1], np.int64)))
        wanted = self("Where", self("Equal", wanted, self("Mul", ones, -1)), ones, wanted)
        wide = self("Expand", self("Unsqueeze", x, [2]), wanted)
        return self("Reshape", wide, self("Concat", B, self("Mul", K, [s.heads // s.kv_heads]), T, D, axis=0))


def _weights(s: Shape) -> dict[str, Zeros]:
    E, kv = s.hidden, s.kv_heads * s.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding": (s.vocab, E), "head": (s.vocab, E), "norm": (E,)}
    for i in range(s.layers):
        shapes |= {f"{i}.q": (E, E), f"{i}.k": (kv, E), f"{i}.v": (kv, E), f"{i}.o": (E, E)}
        shapes |= {f"{i}.gate": (s.ffn, E), f"{i}.up": (s.ffn, E), f"{i}.down": (E, s.ffn)}
        shapes |= {f"{i}.attention_norm": (E,), f"{i}.ffn_norm": (E,)}
    return {name: Zeros(shape) for name, shape in shapes.items()}
