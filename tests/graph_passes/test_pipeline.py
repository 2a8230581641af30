"""Pipelines are text, passes are found by file, and the invariants hold after each."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from decoders import canonical, decoder
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import OnnxGptError
from graph_passes import ORT_PIPELINE, Step, parse, passes_by_name, run_pipeline, to_text
from graph_passes.proof.invariants import EAGER, Snapshot, check

STEPS = st.one_of(
    st.builds(Step, st.sampled_from(sorted(passes_by_name()))),
    st.builds(lambda a, b: Step("norm", (("rms", a), ("layer", b))), st.booleans(), st.booleans()),
    st.builds(lambda version: Step("opset", (("version", version),)), st.integers(-99, 99)),
    st.builds(
        lambda text: Step("half", (("islands", text),)), st.from_regex(r"\*?[a-z_.]+\+[a-z]+", fullmatch=True)
    ),
)


@given(st.lists(STEPS))
def test_what_is_printed_parses_to_the_same_steps(steps: list[Step]) -> None:
    assert parse(to_text(steps)) == tuple(steps)


def test_options_are_typed_and_survive_the_round_trip() -> None:
    steps = parse("fold,opset { version = 21 } , clean")
    assert steps == (Step("fold"), Step("opset", (("version", 21),)), Step("clean"))
    assert to_text(steps) == "fold, opset{version=21}, clean"
    assert parse(to_text(steps)) == steps


@pytest.mark.parametrize(
    "text",
    [
        "fold,",
        ",fold",
        "fold clean",
        "fold{}x",
        "nothing",
        "fold{a=1}",
        "opset{version}",
        "opset{version=21,}",
        "opset{version=old}",
        "opset{version=true}",
        "norm{rms=maybe}",
        "norm{rms=1}",
        "attention{padding=left}",
    ],
)
def test_text_that_is_no_pipeline_is_refused_as_usage(text: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        parse(text)
    assert caught.value.code == "pipeline-invalid"
    assert caught.value.exit == 2


def test_every_pass_says_what_it_does() -> None:
    for name, rewrite in passes_by_name().items():
        assert rewrite.__doc__, name
        assert rewrite.KIND in ("exact", "fp", "lossy")
    assert to_text(parse(ORT_PIPELINE)) == ORT_PIPELINE


def test_reports_count_firings_and_nodes() -> None:
    model = canonical(decoder(layers=3))
    before = model.graph.num_nodes()
    reports = run_pipeline(model, ORT_PIPELINE)
    assert [report.name for report in reports] == [step.name for step in parse(ORT_PIPELINE)]
    assert {r.name: r.fired for r in reports}["attention"] == 3
    assert reports[0].nodes_before == before
    assert reports[-1].nodes_after == model.graph.num_nodes()
    for one, following in itertools.pairwise(reports):
        assert one.nodes_after == following.nodes_before


def test_a_pass_that_breaks_the_graph_is_caught() -> None:
    def broken(change: str) -> ir.Model:
        model = canonical(decoder())
        snapshot = Snapshot.of(model)
        graph = model.graph
        if change == "order":
            first = graph[0]
            graph.remove(first)
            graph.append(first)
        elif change == "input":
            graph.inputs[0].name = "tokens"
        elif change == "output type":
            graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        elif change == "weight":
            value = graph.initializers["embedding.weight"]
            value.const_value = ir.tensor(np.zeros(tuple(value.shape), np.float32))
        elif change == "contents":
            graph.initializers["axis_1"].const_value.numpy()[0] = 7
        elif change == "memory":
            tensor = ir.tensor(np.zeros(EAGER + 1, np.uint8), name="big")
            graph.register_initializer(ir.Value(name="big", const_value=tensor))
        elif change == "name":
            graph[3].outputs[0].name = graph[2].outputs[0].name
        with pytest.raises(AssertionError, match="pass 'bad'"):
            check(model, snapshot, "bad")
        return model

    for change in ("order", "input", "output type", "weight", "contents", "memory", "name"):
        broken(change)
