"""Hidden states, weights and the cache in float16; what overflows there in float32 islands (`lowering.half`).

``islands`` are patterns of roles with + between them: ``half{islands=*_norm+layers.2.ffn.down}``. Which nodes need one
is a question of what goes through the graph on real text, which no pass knows; `onnx_gpt.optimizing.halving` measures
it.
"""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.lowering.half import half
from graph_passes.outcome import Outcome

KIND = "lossy"
INTERFACE = True


def apply(model: ir.Model, cache: bool = True, islands: str = "") -> Outcome:
    return Outcome(half(model, tuple(filter(None, islands.split("+"))), cache=cache).nodes)
