"""Every rule is an equation: it fires on each of its spellings, and both sides are equal. A rule that is added is
tested here without a line of test code."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.engine.rewriting import rewrite
from graph_passes.engine.rule import Rule
from graph_passes.engine.trial import example, try_rule
from graph_passes.inference.facts import annotate
from graph_passes.passes.canonical import rules

NAMES = [rule.name for rule in rules()]


@pytest.mark.parametrize("rule", rules(), ids=NAMES)
def test_every_spelling_fires_and_both_sides_are_equal(rule: Rule) -> None:
    assert try_rule(rule) >= len(rule.left)


@pytest.mark.parametrize("rule", rules(), ids=NAMES)
def test_an_intermediate_that_somebody_else_wants_survives(rule: Rule) -> None:
    """Each intermediate in turn is made an output of the graph: the rule refuses, or leaves it computed."""
    for spelling in range(len(rule.left)):
        for at in range(len(example(rule, spelling).model.graph)):
            it = example(rule, spelling)
            value = it.model.graph[at].outputs[0]
            if value.is_graph_output():
                continue
            it.model.graph.outputs.append(value)
            before = it.run()
            rewrite(it.model, [rule])
            for now, was in zip(it.run(), before, strict=True):
                np.testing.assert_allclose(now, was, rtol=1e-4, atol=1e-5)


def test_a_rule_refuses_where_an_intermediate_escapes() -> None:
    it = example(_named("rms_norm"))
    it.model.graph.outputs.append(it.model.graph[0].outputs[0])
    done = rewrite(it.model, rules())
    assert done.fired == 0
    assert any("also used by the caller" in miss.why for miss in done.misses)


def test_a_wrong_dim_is_a_near_miss_that_says_so() -> None:
    """γ with one number for all channels is another function of its gradient, and no RMSNormalization."""
    it = example(_named("rms_norm"))
    gamma = it.model.graph.inputs[1]
    gamma.shape = ir.Shape([1])
    annotate(it.model)
    done = rewrite(it.model, rules())
    assert done.fired == 0
    (miss,) = (m for m in done.misses if m.rule == "rms_norm")
    assert "not [D]" in miss.why


def test_names_are_unique_and_statements_are_there() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for rule in rules():
        assert rule.statement and rule.variables and rule.left, rule.name


def test_attempts_grow_with_the_number_of_layers() -> None:
    """Four times as many norms are tried at most 4.2 times as often."""

    def tried(count: int) -> int:
        return rewrite(_chain(_named("rms_norm"), count), rules()).tried

    assert tried(48) <= 4.2 * tried(12)


def _named(name: str) -> Rule:
    return next(rule for rule in rules() if rule.name == name)


def _chain(rule: Rule, count: int) -> ir.Model:
    """The left side of a rule y = f(x), applied many times over."""
    it = example(rule)
    graph = it.model.graph
    function, x = list(graph), graph.inputs[0]
    for _ in range(count - 1):
        renamed: dict[ir.Value | None, ir.Value] = {x: graph.outputs[0]}
        for node in function:
            inputs = [renamed.get(value, value) for value in node.inputs]
            copy = ir.node(node.op_type, inputs, {name: a.value for name, a in node.attributes.items()})
            graph.append(copy)
            renamed[node.outputs[0]] = copy.outputs[0]
        graph.outputs[0] = renamed[function[-1].outputs[0]]
    annotate(it.model)
    return it.model
