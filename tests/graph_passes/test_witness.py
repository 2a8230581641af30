"""Every rewrite is run on both sides: right ones are proven, wrong ones are found wherever they hide."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoders import VARIANTS, canonical, decoder

import onnx_gpt
from exporter.errors import OnnxGptError
from exporter.weight_expressions import Stack
from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Unread
from graph_passes import ORT_PIPELINE, PassReport, passes_by_name, run_pipeline
from graph_passes.matching import MICROSOFT, initializer, make, replace
from graph_passes.outcome import Outcome
from graph_passes.passes import clean, fold

# Right rewrites -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_rewrite_of_the_pipeline_is_proven(name: str) -> None:
    reports = {
        report.name: report for report in run_pipeline(canonical(decoder(**VARIANTS[name])), ORT_PIPELINE)
    }
    for report in reports.values():
        assert report.proof is not None
        assert report.proof.unproven == ()
        assert report.proof.witnesses == report.proof.proven
        assert report.proof.worst <= 4
    for pass_name in ("attention", "qkv", "keep", "norm"):
        assert reports[pass_name].fired
        assert reports[pass_name].proof.witnesses >= 1, pass_name


def proofs(layers: int) -> list[int]:
    return [
        report.proof.witnesses for report in run_pipeline(canonical(decoder(layers=layers)), ORT_PIPELINE)
    ]


def test_equal_structures_are_checked_once() -> None:
    assert proofs(3) == proofs(9)
    assert sum(proofs(3)) < 25


def test_leaving_verification_out_runs_nothing() -> None:
    reports = run_pipeline(canonical(decoder()), ORT_PIPELINE, verify=False)
    assert all(report.proof is None for report in reports)


# Wrong rewrites -------------------------------------------------------------------------------------

Change = Callable[[ir.Model], None]


def graph(body: str, inputs: str = "float[B,S,8] x, float[B,S,8] y", opset: int = 23) -> ir.Model:
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    text = f"{header} g ({inputs}) => (float[B,S,E] out) {{ {body} }}"
    return ir.from_proto(onnx.parser.parse_model(text))


def of(model: ir.Model, op_type: str, at: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op_type][at]


def as_pass(monkeypatch: pytest.MonkeyPatch, change: Change, kind: str = "fp", name: str = "clean") -> None:
    """Let a pass do what we want."""

    def apply(model: ir.Model) -> Outcome:
        change(model)
        return Outcome(1)

    module = passes_by_name()[name]
    monkeypatch.setattr(module, "apply", apply)
    monkeypatch.setattr(module, "KIND", kind)


def run(monkeypatch: pytest.MonkeyPatch, model: ir.Model, change: Change, kind: str = "fp") -> PassReport:
    as_pass(monkeypatch, change, kind)
    (report,) = run_pipeline(model, "clean")
    assert report.proof is not None
    return report


def swap(model: ir.Model, op: str, new: ir.Node, *more: ir.Node) -> None:
    old = of(model, op)
    replace(old, [old], [new, *more], [(old.outputs[0], (more or (new,))[-1].outputs[0])])


def scalar(model: ir.Model, number: float) -> ir.Value:
    return initializer(model.graph, ir.tensor(np.array(number, np.float32), name="number"))


def to(op: str, new: str, inputs: list[int], **attributes: object) -> Change:
    """One node of another op on the same inputs, in another order."""

    def change(model: ir.Model) -> None:
        old = of(model, op)
        swap(model, op, make(new, [old.inputs[i] for i in inputs], "new", **attributes))

    return change


def add_zero(model: ir.Model) -> None:
    old = of(model, "Neg")
    inner = make("Neg", [old.inputs[0]], "inner")
    swap(model, "Neg", inner, make("Add", [inner.outputs[0], scalar(model, 0.0)], "new"))


def through_half(model: ir.Model) -> None:
    old = of(model, "Exp")
    half = make("Cast", [old.inputs[0]], "half", to=ir.DataType.FLOAT16)
    single = make("Cast", [half.outputs[0]], "single", to=ir.DataType.FLOAT)
    swap(model, "Exp", half, single, make("Exp", [single.outputs[0]], "new"))


def drop_epsilon(model: ir.Model) -> None:
    old = of(model, "RMSNormalization")
    swap(model, "RMSNormalization", make("RMSNormalization", old.inputs, "new", axis=-1, epsilon=1e-6))


NORM = """twos = Constant <value = float[8] {2, 2, 2, 2, 2, 2, 2, 2}> ()
    out = RMSNormalization <axis = -1, epsilon = 1e-5> (x, twos)"""


@pytest.mark.parametrize(
    ("body", "change", "kind"),
    [
        ("out = Sub (x, y)", to("Sub", "Sub", [1, 0]), "fp"),
        ("out = Sub (x, y)", to("Sub", "Add", [0, 1]), "exact"),
        ("out = Max (x, y)", to("Max", "Min", [0, 1]), "exact"),
        ("out = Softmax <axis = 2> (x)", to("Softmax", "Softmax", [0], axis=1), "fp"),
        ("out = Gelu (x)", to("Gelu", "Gelu", [0], approximate="tanh"), "fp"),
        ("out = Gelu (x)", to("Gelu", "QuickGelu", [0], domain=MICROSOFT, alpha=1.702), "fp"),
        ("out = Transpose <perm = [1, 0, 2]> (x)", to("Transpose", "Identity", [0]), "exact"),
        ("out = Cast <to = 10> (x)", to("Cast", "Identity", [0]), "fp"),
        ("s = Shape (x)  a = Neg (x)  out = Reshape (a, s)", to("Neg", "Identity", [0]), "exact"),
        ("out = Exp (x)", through_half, "fp"),
        (NORM, drop_epsilon, "fp"),
    ],
)
def test_wrong_replacements_are_found(
    monkeypatch: pytest.MonkeyPatch, body: str, change: Change, kind: str
) -> None:
    with pytest.raises(OnnxGptError) as caught:
        run(monkeypatch, graph(body), change, kind)
    error = caught.value
    assert (error.code, error.exit) == ("rewrite-wrong", 1)
    assert "'clean'" in error.cause
    assert error.details[0].startswith("before: ") and error.details[1].startswith("after: ")


@pytest.mark.parametrize(
    ("body", "change", "kind"),
    [
        ("out = Add (x, y)", to("Add", "Add", [1, 0]), "exact"),
        ("out = Neg (x)", add_zero, "fp"),
        ("out = Sigmoid (x)", to("Sigmoid", "Sigmoid", [0]), "exact"),
    ],
)
def test_right_replacements_are_proven(
    monkeypatch: pytest.MonkeyPatch, body: str, change: Change, kind: str
) -> None:
    proof = run(monkeypatch, graph(body), change, kind).proof
    assert proof is not None
    assert (proof.witnesses, proof.proven, proof.unproven) == (1, 1, ())


def reassociate(model: ir.Model) -> None:
    """(x + y) + z ⇒ x + (y + z)."""
    outer, inner = of(model, "Add", 1), of(model, "Add", 0)
    first = make("Add", [inner.inputs[1], outer.inputs[1]], "first")
    second = make("Add", [inner.inputs[0], first.outputs[0]], "second")
    replace(outer, [inner, outer], [first, second], [(outer.outputs[0], second.outputs[0])])


def test_reordered_sums_are_fp_and_exact_on_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = "float[B,S,8] x, float[B,S,8] y, float[B,S,8] z"
    for kind in ("fp", "exact"):
        proof = run(monkeypatch, graph("s = Add (x, y)  out = Add (s, z)", inputs), reassociate, kind).proof
        assert proof is not None and proof.proven == 1


def squared(model: ir.Model) -> None:
    """Every power becomes a square."""
    for node in [n for n in model.graph if n.op_type == "Pow"]:
        new = make("Mul", [node.inputs[0], node.inputs[0]], "square")
        replace(node, [node], [new], [(node.outputs[0], new.outputs[0])])


def turned(model: ir.Model) -> None:
    """Every transposed weight is taken as it lies, by a product that turns it round itself."""
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        transpose = node.inputs[1].producer()  # type: ignore[union-attr]
        assert transpose is not None
        new = make("FusedMatMul", [node.inputs[0], transpose.inputs[0]], "fused", domain=MICROSOFT, transB=1)
        replace(node, [node], [new], [(node.outputs[0], new.outputs[0])])


@pytest.mark.parametrize(
    ("body", "change"),
    [
        (
            "t = Constant <value_float = {}> ()  p = Pow (x, t)  u = Constant <value_float = {}> ()  q = Pow (y, u)",
            squared,
        ),
        (
            "t = Transpose <perm = [{}]> (w)  p = MatMul (x, t)  u = Transpose <perm = [{}]> (v)  q = MatMul (y, u)",
            turned,
        ),
    ],
)
def test_what_is_equal_but_for_one_number_is_not_equal(
    monkeypatch: pytest.MonkeyPatch, body: str, change: Change
) -> None:
    """The first firing is right; the second is so only if it has the same constant, above or inside the piece."""
    right, wrong = ("2.0", "3.0") if change is squared else ("1, 0", "0, 1")
    inputs = "float[B,S,8] x, float[B,S,8] y, float[8,8] w, float[8,8] v"
    proof = run(monkeypatch, graph(f"{body.format(right, right)}  out = Add (p, q)", inputs), change).proof
    assert proof is not None and proof.proven == proof.witnesses >= 1
    with pytest.raises(OnnxGptError, match="changed what the graph computes"):
        run(monkeypatch, graph(f"{body.format(right, wrong)}  out = Add (p, q)", inputs), change)


# Changes that go round `replace` ------------------------------------------------------------------------


def in_place(op: str, at: int = 0, **attributes: object) -> Change:
    def change(model: ir.Model) -> None:
        for name, value in attributes.items():
            of(model, op, at).attributes[name] = ir.convenience.convert_attribute(name, value)

    return change


def other_input(op: str, i: int, name: str) -> Change:
    def change(model: ir.Model) -> None:
        values = {v.name: v for v in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs))}
        of(model, op).replace_input_with(i, values[name])

    return change


def other_op(op: str, new: str) -> Change:
    return lambda model: setattr(of(model, op), "op_type", new)


def wrong_constant(model: ir.Model) -> None:
    node = of(model, "Add")
    tensor = ir.tensor(np.array([3], np.int64), name=node.outputs[0].name)
    ir.convenience.replace_all_uses_with(node.outputs[0], initializer(model.graph, tensor))
    model.graph.remove(node, safe=True)


FOLDABLE = (
    "a = Constant <value_ints = [1]> ()  b = Add (a, a)  out = Tile (x, r)  c = Concat <axis = 0> (a, b)"
)


@pytest.mark.parametrize(
    ("body", "change"),
    [
        ("out = Softmax <axis = 2> (x)", in_place("Softmax", axis=1)),
        ("a = Exp (x)  out = Mul (a, y)", other_input("Mul", 1, "x")),
        ("a = Exp (x)  b = Sqrt (a)  out = Mul (b, y)", other_input("Mul", 0, "a")),
        ("a = Exp (x)  out = Mul (a, y)", other_op("Exp", "Sqrt")),
        (
            "a = Constant <value_ints = [1]> ()  b = Add (a, a)  out = Unsqueeze (x, b)",
            wrong_constant,
        ),
    ],
)
def test_wrong_changes_in_place_are_found(monkeypatch: pytest.MonkeyPatch, body: str, change: Change) -> None:
    with pytest.raises(OnnxGptError, match="changed what the graph computes"):
        run(monkeypatch, graph(body), change)


def test_folding_and_cleaning_are_seen_though_they_replace_nothing() -> None:
    model = graph(
        """i = Identity (x)  a = Exp (i)  b = Exp (i)  c = Constant <value_float = 2.0> ()  d = Mul (c, c)
           e = Mul (a, d)  out = Add (e, b)"""
    )
    fold_report, clean_report = run_pipeline(model, "fold, clean")
    assert fold_report.fired and fold_report.proof is not None and clean_report.proof is not None
    assert fold_report.proof.witnesses >= 1
    assert fold_report.proof.unproven == clean_report.proof.unproven == ()
    assert fold.KIND == clean.KIND == "exact"


def test_ops_that_mean_something_else_in_another_opset_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax flattened its input before opset 13."""

    def declare(model: ir.Model) -> None:
        model.graph.opset_imports[""] = 13

    with pytest.raises(OnnxGptError, match="changed what the graph computes"):
        run(monkeypatch, graph("out = Softmax <axis = 1> (x)", opset=12), declare)


