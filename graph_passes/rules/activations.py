"""GELU as exporters spell it. Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415)."""

import math

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op

ROOT_HALF = math.sqrt(0.5)
ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


@rule
def gelu(op: Op, x: "*B D") -> Equation:
    """½x · (1 + erf(x/√2))  ⇒  Gelu(x)"""
    erf = op.Erf(x * ROOT_HALF) + 1.0
    yield x * erf * 0.5
    yield x * 0.5 * erf
    yield x * (erf * 0.5)
    return op.Gelu(x, approximate="none")


@rule
def gelu_tanh(op: Op, x: "*B D") -> Equation:
    """½x · (1 + tanh(√(2/π)(x + 0.044715x³)))  ⇒  Gelu(x; tanh)"""
    cube = op.either(op.Pow(x, 3.0), x * x * x, x * (x * x))
    factor = op.either(x * x * 0.044715, x * (x * 0.044715)) + 1.0
    inner = op.either(
        (x + cube * 0.044715) * ROOT_2_OVER_PI, x * factor * ROOT_2_OVER_PI, x * ROOT_2_OVER_PI * factor
    )
    tanh = op.Tanh(inner) + 1.0
    yield x * tanh * 0.5
    yield x * 0.5 * tanh
    yield x * (tanh * 0.5)
    return op.Gelu(x, approximate="tanh")


@rule
def silu(op: Op, x: "*B D") -> Equation:
    """x / (1 + e^-x)  ⇒  x · σ(x)"""
    yield x / (op.Exp(-x) + 1.0)
    return x * op.Sigmoid(x)
