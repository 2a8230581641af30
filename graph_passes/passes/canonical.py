"""Whatever an exporter wrote ⇒ one spelling of each idea: RMSNormalization, Gelu, RotaryEmbedding, Attention …

The equations are in graph_passes/rules/, one file an idea, found because the file exists.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from exporter.discovery import modules_of
from graph_passes.engine.rewriting import rewrite
from graph_passes.engine.rule import Rule
from graph_passes.outcome import Outcome

KIND = "fp"


def apply(model: ir.Model) -> Outcome:
    done = rewrite(model, rules())
    return Outcome(done.fired, tuple(map(str, done.misses)), done.attempts, done.tried)


@functools.cache
def rules() -> tuple[Rule, ...]:
    """All rules there are, by file and then by their order in it."""
    return tuple(
        found
        for module in modules_of("graph_passes.rules").values()
        for found in vars(module).values()
        if isinstance(found, Rule)
    )
