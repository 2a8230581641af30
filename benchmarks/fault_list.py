"""Faults that releases of decoders have had, or could: one wrong thing each, in a tiny random model of a family.

A fault says after which pass it is put in, which layer it is in, and where it shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks import fault_edits as edits
from benchmarks.fault_edits import Edit
from exporter.checkpoint import Checkpoint

SCHEME = "int4"
"""That of the faults in codes."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong.
        after: the pass that leaves it behind, or ``quantize``.
        places: roles that a right answer begins with, ``layers.1``; all are right.
        family, variant, overrides: the model, as `tests.tiny.tiny` takes them.
        edit: puts it into the model.
        shows: the least call that it changes: ``prefill``, ``decode`` (tokens after a cache), ``batch`` (a padded row)
            or ``keep`` (the last logits alone).
    """

    name: str
    after: str
    places: tuple[str, ...]
    family: str
    edit: Edit
    variant: str = "default"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shows: str = "prefill"

    @property
    def scheme(self) -> str:
        """Its model is quantized by: ``none``, or `SCHEME` for a fault in codes."""
        return SCHEME if self.after == "quantize" else "none"

    def checkpoint(self) -> Checkpoint:
        """The healthy model, its weights random and always the same."""
        from tests.tiny import tiny

        return tiny(self.family, variant=self.variant, **self.overrides)


def _rms_for_layer(node: ir.Node) -> tuple[str, list[ir.Value | None], dict[str, Any]]:
    epsilon = node.attributes["epsilon"].value
    return "RMSNormalization", list(node.inputs[:2]), {"axis": -1, "epsilon": epsilon}


ONE = np.array([1], np.int64)
ANGLES = np.outer(np.arange(64), 500.0 ** -(np.arange(8) / 8)).astype(np.float32)
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)
"""Of another base than the models have, for their 64 tokens and heads of 16."""
HEADS, ROPES = "layers.1.attention.heads", ("layers.1.attention.q_rope", "layers.1.attention.k_rope")
NARROW = {"rotary_embedding_dim": 8}

FAULTS = (
    # Attention, masks, positions
    Fault("no causal mask", "fold", ("layers.1",), "llama", edits.computed(HEADS, 3, "Or", "mask.valid_4d")),
    Fault(
        "rotary positions start again after a cache",
        "attention",
        ("layers.1",),
        "gpt_neox",
        edits.both(*(edits.computed(name, 3, "Sub", "past") for name in ROPES)),
        shows="decode",
    ),
    Fault(
        "learned positions start again after a cache",
        "qkv",
        ("positions",),
        "gpt2",
        edits.computed("positions.rows", 1, "Sub", "past"),
        shows="decode",
    ),
    Fault("cos and sin change places", "attention", ("layers.1",), "llama", edits.crossed(HEADS, 7, 8)),
    Fault(
        "another rope base",
        "attention",
        ("layers.1",),
        "llama",
        edits.both(edits.own_weight(HEADS, lambda _: COS, 7), edits.own_weight(HEADS, lambda _: SIN, 8)),
    ),
    Fault(
        "rotary interleaved",
        "attention",
        ("layers.1",),
        "llama",
        edits.attribute(HEADS, rotary_interleaved=1),
    ),
    Fault(
        "fewer channels rotated",
        "keep",
        ("layers.0",),
        "phi3",
        edits.both(
            *(
                edits.both(
                    edits.attribute(f"layers.0.attention.{name}", **NARROW),
                    edits.own_weight(f"layers.0.attention.{name}", lambda table: table[:, :4], 1),
                    edits.own_weight(f"layers.0.attention.{name}", lambda table: table[:, :4], 2),
                )
                for name in ("q_rope", "k_rope")
            )
        ),
        variant="partial_rotary",
    ),
    Fault(
        "another scale of scores",
        "attention",
        ("layers.0",),
        "qwen2",
        edits.attribute("layers.0.attention.heads", scale=0.125),
    ),
    Fault(
        "the window is one too wide",
        "attention",
        ("layers.1",),
        "mistral",
        edits.attribute(HEADS, local_window_size=6),
        variant="window",
    ),
    Fault(
        "a full layer gets the other's window",
        "norm",
        ("layers.0",),
        "gemma3",
        edits.attribute("layers.0.attention.heads", local_window_size=5),
        variant="layer_types",
    ),
    Fault(
        "tokens counted one too few",
        "attention",
        ("layers.0", "lengths"),
        "llama",
        edits.computed("lengths.tokens", 0, "Sub", np.array([1], np.int32)),
        shows="decode",
    ),
    Fault(
        "past keys and values change places",
        "qkv",
        ("layers.1",),
        "llama",
        edits.crossed(HEADS, 3, 4),
        shows="decode",
    ),
    Fault(
        "the cache of another layer",
        "attention",
        ("layers.1",),
        "qwen3",
        edits.rewire(HEADS, _3="past_key_values.0.key", _4="past_key_values.0.value"),
        shows="decode",
    ),
    Fault(
        "the norm of queries is left out",
        "qkv",
        ("layers.1",),
        "qwen3",
        edits.bypassed("layers.1.attention.q_norm"),
    ),
    # Packed and other weights
    Fault(
        "key heads in another order",
        "qkv",
        ("layers.0",),
        "llama",
        edits.weight("layers.0.attention.qkv", edits.part(1, edits.heads_reversed(16))),
    ),
    Fault(
        "keys and values packed the other way round",
        "qkv",
        ("layers.1",),
        "llama",
        edits.weight("layers.1.attention.qkv", edits.order(0, 2, 1)),
    ),
    Fault(
        "the value part of QKV is zero",
        "qkv",
        ("layers.1",),
        "mistral",
        edits.weight("layers.1.attention.qkv", edits.part(2, edits.zeroed)),
    ),
    Fault(
        "a square weight is transposed",
        "norm",
        ("layers.0",),
        "llama",
        edits.weight("layers.0.attention.o", edits.turned),
    ),
    Fault(
        "gate and up change places",
        "mlp",
        ("layers.1",),
        "llama",
        edits.weight("layers.1.ffn.gate_up", edits.order(1, 0)),
    ),
    Fault(
        "layers swap a weight",
        "mlp",
        ("layers.0",),
        "llama",
        edits.exchanged("layers.0.ffn.down", "layers.1.ffn.down"),
    ),
    Fault(
        "a weight rounded to bfloat16",
        "mlp",
        ("layers.1",),
        "llama",
        edits.weight("layers.1.ffn.down", edits.rounded),
    ),
    Fault(
        "rows of the embedding are one off",
        "clean",
        ("embedding",),
        "llama",
        edits.weight("embedding", edits.rolled, 0),
        variant="untied",
    ),
    Fault(
        "a tied head untied and stale",
        "head",
        ("head",),
        "gpt2",
        edits.own_weight("logits", lambda table: table + np.float32(0.002) * np.sign(table)),
    ),
    # Norms and residuals
    Fault(
        "epsilon 1e-6 for 1e-5",
        "norm",
        ("layers.1",),
        "llama",
        edits.attribute("layers.1.attention_norm", epsilon=1e-6),
        overrides={"rms_norm_eps": 1e-5},
    ),
    Fault(
        "γ for 1 + γ",
        "norm",
        ("layers.0",),
        "gemma3",
        edits.weight("layers.0.ffn_norm", edits.shifted(-1.0), 2),
    ),
    Fault(
        "RMSNorm for LayerNorm",
        "fold",
        ("layers.0",),
        "gpt_neox",
        edits.replaced("layers.0.ffn_norm", _rms_for_layer),
    ),
    Fault(
        "the last gain is left out", "clean", ("norm",), "llama", edits.own_weight("norm", np.ones_like, 2)
    ),
    Fault(
        "the skip is taken after the norm",
        "norm",
        ("layers.1",),
        "llama",
        edits.rewire("layers.1.attention_norm", _1="layers.0.ffn_norm"),
    ),
    Fault(
        "a residual counts twice",
        "norm",
        ("layers.0",),
        "qwen2",
        edits.computed("layers.0.ffn_norm", 1, "Add", ""),
    ),
    Fault("a bias is dropped", "norm", ("layers.0",), "gpt2", edits.rewire("layers.0.ffn_norm", _4="")),
    Fault(
        "a bias of queries is dropped",
        "fold",
        ("layers.1",),
        "qwen2",
        edits.bypassed("layers.1.attention.q.biased"),
    ),
    # Embedding, activation, logits
    Fault(
        "the embedding's scale is left out",
        "fold",
        ("embedding",),
        "gemma3",
        edits.bypassed("embedding.scaled"),
    ),
    Fault(
        "erf GELU for tanh GELU",
        "fold",
        ("layers.1",),
        "gpt2",
        edits.attribute("layers.1.ffn.gelu", approximate="none"),
    ),
    Fault(
        "tanh GELU for erf GELU",
        "mlp",
        ("layers.0",),
        "gpt_neox",
        edits.attribute("layers.0.ffn.gelu", approximate="tanh"),
    ),
    Fault(
        "the sigmoid's factor is 1.702",
        "mlp",
        ("layers.0",),
        "llama",
        edits.attribute("layers.0.ffn.silu", alpha=1.702),
    ),
    Fault(
        "a gated function with the other GELU",
        "outline",
        ("layers.0",),
        "gemma3",
        edits.function_attribute("Gelu", approximate="none"),
    ),
    Fault(
        "the softcap of logits is left out",
        "fold",
        ("head", "logits"),
        "gemma3",
        edits.bypassed("logits.tanh"),
        variant="softcap",
    ),
    Fault(
        "one more of the last logits",
        "keep",
        ("layers.1", "logits"),
        "llama",
        edits.computed("logits.start_1d", 0, "Sub", ONE),
        shows="keep",
    ),
    # Codes
    Fault(
        "a column of 4-bit codes is flipped",
        "quantize",
        ("layers.0",),
        "llama",
        edits.codes("layers.0.ffn.down", edits.flipped_column(37)),
    ),
    Fault(
        "scales of another layer",
        "quantize",
        ("layers.1",),
        "llama",
        edits.stale_scales("layers.1.ffn.down", "layers.0.ffn.down"),
    ),
    Fault(
        "codes one row off",
        "quantize",
        ("layers.1",),
        "qwen2",
        edits.codes("layers.1.attention.o", lambda c: np.roll(c, 1, axis=0)),
    ),
    Fault(
        "the scales of a row are halved",
        "quantize",
        ("layers.0",),
        "llama",
        edits.scales("layers.0.attention.qkv", lambda s: np.concatenate([s[:-1], s[-1:] / 2])),
    ),
)
