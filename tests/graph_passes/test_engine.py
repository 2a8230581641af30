"""The engine's parts, on graphs of a few nodes: what matches, what does not, and what it says then."""

# ruff: noqa: F722, F821, UP037 (annotations are dims: x: "*B D")

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.engine.emit import Emitter
from graph_passes.engine.matcher import Match, Miss, match
from graph_passes.engine.rewriting import Rewriting, rewrite
from graph_passes.engine.rule import Equation, Rule, rule
from graph_passes.engine.terms import Literal, Op, Refused, Shapes, Variable, lift
from graph_passes.engine.trial import try_rule
from graph_passes.inference.facts import annotate

FLOAT = ir.DataType.FLOAT


def val(name: str, *shape: int | str, dtype: ir.DataType = FLOAT) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def number(value: object, name: str, dtype: type = np.float32) -> ir.Value:
    tensor = ir.tensor(np.array(value, dtype), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def model_of(*outputs: ir.Value) -> ir.Model:
    """The graph that makes values, from all that they need."""
    nodes: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}

    def visit(value: ir.Value) -> None:
        node = value.producer()
        if node is None:
            (inputs if value.const_value is None else constants)[value] = None
        elif node not in nodes:
            for given in node.inputs:
                if given is not None:
                    visit(given)
            nodes[node] = None

    for output in outputs:
        visit(output)
    graph = ir.Graph(
        list(inputs),
        outputs,
        nodes=list(nodes),
        initializers=list(constants),
        opset_imports={"": 23},
        name="small",
    )
    model = ir.Model(graph, ir_version=10)
    annotate(model)
    return model


