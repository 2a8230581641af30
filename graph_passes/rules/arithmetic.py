"""Scalar arithmetic in one spelling."""

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op


@rule
def quotient(op: Op, x: "*B D", c: "constant") -> Equation:
    """x / c  ⇒  x · (1/c)"""
    yield x / c
    op.require(c != 0, "it divides by nothing")
    return x * (1 / c)
