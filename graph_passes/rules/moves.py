"""What only moves elements: two moves are one, and a move to where things are is none."""

from graph_passes.engine.rule import Equation, rule
from graph_passes.engine.terms import Op


@rule(kind="exact", example={"*B": (24,)})
def reshape_twice(op: Op, x: "any *A") -> Equation:
    """reshape(reshape(x))  ⇒  reshape(x)"""
    yield op.Reshape(op.shared(op.Reshape(x, "*B")), "*C")
    return op.Reshape(x, "*C")


@rule(kind="exact")
def reshape_to_itself(op: Op, x: "any *A") -> Equation:
    """reshape(x) to its own shape  ⇒  x"""
    yield op.Reshape(x, "*A")
    return x


@rule(kind="exact", example={"p": [0, 2, 1, 3], "q": [0, 1, 3, 2]})
def transpose_twice(op: Op, x: "any A B C D", p: "attribute", q: "attribute") -> Equation:
    """transpose(transpose(x))  ⇒  transpose(x)"""
    yield op.Transpose(op.shared(op.Transpose(x, perm=p)), perm=q)
    return op.Transpose(x, perm=[p[i] for i in q])


@rule(kind="exact", example={"*A": (2, 3, 4, 5)})
def transpose_nothing(op: Op, x: "any *A") -> Equation:
    """transpose(x) by the identity  ⇒  x"""
    yield op.Transpose(x, perm=[0, 1, 2, 3])
    return x


@rule(kind="exact", example={"N": 8})
def transpose_of_matrices(op: Op, x: "any B H T D") -> Equation:
    """matrices of [B, H, T, D] taken out, turned round and put back  ⇒  transpose(x)"""
    yield op.Reshape(op.Transpose(op.Reshape(x, "N T D"), perm=[0, 2, 1]), "B H D T")
    return op.Transpose(x, perm=[0, 1, 3, 2])
