"""What is known of values is true when the graph runs, and nothing is claimed that is not known."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import onnx_ir as ir
import pytest
from decoders import VARIANTS, canonical, decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import FOREIGN, calls, graph, unoptimised

from exporter.errors import OnnxGptError
from exporter.weight_tensor import WeightTensor
from graph_passes import run_pipeline
from graph_passes.inference.dims import evaluate, symbols
from graph_passes.inference.facts import annotate, contents, dims, infer_node
from graph_passes.matching import make


def check(model: ir.Model, skip: str = "") -> int:
    """Compare dims, types and contents of every value with what runs; how many dims and elements were compared."""
    annotate(model)
    session = unoptimised(model, everything=True)
    values = {value.name: value for node in model.graph for value in node.outputs}
    compared = 0
    for lengths, feeds in calls(model):
        try:
            results = session.run(None, dict(feeds))
        except Exception as error:  # one token a row with a past is all that a fused attention takes
            if skip and skip in str(error):
                continue
            raise
        for output, found in zip(session.get_outputs(), results, strict=True):
            value = values[output.name]
            shape = dims(value)
            assert shape is not None and value.dtype is not None, value
            assert value.dtype.numpy() == found.dtype and len(shape) == found.ndim
            pairs = list(zip(shape, found.shape, strict=True))
            pairs += [
                (e, n)
                for e, n in zip(contents(value) or (), found.reshape(-1), strict=False)
                if e is not None
            ]
            for size, number in pairs:
                if symbols(size) <= set(lengths):
                    assert evaluate(size, lengths) == number, (value, shape, found.shape, lengths)
                    compared += 1
    return compared


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_every_value_of_a_foreign_graph_is_as_said(path: Path) -> None:
    model = ir.load(path)
    assert check(model, skip="GroupQueryAttention") > 4 * model.graph.num_nodes() / 3
    for node in model.graph:
        for value in node.outputs:
            assert all("#" not in str(size) for size in dims(value) or ()), value
    assert all("#" not in str(size) for value in model.graph.inputs for size in dims(value) or ())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "window"])
def test_every_value_of_our_own_graph_is_as_said(name: str) -> None:
    check(canonical(decoder(**VARIANTS[name])))


class Untouchable(WeightTensor):
    """A weight that may not be read."""

    def _whole(self) -> ir.Tensor[np.ndarray]:
        raise AssertionError("a weight was read")


def test_weights_are_not_read() -> None:
    model = canonical(decoder())
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, WeightTensor):
            old = value.const_value
            value.const_value = Untouchable(str(old.name), old.weight, transpose=old.transpose)
    annotate(model)


# Symbols --------------------------------------------------------------------------------------------------

CACHE = "float[b,2,p,16] past_key, float[b,2,p,16] past_value"


@pytest.mark.parametrize(
    "mask",
    [("batch", "past_sequence_length + 1"), ("b", "t"), ("b", "sequence_length"), ("any", "p"), (None, None)],
)
def test_the_mask_is_as_long_as_past_and_call_whatever_its_dims_are_called(
    mask: tuple[str | None, str | None],
) -> None:
    inputs = f"int64[b,sequence_length] input_ids, int64[m,n] attention_mask, {CACHE}"
    model = graph("out = Shape (attention_mask)", inputs, "int64[2] out")
    model.graph.inputs[1].shape = ir.Shape(mask)
    annotate(model)
    _, masked, _, past = (list(map(str, dims(value) or ())) for value in model.graph.inputs)
    assert masked == ["batch_size", "past_sequence_length + sequence_length"]
    assert past == ["batch_size", "2", "past_sequence_length", "16"]
    assert list(model.graph.inputs[1].shape) == list(mask)  # the file's spelling stays


def test_a_name_on_other_inputs_means_what_it_means_on_known_ones_unless_it_lies() -> None:
    inputs = "int64[b,n] input_ids, int64[b,n] attention_mask, float[b,n,m] bias, float[n,2] other"
    model = graph("out = Shape (bias)", f"{inputs}, {CACHE}", "int64[3] out")
    annotate(model)
    bias, other = (dims(model.graph.inputs[i]) for i in (2, 3))
    assert list(map(str, bias)) == ["batch_size", "bias#1", "m"]  # n is two lengths: it says nothing
    assert list(map(str, other)) == ["other#0", "2"]


def test_a_cache_of_a_fixed_size_says_nothing_of_the_mask() -> None:
    inputs = "int64[b,s] input_ids, int64[b,t] attention_mask, float[b,2,64,16] past_key"
    model = graph("out = Shape (attention_mask)", inputs, "int64[2] out")
    annotate(model)
    assert str(dims(model.graph.inputs[1])[1]) == "attention_mask#1"  # type: ignore[index]


def test_dims_that_nothing_tells_are_equal_to_no_other() -> None:
    body = "a = NonZero (x)  b = NonZero (x)  c = Add (a, b)  d = Add (a, a)"
    model = graph(body, "float[N] x", "int64[1,M] c, int64[1,M] d")
    annotate(model)
    a, b, c, d = (node.outputs[0] for node in model.graph)
    assert len({str(dims(value)[1]) for value in (a, b, c)}) == 3  # type: ignore[index]
    assert dims(a) == dims(d)


def test_a_declared_shape_of_an_intermediate_value_is_not_trusted() -> None:
    model = graph("a = Neg (x)  y = Abs (a)", "float[N,4] x", "float[N,4] y")
    model.graph[0].outputs[0].shape = ir.Shape(["other", 9])
    annotate(model)
    assert str(model.graph[0].outputs[0].shape) == "[N,4]"


# Ops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = Reshape (x, {0, 0, 2, -1})", "B, S, 2, 4"),
        ("y = Reshape (x, {-1, 8})", "B*S, 8"),
        ("y = Reshape (x, {4, -1})", "4, 2*B*S"),
        ("y = Reshape (x, {3, -1})", "3, y#1"),
        ("s = Shape (x)  y = Reshape (x, s)", "B, S, 8"),
        ("s = Shape <start = 1> (x)  y = Expand (one, s)", "S, 8"),
        ("y = Flatten <axis = -1> (x)", "B*S, 8"),
        ("y = Unsqueeze (x, {-1, 0})", "1, B, S, 8, 1"),
        ("y = Transpose (x)", "8, S, B"),
        ("y = Slice (x, {1}, {9223372036854775807}, {1})", "B, S - 1, 8"),
        ("y = Slice (x, {-1}, {9223372036854775807}, {1})", "B, 1, 8"),
        ("y = Slice (x, {2}, {9223372036854775807}, {1})", "B, y#1, 8"),
        ("y = Slice (x, {-1}, {-9223372036854775807}, {2}, {-2})", "B, S, 4"),
        ("t = Transpose <perm = [0, 2, 1]> (x)  y = MatMul (x, t)", "B, S, S"),
        ("y = Concat <axis = 1> (x, x)", "B, 2*S, 8"),
        ("y = ReduceMean <keepdims = 0> (x, {1})", "B, 8"),
        ('y = Einsum <equation = "bse,bte->bst"> (x, x)', "B, S, S"),
        ("y = Tile (x, {1, 2, 3})", "B, 2*S, 24"),
        ("y, z = Split <axis = 2, num_outputs = 2> (x)", "B, S, 4"),
        ("y, i = TopK (x, {2})", "B, S, 2"),
        ("n = Size (x)  y = Range (zero, n, four)", "2*B*S"),
        ("y = Squeeze (x)", "?"),
    ],
)
def test_shapes_of_ops(body: str, shape: str) -> None:
    constants = ""
    for i, numbers in enumerate(re.findall(r"\{(.*?)\}", body)):
        constants += f"c{i} = Constant <value_ints = [{numbers}]> ()  "
        body = body.replace("{" + numbers + "}", f"c{i}", 1)
    scalars = "zero = Constant <value_int = 0> ()  four = Constant <value_int = 4> ()  "
    inputs = "float[batch_size,sequence_length,8] x, float[1,1] one"
    model = graph(f"{constants} {scalars} {body} out = Shape (y)", inputs, "int64[N] out")
    annotate(model)
    found = dims(next(value for node in model.graph for value in node.outputs if value.name == "y"))
    text = "?" if found is None else ", ".join(map(str, found))
    assert text.replace("batch_size", "B").replace("sequence_length", "S") == shape


def test_a_branch_that_is_not_decided_gives_what_both_agree_on() -> None:
    then = "then () => (float[B,N,4] a) { a = Neg (x) }"
    other = "other () => (float[B,N,4] b) { t = Abs (x)  b = Concat <axis = 1> (t, t) }"
    body = f"y = If (c) <then_branch = {then}, else_branch = {other}>  z = Neg (y)"
    model = graph(body, "bool c, float[B,3,4] x", "float[B,N,4] z")
    annotate(model)
    assert list(map(str, dims(model.graph[0].outputs[0]) or ())) == ["B", "y#1", "4"]


def test_a_node_that_makes_no_sense_is_an_error_with_a_name() -> None:
    model = graph("y = Transpose <perm = [0, 5]> (x)", "float[2,3] x", "float[N,M] y")
    with pytest.raises(OnnxGptError) as caught:
        annotate(model)
    assert caught.value.code == "onnx-invalid"


def test_a_graph_that_squares_its_lengths_for_ever_is_refused() -> None:
    squares = "  ".join(f"s{i + 1} = Mul (s{i}, s{i})" for i in range(60))
    model = graph(f"s0 = Shape (x)  {squares}  out = Neg (s60)", "float[B,S] x", "int64[2] out")
    with pytest.raises(OnnxGptError) as caught:
        annotate(model)
    assert caught.value.code == "onnx-invalid"


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(FOREIGN), st.randoms(use_true_random=False))
def test_a_damaged_graph_is_refused_by_name_or_understood(path: Path, random: Random) -> None:
    """Axes, shapes and inputs that make no sense end in an error with a code."""
    model = ir.load(path)
    nodes = [node for node in model.graph if node.inputs]
    for node in random.sample(nodes, 3):
        numbers = [name for name, held in node.attributes.items() if held.type == ir.AttributeType.INT]
        if numbers and random.random() < 0.5:
            name = random.choice(numbers)
            node.attributes[name] = ir.AttrInt64(name, random.choice([-9, 0, 1, 7, 2**40]))
        else:
            other = random.choice([*model.graph.inputs, *model.graph.initializers.values(), None])
            node.replace_input_with(random.randrange(len(node.inputs)), other)
    try:
        run_pipeline(model, "inline, fold, shapes, linear", verify=False)
    except OnnxGptError as error:
        assert error.code == "onnx-invalid"


def test_new_nodes_are_inferred_when_they_are_asked_for() -> None:
    model = graph("y = Neg (x)", "float[B,S,8] x", "float[B,S,8] y")
    annotate(model)
    x = model.graph.inputs[0]
    shape = make("Shape", [x], "shape")
    first = make(
        "Gather", [shape.outputs[0], make("Constant", [], "one", value_int=1).outputs[0]], "first", axis=0
    )
    assert list(map(str, contents(first.outputs[0]) or ())) == ["S"]
    assert dims(first.outputs[0]) == ()
    turned = make("Transpose", [x], "turned", perm=[2, 1, 0])
    infer_node(turned)
    assert str(turned.outputs[0].shape) == "[8,S,B]" and turned.outputs[0].dtype == ir.DataType.FLOAT
