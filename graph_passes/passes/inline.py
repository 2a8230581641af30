"""f(x) ⇒ the body of f; a branch whose condition is known ⇒ that branch; all in opset 23.

Functions that this project makes itself stay calls, and so do those that onnxruntime has a kernel for. A
condition is known where shapes decide it (`graph_passes.inference.facts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from exporter.build import OPSET
from graph_passes.inference.facts import contents, infer_node
from graph_passes.lowering.kernels import CPU_KERNELS
from graph_passes.matching import replace
from graph_passes.outcome import Outcome
from graph_passes.passes.outline import DOMAIN
from graph_passes.structure.upgrade import upgrade

KIND = "exact"


def apply(model: ir.Model) -> Outcome:
    refused = upgrade(model, OPSET)
    inliner = _Inliner(model)
    inliner.visit(model.graph)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    return Outcome(inliner.fired, refused)


class _Inliner:
    """Puts bodies in the place of what calls them."""

    def __init__(self, model: ir.Model) -> None:
        self.functions = model.functions
        self.fired = 0
        self.values = _Names(value.name for value in _values(model.graph))
        self.nodes = _Names(node.name for node in ir.traversal.RecursiveGraphIterator(model.graph))

    def visit(self, graph: ir.Graph) -> None:
        waiting = list(graph)[::-1]
        while waiting:
            node = waiting.pop()
            body = self._body(node)
            if body is None:
                for branch in _bodies(node):
                    self.visit(branch)
                continue
            waiting.extend(self._put(node, *body)[::-1])
            self.fired += 1

    def _body(self, node: ir.Node) -> tuple[list[ir.Node], list[ir.Value]] | None:
        """Copies of the nodes that a node stands for, and of the values that it gives."""
        function = self.functions.get(node.op_identifier())
        if function is not None and node.domain != DOMAIN and not _has_kernel(node):
            return self._of_function(node, function)
        if node.op_type == "If" and node.domain == "" and node.inputs[0] is not None:
            held = contents(node.inputs[0])
            if held is not None and isinstance(held[0], int):
                return self._of_branch(
                    node, node.attributes["then_branch" if held[0] else "else_branch"].as_graph()
                )
        return None

    def _of_function(
        self, call: ir.Node, function: ir.Function
    ) -> tuple[list[ir.Node], list[ir.Value]] | None:
        mine = call.graph.opset_imports if call.graph is not None else {}
        if any(mine.get(domain, version) != version for domain, version in function.opset_imports.items()):
            return None
        body = function.graph.clone()
        given = [*call.inputs, *[None] * (len(body.inputs) - len(call.inputs))]
        outputs = [
            given[body.inputs.index(value)] if value in body.inputs else value for value in body.outputs
        ]
        for node in ir.traversal.RecursiveGraphIterator(body):
            _resolve(node, call, function)
            for value in node.outputs:
                value.shape = None  # it was said of the function, whose symbols are its own
        nodes = _emptied(body)
        for formal, actual in zip(body.inputs, given, strict=True):
            for user, i in formal.uses():
                user.replace_input_with(i, actual)
        for domain, version in function.opset_imports.items():
            mine.setdefault(domain, version)
        return nodes, [value for value in outputs if value is not None]

    def _of_branch(self, node: ir.Node, branch: ir.Graph) -> tuple[list[ir.Node], list[ir.Value]]:
        graph = node.graph
        assert graph is not None
        body = branch.clone(allow_outer_scope_values=True)
        outputs = list(body.outputs)
        nodes = _emptied(body)
        for name in list(body.initializers):
            value = body.initializers.pop(name)
            self._name(value)
            graph.register_initializer(value)
        return nodes, outputs

    def _put(self, node: ir.Node, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> Sequence[ir.Node]:
        for inner in nodes:
            inner.name = self.nodes.unique(inner.name or inner.op_type)
            for value in inner.outputs:
                self._name(value)
            infer_node(inner)
        replace(node, [node], nodes, list(zip(node.outputs, outputs, strict=False)))
        return nodes

    def _name(self, value: ir.Value) -> None:
        if value.name != "":  # an output that is left out has no name
            value.name = self.values.unique(value.name or "value")


class _Names:
    """Names that are taken."""

    def __init__(self, taken: Iterable[str | None]) -> None:
        self.taken = set(taken)
        self.count = 0

    def unique(self, name: str) -> str:
        """The name, or one like it that is not taken; taken from now on."""
        found = name
        while found in self.taken:
            self.count += 1
            found = f"{name}_{self.count}"
        self.taken.add(found)
        return found


def _has_kernel(node: ir.Node) -> bool:
    """Whether the function only says what an operator of the runtime computes."""
    return node.op_type in CPU_KERNELS.get(node.domain, ())


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()


def _emptied(body: ir.Graph) -> list[ir.Node]:
    """The nodes of a graph, taken out of it."""
    nodes = list(body)
    body.outputs.clear()
    body.remove(nodes)
    return nodes


def _resolve(node: ir.Node, call: ir.Node, function: ir.Function) -> None:
    """Attributes that stand for those of the call get their values, or the function's defaults."""
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            continue
        wanted = str(attribute.ref_attr_name)
        given = call.attributes.get(wanted, function.attributes.get(wanted))
        if given is None or given.value is None:
            node.attributes.pop(name)
        else:
            node.attributes[name] = ir.Attr(name, given.type, given.value)
