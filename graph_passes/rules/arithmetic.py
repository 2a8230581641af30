"""Scalar arithmetic in one spelling."""

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op


@rule
def quotient(op: Op, x: "*B D", c: "constant") -> Equation:
    """x / c  ⇒  x · (1/c)"""
    yield x / c
    op.require(c != 0, "it divides by nothing")
    return x * (1 / c)


@rule(kind="exact")
def mean_over_the_last_of_three(op: Op, x: "A B D") -> Equation:
    """the mean over axis 2 of three  ⇒  over axis −1"""
    yield op.ReduceMean(x, [2])
    return op.ReduceMean(x, [-1])


@rule(kind="exact")
def mean_over_the_last_of_four(op: Op, x: "A B C D") -> Equation:
    """the mean over axis 3 of four  ⇒  over axis −1"""
    yield op.ReduceMean(x, [3])
    return op.ReduceMean(x, [-1])
