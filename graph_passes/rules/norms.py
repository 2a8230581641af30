"""Root-mean-square and layer normalisation, as exporters spell them.

Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv 1910.07467); Ba et al., "Layer
Normalization" (arXiv 1607.06450).
"""

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op


@rule
def rms_norm(op: Op, x: "*B D", γ: "D", ε: "constant") -> Equation:
    """x · (mean(x²) + ε)^-½ · γ  ⇒  RMSNormalization(x, γ; ε)"""
    root = op.Sqrt(op.ReduceMean(x * x, [-1]) + ε)
    yield op.either(x * op.Reciprocal(root), x / root) * γ
    return op.RMSNormalization(x, γ, epsilon=ε, axis=-1)


@rule
def layer_norm(op: Op, x: "*B D", γ: "D", ε: "attribute") -> Equation:
    """RMSNormalization(x − μ, γ; ε)  ⇒  LayerNormalization(x, γ; ε)"""
    yield op.RMSNormalization(x - op.ReduceMean(x, [-1]), γ, epsilon=ε, axis=-1)
    return op.LayerNormalization(x, γ, epsilon=ε, axis=-1)


@rule
def layer_norm_shift(op: Op, x: "*B D", γ: "D", β: "D", ε: "attribute") -> Equation:
    """LayerNormalization(x, γ; ε) + β  ⇒  LayerNormalization(x, γ, β; ε)"""
    yield op.LayerNormalization(x, γ, epsilon=ε, axis=-1) + β
    return op.LayerNormalization(x, γ, β, epsilon=ε, axis=-1)


@rule(kind="exact")
def norm_before_transpose(op: Op, x: "B S H D", γ: "D", ε: "attribute") -> Equation:
    """RMSNormalization(xᵀ, γ)  ⇒  RMSNormalization(x, γ)ᵀ: heads are normed before they change places"""
    yield op.RMSNormalization(op.Transpose(x, perm=[0, 2, 1, 3]), γ, epsilon=ε, axis=-1)
    return op.Transpose(op.RMSNormalization(x, γ, epsilon=ε, axis=-1), perm=[0, 2, 1, 3])