def make(op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
    return ir.node(op_type, inputs, attributes).outputs[0]


def found(of: Rule, value: ir.Value) -> Match | Miss:
    model_of(value)
    return match(of, 0, value)


def miss(of: Rule, value: ir.Value) -> Miss:
    result = found(of, value)
    assert isinstance(result, Miss)
    return result


# Matching ---------------------------------------------------------------------------------------------------


@rule
def lerp(op: Op, x: "*B D", y: "*B D", t: "*B D") -> Equation:
    """xt + y(1 − t)  ⇒  y + t(x − y)"""
    yield x * t + y * (1.0 - t)
    return y + t * (x - y)


@pytest.mark.parametrize("order", range(8))
def test_operands_come_in_any_order(order: int) -> None:
    """What the first product says of t is taken back where the second one disagrees."""
    x, y, t = (val(name, 2, 3) for name in "xyt")
    rest = make("Sub", number(1.0, "one"), t)
    pairs = [(x, t), (y, rest)]
    products = [make("Mul", *(pair if not order >> i & 1 else pair[::-1])) for i, pair in enumerate(pairs)]
    result = found(lerp, make("Add", *(products if not order >> 2 else products[::-1])))
    assert isinstance(result, Match)
    assert result.values == {"x": x, "y": y, "t": t}
    assert len(result.nodes) == 4


def test_a_value_that_comes_twice_has_to_be_one() -> None:
    x, y, t, other = (val(name, 2, 3) for name in ("x", "y", "t", "other"))
    rest = make("Sub", number(1.0, "one"), other)
    stopped = miss(lerp, make("Add", make("Mul", x, t), make("Mul", y, rest)))
    assert len(stopped.nodes) == 4
    assert "not the value that the rest of the pattern uses" in stopped.why


@rule
def either_root(op: Op, x: "*B D") -> Equation:
    """-√x, or what is the same  ⇒  -√x"""
    yield -op.either(op.Sqrt(x), op.Pow(x, 0.5), op.Reciprocal(op.Reciprocal(op.Sqrt(x))))
    return -op.Sqrt(x)


def test_alternatives_are_tried_in_turn_and_the_furthest_is_told() -> None:
    assert isinstance(
        found(either_root, make("Neg", make("Pow", val("x", 2, 3), number(0.5, "half")))), Match
    )
    assert isinstance(found(either_root, make("Neg", make("Sqrt", val("x", 2, 3)))), Match)
    inverses = make("Reciprocal", make("Reciprocal", make("Exp", val("x", 2, 3))))
    stopped = miss(either_root, make("Neg", inverses))
    assert [node.op_type for node in stopped.nodes] == ["Neg", "Reciprocal", "Reciprocal"]
    assert stopped.why == "it is Exp, not Sqrt"


@pytest.mark.parametrize(("shape", "fits"), [([2, 3, 32], True), ([2, 96], False), ([2, 3, 4, 8], False)])
def test_dims_are_reckoned_with(shape: list[int], fits: bool) -> None:
    @rule
    def merged(op: Op, x: "B S H D") -> Equation:
        """heads side by side  ⇒  their negatives"""
        yield -op.Reshape(x, "B S H*D")
        return op.Reshape(-x, "B S H*D")

    flat = make("Reshape", val("x", 2, 3, 4, 8), number(shape, "shape", np.int64))
    result = found(merged, make("Neg", flat))
    assert isinstance(result, Match) is fits
    if isinstance(result, Miss):
        assert result.why == f"it has shape [{', '.join(map(str, shape))}], not [B S H*D]"


def test_dims_that_are_no_numbers_are_equal_only_to_themselves() -> None:
    shapes = Shapes({"B": "batch", "D": 8, "*A": ("s", 3)})
    assert shapes.resolve("B *A D/2 2*D 1") == ("batch", "s", 3, 4, 16, 1)
    with pytest.raises(ValueError, match="batch"):
        shapes.dim("B*D")
    with pytest.raises(ValueError, match="no multiple"):
        shapes.dim("D/3")

    @rule
    def square(op: Op, x: "S S") -> Equation:
        """a square  ⇒  itself turned"""
        yield op.Transpose(x, perm=[1, 0])
        return op.Transpose(x, perm=[1, 0])

    assert isinstance(found(square, make("Transpose", val("x", "s", "s"), perm=[1, 0])), Match)
    assert "not [S S]" in miss(square, make("Transpose", val("x", "s", "t"), perm=[1, 0])).why


@rule
def tripled(op: Op, x: "*B D", c: "constant") -> Equation:
    """3x + c  ⇒  x + x + (x + c)"""
    yield x * 3.0 + c
    return x + x + (x + c)


def times_plus(factor: ir.Value, summand: ir.Value) -> ir.Value:
    return make("Add", make("Mul", val("x", 2, 3), factor), summand)


def test_constants_are_compared_by_value_and_given_as_numbers() -> None:
    result = found(tripled, times_plus(number([[3.0]], "three"), number(0.5, "c")))
    assert isinstance(result, Match) and result.values["c"] == 0.5
    stopped = miss(tripled, times_plus(number(3.1, "near"), number(0.5, "c")))
    assert (stopped.at, stopped.why) == ("near", "it is the constant 3.1, not 3.0")
    vector = miss(tripled, times_plus(number(3.0, "three"), number([1.0, 2.0, 3.0], "v")))
    assert (vector.at, vector.why) == ("v", "it is no scalar constant")


def test_a_weight_is_never_read() -> None:
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    def weight() -> ir.Value:
        lazy = ir.LazyTensor(read, dtype=FLOAT, shape=ir.Shape([1]), name="w")
        return ir.Value(name="w", type=ir.TensorType(FLOAT), shape=ir.Shape([1]), const_value=lazy)

    assert "not the constant 3.0" in miss(tripled, times_plus(weight(), number(0.5, "c"))).why
    assert miss(tripled, times_plus(number(3.0, "three"), weight())).why == "it is no scalar constant"


@pytest.mark.parametrize(
    ("attributes", "why"),
    [({}, None), ({"axis": -1}, None), ({"axis": 1}, None), ({"axis": 0}, "axis=0, not -1")],
)
def test_attributes_have_defaults_and_axes_count_from_both_ends(
    attributes: dict[str, int], why: str | None
) -> None:
    @rule
    def last(op: Op, x: "*B D") -> Equation:
        """a softmax over the last axis  ⇒  the same, said"""
        yield op.Softmax(x)
        return op.Softmax(x, axis=-1)

    result = found(last, make("Softmax", val("x", 2, 3), **attributes))
    assert isinstance(result, Match) if why is None else isinstance(result, Miss) and why in result.why


def test_an_attribute_can_be_a_variable() -> None:
    @rule
    def leaky(op: Op, x: "*B D", slope: "attribute") -> Equation:
        """-leaky(x)  ⇒  leaky(x) · -1"""
        yield -op.LeakyRelu(x, alpha=slope)
        return op.LeakyRelu(x, alpha=slope) * -1.0

    given = found(leaky, make("Neg", make("LeakyRelu", val("x", 2, 3), alpha=0.25)))
    default = found(leaky, make("Neg", make("LeakyRelu", val("x", 2, 3))))
    assert isinstance(given, Match) and given.values["slope"] == 0.25
    assert isinstance(default, Match) and default.values["slope"] == pytest.approx(0.01)


def test_an_input_may_be_left_out() -> None:
    @rule
    def clipped(op: Op, x: "*B D", high: "maybe float *C") -> Equation:
        """-clip(x)  ⇒  clip(x) · -1"""
        yield -op.Clip(x, None, high)
        return op.Clip(x, None, high) * -1.0

    for given in ((), (None, val("high"))):
        result = found(clipped, make("Neg", make("Clip", val("x", 2, 3), *given)))
        assert isinstance(result, Match) and result.values["high"] is (given[1] if given else None)
    assert "leaves out" in miss(clipped, make("Neg", make("Clip", val("x", 2, 3), val("low")))).why


def test_several_outputs_stand_for_several_values() -> None:
    @rule
    def split(op: Op, x: "*B D") -> Equation:
        """-a and b of a node  ⇒  b and -a of slices"""
        a, b = op.Split(x, axis=-1, num_outputs=2, outputs=2)
        yield -a * b, b
        return -op.Slice(x, 0, "D/2") * op.Slice(x, "D/2", None), op.Slice(x, "D/2", None)

    node = ir.node("Split", [val("x", 2, 8)], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    top = make("Mul", make("Neg", node.outputs[0]), node.outputs[1])
    model = model_of(top, node.outputs[1])
    result = match(split, 0, top)
    assert isinstance(result, Match)
    assert result.roots == (top, node.outputs[1])
    assert rewrite(model, [split]).fired == 1
    assert "Split" not in [n.op_type for n in model.graph]


def test_an_intermediate_that_escapes_is_named_with_its_reader() -> None:
    x = val("x", 2, 3)
    root = make("Sqrt", x)
    model = model_of(make("Neg", root), make("Exp", root))
    result = match(either_root, 0, model.graph.outputs[0])
    assert isinstance(result, Miss) and result.why == "Sqrt is also used by Exp"


# Emitting ---------------------------------------------------------------------------------------------------


def emitter(graph: ir.Graph, element: ir.DataType = FLOAT, **dims: int | str) -> tuple[Emitter, Variable]:
    x = Variable("x")
    return Emitter(graph, {"x": graph.inputs[0]}, Shapes(dims), element), x


def test_a_shape_is_written_with_as_little_as_it_needs() -> None:
    graph = model_of(make("Neg", val("x", "b", "s", 4, 8))).graph
    emit, x = emitter(graph, B="b", S="s", H=4, D=8)
    made = emit.value(Op().Reshape(x, "B S H*D"))
    target = made.producer().inputs[1].const_value.numpy()
    assert target.tolist() == [0, 0, 32]
    with pytest.raises(Refused, match="more than one dim"):
        emit.value(Op().Reshape(x, "S B H D"))


def test_numbers_take_the_type_of_what_they_meet() -> None:
    graph = model_of(make("Neg", val("x", 2, dtype=ir.DataType.FLOAT16))).graph
    emit, x = emitter(graph)
    product = emit.value(x * 0.5)
    assert product.producer().inputs[1].dtype == ir.DataType.FLOAT16
    assert emit.value(lift([1, 2])).dtype == ir.DataType.INT64


def test_a_term_used_twice_is_made_once() -> None:
    graph = model_of(make("Neg", val("x", 2))).graph
    emit, x = emitter(graph)
    half = x * 0.5
    emit.value(half + half)
    assert [node.op_type for node in emit.nodes] == ["Mul", "Add"]
    assert isinstance(half.inputs[1], Literal)


# Rewriting --------------------------------------------------------------------------------------------------


@rule
def twice(op: Op, x: "*B D") -> Equation:
    """--x  ⇒  |x| · sign(x)"""
    yield op.Neg(op.Neg(x))
    return op.Abs(x) * op.Sign(x)


@rule
def signed(op: Op, x: "*B D") -> Equation:
    """e^(|x| · sign(x))  ⇒  e^x"""
    yield op.Exp(op.Abs(x) * op.Sign(x))
    return op.Exp(x)


def test_what_one_rule_makes_another_takes() -> None:
    for rules in ([twice, signed], [signed, twice]):
        model = model_of(make("Exp", make("Neg", make("Neg", val("x", 2, 3)))))
        done = rewrite(model, rules)
        assert [node.op_type for node in model.graph] == ["Exp"]
        assert {name: count.fired for name, count in done.counts.items()} == {"twice": 1, "signed": 1}
        assert done.misses == ()


def test_rules_that_undo_one_another_are_named() -> None:
    @rule
    def there(op: Op, x: "*B D") -> Equation:
        """-x  ⇒  0 - x"""
        yield -x
        return 0.0 - x

    @rule
    def back(op: Op, x: "*B D") -> Equation:
        """0 - x  ⇒  -x"""
        yield 0.0 - x
        return -x

    with pytest.raises(AssertionError, match=r"there, back|back, there"):
        rewrite(model_of(make("Neg", val("x", 2, 3))), [there, back])


def test_a_value_of_another_shape_is_refused_and_leaves_no_trace() -> None:
    @rule
    def wrong(op: Op, x: "*B D") -> Equation:
        """√x, summed  ⇒  its only sum, which is smaller"""
        yield op.Sqrt(-x)
        return op.ReduceSum(x * 0.25, [-1])

    model = model_of(make("Sqrt", make("Neg", val("x", 2, 3))))
    done = rewrite(model, [wrong])
    assert done.fired == 0 and [node.op_type for node in model.graph] == ["Neg", "Sqrt"]
    assert list(model.graph.initializers) == []
    (attempt,) = done.attempts
    assert attempt.share == 1.0 and "would have shape (2, 1), not (2, 3)" in attempt.why


def test_a_condition_is_asked_with_numbers_and_says_what_it_wants() -> None:
    @rule(example={"c": 2.0})
    def halved(op: Op, x: "*B D", c: "constant") -> Equation:
        """-(cx)  ⇒  x · -c, for c > 1"""
        yield -(x * c)
        op.require(c > 1, f"{c} is not above 1")
        return x * -c

    assert try_rule(halved) == 1
    done = rewrite(model_of(make("Neg", make("Mul", val("x", 2, 3), number(0.5, "c")))), [halved])
    assert done.fired == 0
    assert [attempt.why for attempt in done.attempts] == ["0.5 is not above 1"]


def test_what_is_shared_stays_where_others_need_it() -> None:
    @rule
    def root(op: Op, x: "*B D") -> Equation:
        """-(√x)  ⇒  √x · -1, and √x may be used elsewhere"""
        yield -op.shared(op.Sqrt(x))
        return op.Sqrt(x) * -1.0

    def ops(also: bool) -> list[str]:
        sqrt = make("Sqrt", val("x", 2, 3))
        model = model_of(make("Neg", sqrt), *([make("Exp", sqrt)] if also else []))
        assert rewrite(model, [root]).fired == 1
        return sorted(node.op_type for node in model.graph)

    assert ops(also=False) == ["Mul", "Sqrt"]
    assert ops(also=True) == ["Exp", "Mul", "Sqrt", "Sqrt"]


def test_near_misses_are_those_attempts_that_came_far() -> None:
    x, y, t, other = (val(name, 2, 3) for name in ("x", "y", "t", "other"))
    rest = make("Sub", number(1.0, "one"), other)
    far = make("Add", make("Mul", x, t), make("Mul", y, rest))
    near_by = make("Add", x, y)
    done: Rewriting = rewrite(model_of(far, near_by), [lerp])
    assert len(done.attempts) == 2 and [m.share for m in done.misses] == [1.0]
    assert done.misses[0].nodes[0] is far.producer()
    assert str(done.misses[0]).startswith(f"{done.misses[0].place}: lerp stopped at other: ")
