"""A graph that fuses is broken in one place: one fusion of one layer is missing, and the reason named is true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporter.sources import onnx_file
from graph_passes import ORT_PIPELINE
from graph_passes.explaining.fusions import Explanation, Part, explain
from onnx_gpt.exporting import CANONICAL_PIPELINE

PIPELINE = CANONICAL_PIPELINE.replace("{context}", "{context_length=64}") + ", " + ORT_PIPELINE
FOREIGN = Path(__file__).parent / "foreign"
ATTENTION, MLP = "/model/layers.1/self_attn/", "/model/layers.1/mlp/"
NORM = "/model/layers.1/input_layernorm/"
GELU = "/transformer/h.1/mlp/act/"
Break = Callable[["Broken"], None]


class Broken:
    """Optimum's export of a Llama, or GPT-2, of two layers, raw, by names."""

    def __init__(self, base: str = "llama") -> None:
        self.model = onnx_file.load(str(FOREIGN / f"optimum-{base}.onnx")).read()
        self.nodes = {node.name: node for node in self.model.graph}

    def add(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """A node before everything that may want it."""
        node = ir.node(op_type, inputs, attributes)
        after = [value.producer() for value in inputs if value.producer() is not None]
        order = list(self.model.graph)
        self.model.graph.insert_after(max(after, key=order.index), node)
        return node.outputs[0]

    def number(self, value: float | list[float]) -> ir.Value:
        tensor = ir.tensor(np.array(value, np.float32), name=f"number.{len(self.model.graph.initializers)}")
        found = ir.Value(
            name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape
        )
        self.model.graph.register_initializer(found)
        return found

    def leak(self, name: str) -> None:
        """Let a second reader depend on what a node makes: its largest element goes into layer 1's output."""
        most = self.add("ReduceMax", self.nodes[name].outputs[0], keepdims=0)
        last = self.nodes.get("/model/layers.1/Add_1") or self.nodes["/transformer/h.1/Add_1"]
        last.replace_input_with(1, self.add("Add", last.inputs[1], most))

    def swap(self, name: str, first: int, name_of_second: str, second: int) -> None:
        a, b = self.nodes[name], self.nodes[name_of_second]
        x, y = a.inputs[first], b.inputs[second]
        a.replace_input_with(first, y)
        b.replace_input_with(second, x)


def explained(broken: Broken) -> Explanation:
    return explain(broken.model, PIPELINE)


def leaked_scores(it: Broken) -> None:
    it.leak(ATTENTION + "Add_2")


def softmax_over_queries(it: Broken) -> None:
    it.nodes[ATTENTION + "Softmax"].attributes["axis"] = ir.AttrInt64("axis", 2)


def mask_upside_down(it: Broken) -> None:
    where = ATTENTION + "Where_2"
    it.swap(where, 1, where, 2)


def gain_of_one_number(it: Broken) -> None:
    it.nodes[NORM + "Mul_1"].replace_input_with(0, it.number([1.5]))


def leaked_mean(it: Broken) -> None:
    it.leak(NORM + "ReduceMean")


def mean_over_tokens(it: Broken) -> None:
    axes = it.nodes[NORM + "ReduceMean"].inputs[1].producer()
    axes.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array([1], np.int64)))


def epsilon_by_channel(it: Broken) -> None:
    it.nodes[NORM + "Add"].replace_input_with(1, it.number([1e-5] * 32))


def rotated_the_other_way(it: Broken) -> None:
    neg = it.nodes[ATTENTION + "Neg"]
    neg.outputs[0].replace_all_uses_with(neg.inputs[0])


def query_with_tables_changed_about(it: Broken) -> None:
    it.swap(ATTENTION + "Mul", 1, ATTENTION + "Mul_1", 1)


def leaked_rotated_key(it: Broken) -> None:
    it.leak(ATTENTION + "Add_1")


def leaked_query(it: Broken) -> None:
    it.leak(ATTENTION + "q_proj/MatMul")


def sigmoid_of_more(it: Broken) -> None:
    sigmoid = it.nodes[MLP + "act_fn/Sigmoid"]
    sigmoid.replace_input_with(0, it.add("Add", sigmoid.inputs[0], it.number(1.0)))


def up_reads_something_else(it: Broken) -> None:
    it.nodes[MLP + "up_proj/MatMul"].replace_input_with(0, it.nodes["/model/layers.1/Add"].outputs[0])


def scale_by_data(it: Broken) -> None:
    key = it.nodes[ATTENTION + "Add_1"].outputs[0]
    it.nodes[ATTENTION + "Mul_8"].replace_input_with(1, it.add("ReduceMax", key, keepdims=0))


def gelu_of_another_cube(it: Broken) -> None:
    it.nodes[GELU + "Mul_1"].replace_input_with(1, it.number(0.05))


def leaked_tanh(it: Broken) -> None:
    it.leak(GELU + "Tanh")


def gelu_of_two_values(it: Broken) -> None:
    other = it.add("Neg", it.nodes["/transformer/h.1/mlp/c_fc/Reshape_1"].outputs[0])
    it.nodes[GELU + "Mul"].replace_input_with(0, other)