# Masks, lengths, weights ------------------------------------------------------------------------------


def spoil_attention(edit: Callable[[ir.Node], None]) -> Change:
    """Let the real pass make its GroupQueryAttention, with a mistake."""
    attention = passes_by_name()["attention"]
    original = attention.apply

    def change(model: ir.Model) -> None:
        module = sys.modules["graph_passes.passes.attention"]
        real = module.make  # type: ignore[attr-defined]

        def spoiled(op_type: str, *arguments: object, **keywords: object) -> ir.Node:
            node = real(op_type, *arguments, **keywords)
            if op_type == "GroupQueryAttention":
                edit(node)
            return node

        module.make = spoiled  # type: ignore[attr-defined]
        try:
            original(model)
        finally:
            module.make = real  # type: ignore[attr-defined]

    return change


def attribute(name: str, value: object) -> Callable[[ir.Node], None]:
    return lambda node: node.attributes.add(ir.convenience.convert_attribute(name, value))


def exchange(i: int, j: int) -> Callable[[ir.Node], None]:
    def edit(node: ir.Node) -> None:
        a, b = node.inputs[i], node.inputs[j]
        node.replace_input_with(i, b)
        node.replace_input_with(j, a)

    return edit


@pytest.mark.parametrize(
    ("edit", "options"),
    [
        (attribute("scale", 0.3), {}),
        (attribute("softcap", 5.0), {}),
        (attribute("rotary_interleaved", 1), {}),
        (attribute("do_rotary", 0), {}),
        (attribute("local_window_size", 4), {"window": 3}),
        (attribute("local_window_size", 3), {}),
        (exchange(1, 2), {}),
        (exchange(3, 4), {}),
        (exchange(7, 8), {}),
    ],
)
def test_an_attention_with_a_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, edit: Callable[[ir.Node], None], options: dict[str, int]
) -> None:
    with pytest.raises(OnnxGptError, match="attention"):
        run(monkeypatch, canonical(decoder(layers=1, **options)), spoil_attention(edit))


