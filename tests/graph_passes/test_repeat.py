"""Attention spelled out for runtimes that fuse it again is the same function, whatever the heads and the padding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoders import VARIANTS, canonical, decoder
from runs import calls, unoptimised

from graph_passes import run_pipeline
from graph_passes.passes import repeat

PIPELINE = "fold, keep, norm, mlp, head, clean"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_attention_is_spelled_out_and_gives_the_same(name: str) -> None:
    before, after = canonical(decoder(**VARIANTS[name])), canonical(decoder(**VARIANTS[name]))
    run_pipeline(before, PIPELINE)
    reports = run_pipeline(after, PIPELINE.replace("clean", "repeat, clean"))
    attentions = [node for node in after.graph if node.op_type == "Attention"]
    assert next(report.fired for report in reports if report.name == "repeat") == len(attentions) > 0
    assert all(len(node.inputs) == 4 and len(node.outputs) == 1 for node in attentions)  # no cache inside
    whole, spelled = unoptimised(before), unoptimised(after)
    for _, feeds in calls(before):
        for found, wanted in zip(spelled.run(None, feeds), whole.run(None, feeds), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_what_masks_by_itself_is_left_and_said() -> None:
    model = canonical(decoder(**VARIANTS["llama"]))
    for node in model.graph:
        if node.op_type == "Attention":
            node.attributes.add(ir.AttrInt64("is_causal", 1))
    outcome = repeat.apply(model)
    assert outcome.fired == 0
    assert outcome.refused and all(reason.endswith("it masks by itself") for reason in outcome.refused)
