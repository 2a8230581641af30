"""Roles taken out of graphs whose family wrote them are recovered, each one."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from decoders import VARIANTS, canonical, decoder
from tiny import tiny, variants

from exporter.build import build
from exporter.emitter import ROLE
from exporter.match import matched
from graph_passes import run_pipeline


def roles(model: ir.Model) -> dict[ir.Node, str]:
    """But for numbers of activations (xIELU), which no setting names."""
    found = {node: node.metadata_props[ROLE] for node in model.graph if ROLE in node.metadata_props}
    return {node: role for node, role in found.items() if ".xielu." not in role}


def assert_recovered(model: ir.Model) -> None:
    wanted = roles(model)
    for i, node in enumerate(model.graph):
        node.metadata_props.pop(ROLE, None)
        node.name = f"node_{i}"
    (report,) = run_pipeline(model, "roles")
    assert roles(model) == wanted
    assert {node.name for node in wanted} == set(wanted.values())
    assert (report.fired, report.refused) == (len(wanted), ())


@pytest.mark.parametrize("variant", VARIANTS)
def test_roles_of_every_shape_of_decoder(variant: str) -> None:
    assert_recovered(canonical(decoder(**VARIANTS[variant], layers=3)))


@pytest.mark.parametrize(
    ("family", "variant"), [(f, v) for f, v in variants() if v in ("default", "tied", "sequential")]
)
def test_roles_of_every_family(family: str, variant: str) -> None:
    checkpoint = tiny(family, variant=variant)
    assert_recovered(build(*matched(checkpoint)))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_roles_where_sums_are_normed_at_once(variant: str, swapped: bool) -> None:
    """As onnxruntime's optimizer and its builder write them, the residual stream first or last."""
    model = canonical(decoder(**VARIANTS[variant], layers=3))
    run_pipeline(model, "norm", verify=False)
    for node in model.graph if swapped else ():
        if node.op_type.startswith("Skip"):
            one, other = node.inputs[:2]
            node.replace_input_with(0, other)
            node.replace_input_with(1, one)
    assert_recovered(model)


def test_two_products_for_one_place_have_no_role() -> None:
    model = canonical(decoder())
    graph = model.graph
    down = next(node for node in graph if node.name == "layers.0.ffn.down")
    twin = ir.node("MatMul", list(down.inputs), name="twin")
    both = ir.node("Add", [down.outputs[0], twin.outputs[0]], name="both")
    ir.convenience.replace_all_uses_with(down.outputs[0], both.outputs[0])
    both.replace_input_with(0, down.outputs[0])
    graph.insert_after(down, [twin, both])
    (report,) = run_pipeline(model, "roles")
    assert report.refused == ("layers.0.ffn.down, twin: each could be layers.0.ffn.down",)