def test_tokens_counted_one_too_few_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import graph_passes.passes.attention as module

    real = module.lengths

    def wrong(graph: ir.Graph, mask: ir.Value) -> object:
        found = real(graph, mask)
        node = found.tokens.producer()
        assert node is not None
        table = node.inputs[1].producer().inputs[0]  # type: ignore[union-attr]
        table.const_value = ir.tensor(np.array([-2], np.int32), name=table.name)  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(module, "lengths", wrong)
    with pytest.raises(OnnxGptError, match="attention"):
        run_pipeline(canonical(decoder(layers=1)), "attention")


def linear_pair(out: int, into: int) -> ir.Model:
    """out = x·aᵀ + x·bᵀ, with weights that nobody can read."""
    model = graph(
        "p = MatMul (x, a)  q = MatMul (x, b)  out = Add (p, q)",
        f"float[B,S,{into}] x, float[{into},{out}] a, float[{into},{out}] b",
    )
    for name in "ab":
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = WeightTensor(name, Unread((out, into)), transpose=True)
        model.graph.register_initializer(value)
    return model


def pack(order: str) -> Change:
    """Both products as one, split again."""

    def change(model: ir.Model) -> None:
        p, q = of(model, "MatMul", 0), of(model, "MatMul", 1)
        weights = {name: model.graph.initializers[name].const_value.weight for name in "ab"}  # type: ignore[union-attr]
        table = WeightTensor("ab", Stack(tuple(weights[name] for name in order)), transpose=True)
        product = make("MatMul", [p.inputs[0], initializer(model.graph, table)], "both")
        split = make("Split", [product.outputs[0]], "split", outputs=2, axis=-1, num_outputs=2)
        replace(
            p, [p, q], [product, split], [(p.outputs[0], split.outputs[0]), (q.outputs[0], split.outputs[1])]
        )

    return change