BREAKS: list[tuple[Break, str, str, str, str]] = [
    (leaked_scores, "attention", "attention_scaled_twice", "Add_2", "Add is also used by ReduceMax"),
    (softmax_over_queries, "attention", "attention", "Softmax", "Softmax has axis=2, not -1"),
    (mask_upside_down, "attention", "", "Add_2", "the last query sees neither all keys nor"),
    (gain_of_one_number, "norm", "rms_norm", "number", "it has shape [], not [D]"),
    (leaked_mean, "norm", "rms_norm", "ReduceMean", "ReduceMean is also used by ReduceMax"),
    (mean_over_tokens, "norm", "rms_norm", "", "it is the constant 1, not [-1]"),
    (epsilon_by_channel, "norm", "rms_norm", "number", "it is no scalar constant"),
    (rotated_the_other_way, "rotary", "rotary", "Slice", "it is Slice, not Neg"),
    (query_with_tables_changed_about, "attention", "", "", "rotated by different tables"),
    (leaked_rotated_key, "attention", "cached_attention", "Transpose", "Transpose is also used by ReduceMax"),
    (leaked_query, "qkv", "", "", "q: no private linear map"),
    (sigmoid_of_more, "activation", "", "Mul", "the sigmoid is of another value"),
    (up_reads_something_else, "gate_up", "", "Mul", "they read different inputs"),
    (scale_by_data, "attention", "cached_attention", "Mul_8", "it is Mul, not Transpose"),
    (gelu_of_another_cube, "activation", "gelu_tanh", "number", "it is the constant 0.05, not 0.044715"),
    (leaked_tanh, "activation", "gelu_tanh", "Tanh", "Tanh is also used by ReduceMax"),
    (
        gelu_of_two_values,
        "activation",
        "gelu_tanh",
        "",
        "it is not the value that the rest of the pattern uses",
    ),
]


@pytest.mark.parametrize(
    ("breaking", "part", "rule", "at", "why"), BREAKS, ids=[row[0].__name__ for row in BREAKS]
)
def test_one_break_is_one_reason_and_the_true_one(
    breaking: Break, part: str, rule: str, at: str, why: str
) -> None:
    it = Broken("gpt2" if part == "activation" and rule else "llama")
    breaking(it)
    found = explained(it)
    assert len(found.layers) == 2
    (reason,) = {missing.reason for missing in found.missing}
    assert all(missing in found.layers[1] for missing in found.missing)
    assert part in [missing.part for missing in found.missing]
    assert reason is not None
    assert reason.rule.startswith(rule) and bool(reason.rule) == bool(rule), reason
    assert at in reason.at and why in reason.why, reason


def test_a_whole_graph_has_every_part_of_every_layer() -> None:
    found = explained(Broken())
    assert found.missing == ()
    for parts in found.layers:
        forms = [(part.part, part.form) for part in parts if part.part != "norm"]
        assert forms == [
            ("attention", "GroupQueryAttention"),
            ("rotary", "inside"),
            ("qkv", "packed"),
            ("activation", "SwiGLU"),
            ("gate_up", "packed"),
        ]
        assert len([part for part in parts if part.part == "norm"]) == 2
    assert {part.part for part in found.others} == {"embedding", "norm", "head"}


def test_layers_are_counted_by_attentions_where_one_is_in_pieces() -> None:
    """The roles that the passes give count the attentions that they see; layer 1 would be 0."""
    it = Broken()
    it.nodes["/model/layers.0/self_attn/Softmax"].attributes["axis"] = ir.AttrInt64("axis", 2)
    found = explained(it)
    (missing,) = found.missing
    assert missing in found.layers[0]
    assert [part.form for part in found.layers[1] if part.part == "attention"] == ["GroupQueryAttention"]


def test_a_graph_without_attention_has_no_layers() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2, 3])
    node = ir.node("Erf", [x], name="lonely")
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10)
    found = explain(model, "canonical")
    assert found.layers == ()
    (part,) = found.others
    assert (part.part, part.form) == ("activation", "Erf") and isinstance(part, Part)
    assert part.reason is not None and "no rule came near" in part.reason.why


def test_one_attention_in_pieces_is_why_none_has_a_cache() -> None:
    it = Broken("llama-nocache")
    it.nodes[ATTENTION + "Softmax"].attributes["axis"] = ir.AttrInt64("axis", 2)
    found = explained(it)
    first, second = found.missing
    assert (first.form, second.form) == ("Attention", "Softmax")
    assert first.reason == second.reason and first.reason is not None
    assert first.reason.why == "Softmax has axis=2, not -1"


def test_tables_that_are_not_rows_by_position_are_told_of_once() -> None:
    """The angles of all tokens are stretched by the largest: what a token gets depends on the others."""
    it = Broken()
    cos = next(node for node in it.model.graph if node.op_type == "Cos")
    most = it.add("ReduceMax", cos.inputs[0], keepdims=0)
    cos.replace_input_with(0, it.add("Mul", cos.inputs[0], most))
    found = explained(it)
    (tables,) = (part for part in found.missing if part.form == "Cos")
    assert tables.part == "rotary" and tables.reason is not None
    assert tables.reason.by == "control" and "does not get the row of position" in tables.reason.why
    assert all(part.reason is not None and part.reason.same(tables.reason) for part in found.missing)
