"""A fusion of your own, as an equation (docs/writing-a-rule.md), applied to a graph.

python samples/custom_rule.py model.onnx OUT.onnx
"""
# ruff: noqa: F722 (annotations are dims)

import sys
from pathlib import Path

import onnx_ir as ir

from exporter.onnx_format.reader import read_graph
from graph_passes.engine.rewriting import rewrite
from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op
from graph_passes.engine.trial import try_rule
from graph_passes.inference.facts import annotate


@rule
def hard_swish(op: Op, x: "*B D") -> Equation:
    """x · hardsigmoid(x; 1/6, ½)  ⇒  HardSwish(x)"""
    yield x * op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    return op.HardSwish(x)


if __name__ == "__main__":
    source, out = sys.argv[1:]
    print(f"both sides are equal on {try_rule(hard_swish)} graph")
    model = read_graph(Path(source))
    annotate(model)
    done = rewrite(model, [hard_swish])
    print(f"fired {done.counts['hard_swish'].fired} times", *done.attempts, sep="\n")
    ir.save(model, out)
