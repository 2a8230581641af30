"""Any decoder in any spelling answers after all passes as before them; what is only nearly known stays as it was.

``ONNX_GPT_EXAMPLES`` sets how many graphs hypothesis draws, at random instead of always the same ones.
"""

from __future__ import annotations

import collections
import itertools
import os

import numpy as np
import onnx_ir as ir
import pytest
from generated import NEAR_MISSES, SPELLINGS, Runner, Spec, build, calls, spec, specs, taken_in
from hypothesis import HealthCheck, Phase, given, settings

from graph_passes import ORT_PIPELINE, PassReport, run_pipeline
from graph_passes.pipeline import parse
from onnx_gpt.exporting import CANONICAL_PIPELINE

ASKED = int(os.environ.get("ONNX_GPT_EXAMPLES", "0"))
DRAWN = settings(
    max_examples=ASKED or 16,
    derandomize=not ASKED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate] if not ASKED else list(Phase),
)
TOLERANCE = 2e-5
"""Of the largest logit; rounding in another order makes some 1e-6."""

PIPELINE = f"{CANONICAL_PIPELINE.replace('{context}', '{context_length=32}')}, {ORT_PIPELINE}"

LOWERED = frozenset(
    ["Softmax", "Pow", "Sqrt", "ReduceMean", "Erf", "Exp", "Cos", "Sin", "Where", "Expand", "Attention"]
)
"""Ops of which a lowered decoder has none left."""


def lowered(drawn: Spec, *, verify: bool = True) -> tuple[ir.Model, tuple[PassReport, ...]]:
    model = taken_in(drawn)
    return model, run_pipeline(model, PIPELINE, verify=verify)


def assert_answers_alike(drawn: Spec, model: ir.Model) -> None:
    """Everything that the graph gives for real tokens, whole and in pieces."""
    original, new = Runner(build(drawn)), Runner(model)
    for chunks in calls(drawn):
        valid = np.concatenate([mask for _, mask in chunks], axis=1).astype(np.bool_)
        wanted, found = original.logits(chunks), new.logits(chunks)
        assert wanted.keys() == found.keys()
        for name, array in wanted.items():
            off = np.abs(found[name][valid] - array[valid]).max()
            assert off <= TOLERANCE * np.abs(array[valid]).max(), (name, off)


def assert_is_lowered(drawn: Spec, model: ir.Model) -> None:
    counts = collections.Counter(node.op_type for node in model.graph)
    assert counts["GroupQueryAttention"] == drawn.layers, counts
    assert not LOWERED & counts.keys(), counts


def is_expected_to_fuse(drawn: Spec) -> bool:
    """Whether some exporter writes it so. Heads repeated by joining copies, or capped scores of queries and keys that
    are both scaled (as torch's own attention does, which has no cap), only have to stay right."""
    repeated = drawn.repeat == "expand" or drawn.heads[0] == drawn.heads[1]
    return not drawn.near_miss and repeated and not (drawn.softcap and drawn.scale == "both")


OPTIONS = [("opset", 17)] + [
    (name, option)
    for name, options in SPELLINGS.items()
    for option in dict.fromkeys(options)
    if option != options[0]
]
"""Each but the first, which all the others are drawn with."""


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_is_fused(name: str, option: object) -> None:
    drawn = spec(opset=20, heads=(4, 2)) if name not in ("opset", "heads") else spec()
    drawn = spec(**{**dict(drawn.choices), name: option})
    model, _ = lowered(drawn, verify=False)
    assert_answers_alike(drawn, model)
    if is_expected_to_fuse(drawn):
        assert_is_lowered(drawn, model)


@pytest.mark.parametrize(
    ("near_miss", "cache"), list(zip(NEAR_MISSES, itertools.cycle([True, False]), strict=False))
)
def test_every_near_miss_is_told_apart(near_miss: str, cache: bool) -> None:
    """It answers otherwise than what it nearly is, and goes on doing so."""
    drawn = spec(near_miss, cache=cache, heads=(4, 2), opset=20, seed=1)
    model, _ = lowered(drawn)
    assert_answers_alike(drawn, model)
    if near_miss in ("given_out", "broadcast_gain", "scalar_gain"):
        return  # these compute what they seem to, or have no model that they seem to be
    plain = Spec(drawn.choices, "", drawn.seed)
    with pytest.raises(AssertionError):
        assert_answers_alike(plain, model)


@given(specs())
@DRAWN
def test_any_spelling_answers_as_before_and_is_fused(drawn: Spec) -> None:
    model, reports = lowered(drawn)
    assert_answers_alike(drawn, model)
    for report in reports:
        assert report.proof is None or report.proof.unproven == (), report
    if is_expected_to_fuse(drawn):
        assert_is_lowered(drawn, model)


@given(specs(NEAR_MISSES))
@DRAWN
def test_near_misses_answer_as_before(drawn: Spec) -> None:
    assert_answers_alike(drawn, lowered(drawn)[0])


def test_the_pipeline_has_passes_that_are_verified() -> None:
    names = [step.name for step in parse(PIPELINE)]
    assert {"fold", "canonical", "attention"} <= set(names)
