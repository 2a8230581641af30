"""One spelling for what exporters say in many ways: rewrites fire, keep every bit, and refuse near misses."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import graph, unoptimised

from exporter.weight_tensor import WeightTensor
from exporter.weights import Array
from graph_passes import run_pipeline
from graph_passes.inference.dims import parse
from graph_passes.inference.facts import annotate
from graph_passes.passes import shapes
from graph_passes.structure.moves import reshape_target

INPUTS = "float[batch_size,sequence_length,12] x"
SIZES = ((2, 3), (1, 1), (3, 4))


def spelled(body: str, inputs: str = INPUTS, out: str = "float") -> ir.Model:
    """A graph in which ``{…}`` is a vector of integers and ``(…)f`` a float scalar."""
    constants = []

    def constant(match: re.Match[str]) -> str:
        held = f"value_ints = [{match[1]}]" if match[1] is not None else f"value_float = {match[2]}"
        constants.append(f"k{len(constants)} = Constant <{held}> ()")
        return f"k{len(constants) - 1}"

    body = re.sub(r"\{([-\d, ]*)\}|\[([-\d.e]+)\]f", constant, body)
    return graph("  ".join([*constants, body]), inputs, f"{out} out")


def feeds_of(model: ir.Model, batch: int, sequence: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = {"batch_size": batch, "sequence_length": sequence}
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else lengths[str(d)] for d in value.shape or ()]
        array = rng.standard_normal(shape) * 3
        feeds[str(value.name)] = np.asarray(
            array > 0 if value.dtype == ir.DataType.BOOL else array, value.dtype.numpy()
        )  # type: ignore[union-attr]
    return feeds


def rewritten(model: ir.Model, pipeline: str = "fold, shapes", *, exact: bool = True) -> list[str]:
    """Run passes, compare what comes out, and give the ops that are left."""
    session = unoptimised(model)
    before = [(feeds, session.run(None, feeds)) for feeds in (feeds_of(model, *sizes) for sizes in SIZES)]
    run_pipeline(model, pipeline)
    session = unoptimised(model)
    for feeds, wanted in before:
        for a, b in zip(wanted, session.run(None, feeds), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            if exact:
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return [node.op_type for node in model.graph]


def constant(model: ir.Model, op_type: str, i: int = 1) -> list[int]:
    node = next(node for node in model.graph if node.op_type == op_type)
    value = node.inputs[i]
    assert value is not None and value.const_value is not None
    found: list[int] = value.const_value.numpy().tolist()
    return found


FIRE = [
    # Views
    ("a = Unsqueeze (x, {1})  b = Squeeze (a, {1})  out = Neg (b)", ["Neg"]),
    ("a = Reshape (x, {0, 0, 3, 4})  b = Reshape (a, {0, 0, 12})  out = Neg (b)", ["Neg"]),
    ("a = Reshape (x, {0, 0, 3, 4})  b = Flatten <axis = 3> (a)  out = Neg (b)", ["Reshape", "Neg"]),
    ("a = Unsqueeze (x, {0, -1})  b = Reshape (a, {-1, 12})  out = Neg (b)", ["Reshape", "Neg"]),
    ("s = Shape (x)  a = Reshape (x, s)  out = Neg (a)", ["Neg"]),
    # Transposes
    ("a = Transpose <perm = [2, 0, 1]> (x)  b = Transpose <perm = [1, 2, 0]> (a)  out = Neg (b)", ["Neg"]),
    ("a = Transpose <perm = [2, 0, 1]> (x)  b = Transpose (a)  out = Neg (b)", ["Transpose", "Neg"]),
    # Expand
    ("s = Shape (x)  a = Expand (x, s)  out = Neg (a)", ["Neg"]),
    ("s = Shape (x)  a = Expand (y, s)  out = Add (a, x)", ["Add"]),
    ("a = Unsqueeze (x, {2})  b = Tile (a, {1, 1, 2, 1})  out = Neg (b)", ["Reshape", "Expand", "Neg"]),
    ("a = Expand ([2.0]f, {1, 1, 12})  out = Mul (a, x)", ["Mul"]),
    # Parts
    ("a = Slice (x, {0}, {9223372036854775807}, {1})  out = Neg (a)", ["Neg"]),
    ("a = Slice (x, {0, 3}, {99, 9}, {0, 2}, {1, 1})  out = Neg (a)", ["Slice", "Neg"]),
    (
        "a, b = Split <axis = -1> (x, {4, 8})  c = Abs (b)  out = Concat <axis = 2> (c, a)",
        ["Slice", "Slice", "Abs", "Concat"],
    ),
    ("out = Concat <axis = 1> (x)", ["Identity"]),
    # Arithmetic
    ("a = Cast <to = 11> (x)  b = Cast <to = 1> (a)  out = Neg (b)", ["Neg"]),
    ("a = Cast <to = 1> (x)  out = Neg (a)", ["Neg"]),
    (
        "p = Greater (x, [0.0]f)  a = Cast <to = 7> (p)  b = Cast <to = 1> (a)  out = Neg (b)",
        ["Greater", "Cast", "Neg"],
    ),
    ("out = Pow (x, [2.0]f)", ["Mul"]),
    ("out = Div ([1.0]f, x)", ["Reciprocal"]),
    ("out = Div (x, [8.0]f)", ["Mul"]),
    ("out = Sub (x, [0.3]f)", ["Add"]),
    ("a = Mul (x, [1.0]f)  b = Div (a, [1.0]f)  out = Neg (b)", ["Neg"]),
    ("a = Identity (x)  b = Dropout (a)  out = Neg (b)", ["Neg"]),
]


@pytest.mark.parametrize(("body", "left"), FIRE)
def test_a_spelling_becomes_the_one(body: str, left: list[str]) -> None:
    assert rewritten(spelled(body, f"{INPUTS}, float[1,1,12] y")) == left


NEAR_MISSES = [
    ("a = Transpose <perm = [1, 0, 2]> (x)  out = Neg (a)", "Transpose", "it moves something"),
    ("a = Slice (x, {1}, {9223372036854775807}, {1})  out = Neg (a)", "Slice", "it drops a row"),
    ("a = Slice (x, {0}, {9223372036854775807}, {2}, {2})  out = Neg (a)", "Slice", "it takes every other"),
    ("a = Cast <to = 7> (x)  b = Cast <to = 1> (a)  out = Neg (b)", "Cast", "integers do not hold fractions"),
    ("a = Cast <to = 10> (x)  b = Cast <to = 1> (a)  out = Neg (b)", "Cast", "half of the bits are gone"),
    ("out = Pow (x, [3.0]f)", "Pow", "it is no square"),
    ("out = Div (x, [3.0]f)", "Div", "a third is not exact"),
    ("out = Div (x, [1e-45]f)", "Div", "its inverse is infinite"),
    ("out = Div ([2.0]f, x)", "Div", "it is no reciprocal"),
    ("out = Sub ([1.0]f, x)", "Sub", "it is not the subtrahend that is constant"),
    ("a = Tile (x, {1, 1, 2})  out = Neg (a)", "Tile", "what is repeated is no single element"),
    ("s = Shape (x)  a = Expand (y, s)  out = Neg (a)", "Expand", "the reader does not repeat it"),
    (
        "s = Shape (x)  a = Expand (y, s)  t = Transpose <perm = [0, 2, 1]> (x)  out = MatMul (a, t)",
        "Expand",
        "rows are repeated",
    ),
    ("a = Mul (y, [1.0]f)  b = Mul (one, a)  out = Add (b, x)", "Mul", "the other factor has more dims"),
]


@pytest.mark.parametrize(("body", "op", "why"), NEAR_MISSES)
def test_near_misses_stay(body: str, op: str, why: str) -> None:
    inputs = f"{INPUTS}, float[1,1,12] y, float[1,1,1,1] one"
    assert op in rewritten(spelled(body, inputs)), why


def test_heads_that_move_through_a_flat_batch_move_at_once() -> None:
    body = """
        a = Reshape (x, {0, 0, 3, 4})  k = Transpose <perm = [0, 2, 1, 3]> (a)
        s = Shape (k)  n = Slice (s, {-2}, {-1})  w = Slice (s, {-1}, {99})  l = Slice (s, {0}, {-2})
        flat = Concat <axis = 0> ({-1}, n, w)  f = Reshape (k, flat)  t = Transpose <perm = [0, 2, 1]> (f)
        back = Concat <axis = 0> (l, w, n)  b = Reshape (t, back)  out = Neg (b)
    """
    model = spelled(body)
    assert rewritten(model) == ["Reshape", "Transpose", "Neg"]
    assert list(model.graph[1].attributes["perm"].value) == [0, 2, 3, 1]


def test_dims_that_move_apart_are_not_put_together() -> None:
    body = """
        a = Reshape (x, {0, 0, 3, 4})  f = Reshape (a, {0, -1, 4})  t = Transpose <perm = [0, 2, 1]> (f)
        out = Reshape (t, {0, 4, 3, -1})
    """
    assert rewritten(spelled(body)).count("Reshape") == 2


def test_one_row_of_packed_heads_is_a_slice() -> None:
    body = "r = Reshape (x, {0, 0, 3, 4})  i = Constant <value_int = 1> ()  g = Gather <axis = 2> (r, i)  out = Neg (g)"
    model = spelled(body)
    assert rewritten(model) == ["Reshape", "Slice", "Reshape", "Neg"]
    assert constant(model, "Slice") == [1] and constant(model, "Slice", 3) == [2]


def test_targets_are_constants_that_hold_for_every_length() -> None:
    body = """
        s = Shape (x)  b = Gather <axis = 0> (s, {0})  n = Gather <axis = 0> (s, {1})
        t = Concat <axis = 0> (b, n, {3}, {4})  a = Reshape (x, t)
        u = Concat <axis = 0> (b, {3}, {-1}, {4})  e = Unsqueeze (a, {3})
        w = Concat <axis = 0> (b, n, {3}, {2}, {4})  f = Expand (e, w)  out = Neg (f)
    """
    model = spelled(body)
    assert rewritten(model) == ["Reshape", "Expand", "Neg"]
    assert constant(model, "Reshape") == [0, 0, 3, 1, 4]
    assert constant(model, "Expand") == [1, 1, 1, 2, 1]


@pytest.mark.parametrize(
    ("source", "wanted", "target"),
    [
        (["batch_size", "sequence_length", "12"], ["batch_size", "sequence_length", "3", "4"], [0, 0, 3, 4]),
        (["batch_size", "4", "sequence_length"], ["batch_size", "1", "4", "sequence_length"], [0, 1, 4, -1]),
        (["a", "b"], ["b", "a"], None),
        (["past_sequence_length", "batch_size"], ["past_sequence_length", "1", "batch_size"], None),
        (["batch_size", "past_sequence_length"], ["batch_size", "1", "past_sequence_length"], [0, 1, -1]),
        (["0", "batch_size"], ["0", "1", "batch_size"], None),
    ],
)
def test_a_target_never_depends_on_a_length_that_may_be_0(
    source: list[str], wanted: list[str], target: list[int] | None
) -> None:
    assert reshape_target(tuple(map(parse, source)), tuple(map(parse, wanted))) == target


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_any_chain_of_moves_keeps_every_bit(steps: list[int], random: object) -> None:
    """Reshapes, transposes, slices and splits in any order."""
    draw = random.choice  # type: ignore[attr-defined]
    lines, shape = ["v0 = Reshape (x, {0, 0, 3, 4})"], ["B", "S", 3, 4]
    for i, step in enumerate(steps):
        rank = len(shape)
        if step == 0:
            perm = draw(
                [list(range(rank)), list(range(rank))[::-1], [1, 0, *range(2, rank)], [*range(1, rank), 0]]
            )
            lines.append(f"v{i + 1} = Transpose <perm = {perm}> (v{i})")
            shape = [shape[axis] for axis in perm]
        elif step == 1 and rank < 6:
            at = draw(range(rank + 1))
            lines.append(f"v{i + 1} = Unsqueeze (v{i}, {{{at}}})")
            shape.insert(at, 1)
        elif step == 2 and 1 in shape:
            at = shape.index(1)
            lines.append(f"v{i + 1} = Squeeze (v{i}, {{{at}}})")
            shape.pop(at)
        elif step == 3 and any(isinstance(size, int) and size > 1 for size in shape):
            at = next(axis for axis, size in enumerate(shape) if isinstance(size, int) and size > 1)
            lines.append(f"v{i + 1} = Slice (v{i}, {{-{shape[at]}}}, {{-1}}, {{{at - rank}}})")
            shape[at] -= 1
        elif step == 4:
            lines.append(f"s{i} = Shape (v{i})  v{i + 1} = Reshape (v{i}, s{i})")
        else:
            flat = f"s{i} = Shape (v{i})  f{i} = Reshape (v{i}, {{-1}})"
            lines.append(f"{flat}  v{i + 1} = Reshape (f{i}, s{i})")
    lines.append(f"out = Neg (v{len(steps)})")
    before = len(spelled("  ".join(lines)).graph)
    model = spelled("  ".join(lines))
    assert len(rewritten(model)) <= before


def test_looks_at_nodes_grow_as_layers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = """
        a{i} = Reshape (h{i}, [0, 0, 3, 4])  b{i} = Transpose <perm = [0, 2, 1, 3]> (a{i})
        c{i} = Transpose <perm = [0, 2, 1, 3]> (b{i})  h{j} = Reshape (c{i}, [0, 0, 12])
    """.replace("[0, 0, 3, 4])", "{{0, 0, 3, 4}})").replace("[0, 0, 12])", "{{0, 0, 12}})")
    looks = []
    edit = shapes._edit
    monkeypatch.setattr(
        shapes, "_edit", lambda node, *rest: (looks.append(node.op_type), edit(node, *rest))[1]
    )

    def count(layers: int) -> int:
        looks.clear()
        body = "h0 = Neg (x) " + "".join(layer.format(i=i, j=i + 1) for i in range(layers))
        model = spelled(f"{body} out = Neg (h{layers})")
        run_pipeline(model, "fold, shapes", verify=False)
        assert [node.op_type for node in model.graph] == ["Neg", "Neg"]
        return len(looks)

    assert count(48) <= 4.2 * count(12)


# Lengths --------------------------------------------------------------------------------------------------


def test_lengths_are_asked_of_the_inputs() -> None:
    body = """
        h = Neg (x)  s = Shape (h)  zero = Constant <value_int = 0> ()  one = Constant <value_int = 1> ()
        n = Gather (s, one)  m = Add (n, n)  r = Range (zero, m, one)  q = Range (zero, n, one)
        a = ReduceSum <keepdims = 0> (r, {0})  b = ReduceSum <keepdims = 0> (q, {0})  c = Add (a, b)
        f = Cast <to = 1> (c)  out = Mul (h, f)
    """
    model = spelled(body)
    rewritten(model)
    (shape,) = [node for node in model.graph if node.op_type == "Shape"]
    assert shape.inputs[0] is model.graph.inputs[0]
    assert "Gather" not in [node.op_type for node in model.graph]
    assert run_pipeline(model, "shapes")[-1].fired == 0


def test_a_length_that_no_input_has_is_left() -> None:
    body = "i = NonZero (x)  s = Shape (i)  n = Gather <axis = 0> (s, {1})  e = ConstantOfShape (n)  out = Neg (e)"
    assert "Gather" in rewritten(spelled(body))


# Linear maps ----------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((12, 5)).astype(np.float32), RNG.standard_normal(5).astype(np.float32)


def with_weights(model: ir.Model, **weights: tuple[np.ndarray, bool]) -> ir.Model:
    """Weights, unread, in the place of inputs of their names; kept as ``[out, in]`` where told so."""
    for name, (array, transpose) in weights.items():
        old = next(value for value in model.graph.inputs if value.name == name)
        tensor = WeightTensor(name, Array(array.T.copy() if transpose else array), transpose=transpose)
        shape = ir.Shape(array.shape)
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        for user, i in old.uses():
            user.replace_input_with(i, value)
        model.graph.inputs.remove(old)
        model.graph.register_initializer(value)
    return model


FLAT = f"{INPUTS}, float[12,5] w, float[5] b, float[5,12] wt"
FLAT_WEIGHTS = {"w": (WEIGHT, True), "b": (BIAS, False), "wt": (WEIGHT.T.copy(), False)}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("g = Gemm (f, w, b)", ["MatMul", "Add"]),
        ("g = Gemm (f, w)", ["MatMul"]),
        ("g = Gemm <transB = 1> (f, wt, b)", ["MatMul", "Add"]),
        ("m = MatMul (f, w)  g = Add (b, m)", ["MatMul", "Add"]),
        (
            "g = Gemm <alpha = 0.5, beta = 2.0> (f, w, b)",
            ["Reshape", "MatMul", "Mul", "Mul", "Add", "Reshape"],
        ),
    ],
)
def test_linear_maps_work_on_rows_as_they_are(body: str, left: list[str]) -> None:
    back = "s = Shape (x)  t = Slice (s, {0}, {2})  u = Concat <axis = 0> (t, {5})  out = Reshape (g, u)"
    body = f"f = Reshape (x, {{-1, 12}})  {body}  {back}"
    model = with_weights(spelled(body, FLAT), **FLAT_WEIGHTS)
    found = rewritten(model, "fold, shapes, linear", exact=False)
    assert [op for op in found if op not in ("Shape", "Concat")] == left
    if len(left) < 3:
        matmul = next(node for node in model.graph if node.op_type == "MatMul")
        assert isinstance(matmul.inputs[1].const_value, WeightTensor)  # type: ignore[union-attr]
        assert matmul.inputs[1].const_value.transpose  # type: ignore[union-attr]


def test_a_transposed_gemm_is_a_product_of_the_transpose() -> None:
    model = spelled(
        "out = Gemm <transA = 1, transB = 1> (a, c, b)", "float[12,4] a, float[5,12] c, float[5] b"
    )
    assert rewritten(model, "linear", exact=False) == ["Transpose", "Transpose", "MatMul", "Add"]


def test_a_product_that_something_else_reads_is_not_made_twice() -> None:
    body = """
        f = Reshape (x, {-1, 12})  m = MatMul (f, w)
        s = Shape (x)  t = Slice (s, {0}, {2})  u = Concat <axis = 0> (t, {5})  r = Reshape (m, u)
        n = ReduceSum <keepdims = 0> (m, {0})  out = Add (r, n)
    """
    model = with_weights(spelled(body, FLAT), **FLAT_WEIGHTS)
    for name in ("b", "wt"):
        del model.graph.initializers[name]
    assert rewritten(model, "fold, shapes, linear", exact=False).count("MatMul") == 1


def test_rows_of_other_shapes_stay_rows() -> None:
    body = "f = Reshape (x, {-1, 12})  m = MatMul (f, w)  out = Reshape (m, {0, 5, 1})"
    model = with_weights(spelled(body, FLAT), **FLAT_WEIGHTS)
    assert rewritten(model, "fold, shapes, linear", exact=False) == ["Reshape", "MatMul", "Reshape"]


def test_annotated_dims_stay_true_after_the_passes() -> None:
    body = """
        a = Reshape (x, {0, 0, 3, 4})  b = Transpose <perm = [0, 2, 1, 3]> (a)  c = Reshape (b, {0, 3, -1, 4})
        out = Neg (c)
    """
    model = spelled(body)
    run_pipeline(model, "fold, shapes, linear")
    kept = [str(value.shape) for node in model.graph for value in node.outputs[:1]][:-1]
    annotate(model)
    assert kept == [str(value.shape) for node in model.graph for value in node.outputs[:1]][:-1]
