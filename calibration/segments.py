"""A decoder's graph cut into pieces that run one after the other: at its layers, or at its products.

A cut is the set of values that were made of tokens before it and are used after it: before a layer that is the residual
stream, or the two values that a fused sum and norm takes. What depends on lengths and masks alone is no such value:
each piece makes it again, which costs nothing. A piece shares the unread weights of the graph that it was cut from, so
running a model piece by piece takes the memory of its largest piece.

Cut at products, a piece begins with products of matrices whose inputs all come from the pieces before, and ends before
one that takes what the piece itself makes: query, key and value of one layer are a piece, its output map the next.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import onnx_ir as ir

from calibration.quantization.sites import Site, site_of
from graph_passes.matching import role_of

LAYER = re.compile(r"layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Segment:
    """One piece.

    Attributes:
        name: ``embedding``, ``layers.3`` or, cut at products, ``layers.3.ffn.down``; ``head``.
        model: a model of its own, whose tensors are those of the whole.
        incoming: names of the values that it is given, beside the inputs of the whole.
        outgoing: names of the values that it makes and later pieces need.
        passing: names of the values that were there before it and later pieces need.
    """

    name: str
    model: ir.Model
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    passing: tuple[str, ...]

    def sites(self) -> list[Site]:
        """Products and lookups of matrices, in order."""
        return [site for site in map(site_of, self.model.graph) if site is not None]


Places = Literal["layers", "products"]


def cut(model: ir.Model, at: Places = "layers") -> list[Segment]:
    """The pieces of a decoder, first to last: embedding, each layer or product, head. The model stays as it is."""
    nodes = list(model.graph)
    made = _made_of_tokens(nodes)
    starts = [(0, "embedding"), *(_layers(nodes) if at == "layers" else _products(nodes))]
    ends = [*(start for start, _ in starts[1:]), len(nodes)]
    segments: list[Segment] = []
    incoming: list[ir.Value] = []
    for (start, name), end in zip(starts, ends, strict=True):
        outgoing = [value for value in _crossing(nodes, end) if value in made]
        own = [v for v in _taken(nodes[start:end]) if v in incoming]
        passing = [value for value in outgoing if value in incoming]
        outputs = [value for value in outgoing if value not in incoming]
        if name == "head":
            outputs = [value for value in model.graph.outputs if value.producer() in nodes[start:end]]
        segments.append(
            Segment(
                name,
                extract(model, own, outputs),
                *(tuple(str(value.name) for value in values) for values in (own, outputs, passing)),
            )
        )
        incoming = [*outputs, *passing]
    return segments


def _layers(nodes: list[ir.Node]) -> Iterator[tuple[int, str]]:
    """Where each layer begins, and the product with the head's table."""
    layer = -1
    head = max((i for i, _ in _multiplying(nodes)), default=len(nodes))
    for i, node in enumerate(nodes):
        found = LAYER.match(role_of(node))
        if found and int(found[1]) > layer:
            layer = int(found[1])
            yield i, f"layers.{layer}"
        elif i == head:
            yield i, "head"


def _products(nodes: list[ir.Node]) -> Iterator[tuple[int, str]]:
    """Each product that takes what was made since the last such product, the head's too."""
    places = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    sites = list(_multiplying(nodes))
    start = 0
    for i, site in sites:
        if places.get(site.input, -1) >= start:
            start = i
            yield i, "head" if i == sites[-1][0] else site.role


def _multiplying(nodes: list[ir.Node]) -> Iterator[tuple[int, Site]]:
    for i, node in enumerate(nodes):
        site = site_of(node)
        if site is not None and site.kind == "multiply":
            yield i, site


def _made_of_tokens(nodes: list[ir.Node]) -> set[ir.Value]:
    """Values that depend on what a matrix gave; a shape does not."""
    made: set[ir.Value] = set()
    for node in nodes:
        known = any(value in made for value in node.inputs) and node.op_type not in ("Shape", "Size")
        if known or site_of(node) is not None:
            made.update(node.outputs)
    return made


def _taken(nodes: list[ir.Node]) -> list[ir.Value]:
    return list(dict.fromkeys(value for node in nodes for value in node.inputs if value is not None))


def _crossing(nodes: list[ir.Node], end: int) -> list[ir.Value]:
    """Values of nodes before ``end`` that nodes from there on use."""
    before = {value for node in nodes[:end] for value in node.outputs}
    return [value for value in _taken(nodes[end:]) if value in before]


def extract(model: ir.Model, incoming: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    """A model of what makes some values out of others and the inputs of the whole."""
    inputs = [*incoming, *(value for value in model.graph.inputs if value not in incoming)]
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
        graph.initializers.pop(str(value.name), None)
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)