@pytest.mark.parametrize(("out", "into"), [(16, 8), (11008, 4096)])
def test_weights_are_drawn_and_large_ones_cut(monkeypatch: pytest.MonkeyPatch, out: int, into: int) -> None:
    proof = run(monkeypatch, linear_pair(out, into), pack("ab")).proof
    assert proof is not None and (proof.proven, proof.unproven) == (1, ())


def test_weights_in_the_wrong_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_pair(16, 8)
    for name in "ab":
        weight = Array(np.random.default_rng(ord(name)).standard_normal((16, 8), np.float32))
        model.graph.initializers[name].const_value = WeightTensor(name, weight, transpose=True)
    with pytest.raises(OnnxGptError, match="changed what the graph computes"):
        run(monkeypatch, model, pack("ba"))


def test_a_witness_that_is_too_large_is_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = "float[B,S,8] x, float[1,9000,9000] y"
    proof = run(
        monkeypatch, graph("s = ReduceMax (y)  out = Add (x, s)", inputs), to("ReduceMax", "ReduceMax", [0])
    ).proof
    assert proof is not None and (proof.witnesses, proof.proven) == (1, 0)
    assert "MiB" in proof.unproven[0]


def test_what_onnxruntime_cannot_run_is_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = "float[B,8] x, float[8,8] y"
    change = to("MatMul", "GemmFastGelu", [0, 1], domain=MICROSOFT)
    proof = run(monkeypatch, graph("out = MatMul (x, y)", inputs), change).proof
    assert proof is not None and (proof.witnesses, proof.proven) == (1, 0)
    assert "GemmFastGelu" in proof.unproven[0]


# The job ------------------------------------------------------------------------------------------


def test_a_wrong_rewrite_stops_the_job_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_pass(
        monkeypatch,
        to("LayerNormalization", "LayerNormalization", [0, 1, 2], axis=-1, epsilon=0.5),
        name="fold",
    )
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", parity=False)
    assert (caught.value.code, caught.value.exit) == ("rewrite-wrong", 1)
    assert not list(tmp_path.iterdir())
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "out", parity=False, verify=False)
    assert all(entry.proof is None for entry in report.passes)
    assert report.recipe["verify"] is False
