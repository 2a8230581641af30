"""num_logits_to_keep: no default for a runtime that feeds it only if it must, one for those that never do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.control import KEEP
from onnx_gpt.linting.draft import Draft

OF = "graph"
CODES = ("keep-has-default", "input-unknown", "genai-names", "file-absent")
ALL = 0
"""The value that keeps every token's logits."""


def repair(draft: Draft) -> Draft:
    expected = draft.subject.expected
    feeds = KEEP in expected.inputs
    for graph in draft.graphs:
        value = graph.input(KEEP)
        if value is None or value.is_initializer() != feeds or (feeds and expected.feeds_optional):
            continue
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), value.shape or ir.Shape([])
        if feeds:
            del graph.graph.initializers[KEEP]
            value.const_value = None
        else:
            value.const_value = ir.tensor(np.array(ALL, np.int64), name=KEEP)
            graph.graph.register_initializer(value)
        draft = draft.note(f"{graph.name}: {KEEP} has {'no' if feeds else 'a'} default")
    return draft
