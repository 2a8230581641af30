"""Which ideas of a decoder a graph holds as one node after its passes, and for each that it does not: the reason why.

Read off the graph, and off what the passes refused. Layers are counted by their attentions, found or not; a node
belongs to the layer whose product it comes before. No weight is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from exporter.emitter import ROLE
from graph_passes.explaining.reasons import Lineage, Reason, Reasons, unknown, users
from graph_passes.matching import NORMS, attribute, listening, producer
from graph_passes.passes import outline
from graph_passes.pipeline import run_pipeline

FUSED_ATTENTION = "GroupQueryAttention"
ATTENTIONS = frozenset([FUSED_ATTENTION, "Attention", "MultiHeadAttention"])
ACTIVATIONS = frozenset(["QuickGelu", "FastGelu", "Gelu", "Relu"])
LINEARS = frozenset(["MatMul", "Gemm", "FusedMatMul", "MatMulNBits"])
ENDS = frozenset(["embedding", "head"])


@dataclasses.dataclass(frozen=True)
class Part:
    """One idea in a graph.

    Attributes:
        part: attention, rotary, qkv, norm, skip_norm, activation, gate_up, embedding or head.
        form: the operator that it is, or where it went: ``inside`` the attention, ``packed``, ``split``. Of an idea
            in pieces, the piece that shows it.
        node: its name.
        reason: why it is no one node; None where it is.
    """

    part: str
    form: str
    node: str
    reason: Reason | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Parts by layer, and of no layer."""

    layers: tuple[tuple[Part, ...], ...]
    others: tuple[Part, ...]

    @property
    def missing(self) -> tuple[Part, ...]:
        return tuple(part for parts in (*self.layers, self.others) for part in parts if part.reason)


def explain(model: ir.Model, pipeline: str) -> Explanation:
    """Run passes on a model, which is changed in place, and explain what they made of it.

    Raises:
        OnnxGptError: what `graph_passes.run_pipeline` raises.
    """
    lineage = Lineage()
    with listening(lineage):
        reports = run_pipeline(model, pipeline, verify=False)
    layers = _Layers(model.graph)
    found = _Parts(model.graph, Reasons(reports, lineage))
    parts: list[list[Part]] = [[] for _ in layers.anchors]
    others: list[Part] = []
    for node in model.graph:
        layer = layers.of.get(node)
        for part in found.of(node):
            mine = others if layer is None or part.part in ENDS else parts[layer]
            if part not in mine and not (part.reason and _same_failure(part, mine)):
                mine.append(part)
    at = {str(node.name): layer for node, layer in layers.of.items()}
    return Explanation(_without_cache_blamed(parts, at), tuple(others))


def _without_cache_blamed(
    layers: Sequence[Sequence[Part]], at: Mapping[str, int]
) -> tuple[tuple[Part, ...], ...]:
    """Where no cache is put in because one attention is in pieces, all others have its reason.

    Args:
        at: layers of nodes, by name.
    """
    why = {i: part.reason for i, parts in enumerate(layers) for part in parts if part.form == "Softmax"}

    def blamed(part: Part) -> Part:
        layer = at.get(part.reason.at) if part.reason is not None and part.reason.by == "cache" else None
        return dataclasses.replace(part, reason=why[layer]) if layer in why else part

    return tuple(tuple(blamed(part) for part in parts) for parts in layers)


def _same_failure(part: Part, others: Iterable[Part]) -> bool:
    """Whether a further piece of what is reported already: layer_norm has two means, rotary a q and a k."""
    return any(
        o.part == part.part and o.reason and part.reason and o.reason.same(part.reason) for o in others
    )


# Layers -----------------------------------------------------------------------------------------------------


class _Layers:
    """Which layer a node is of: that of the next product or attention that it leads to; none, after the last."""

    def __init__(self, graph: ir.Graph) -> None:
        self.anchors = [node for node in graph if _is_attention(node)]
        self.of: dict[ir.Node, int] = {}
        number = {node: i for i, node in enumerate(self.anchors)}
        by_role = all(_layer_by_role(node) == i for node, i in number.items())
        projections = {node: i for anchor, i in number.items() for node in _projections(anchor)}
        current: int | None = None
        for node in graph:
            current = number.get(node, current)
            known = number.get(node, projections.get(node))
            if known is None and by_role:
                known = _layer_by_role(node)
            if known is None and _is_linear(node):
                known = current
            if known is not None:
                self.of[node] = known
        last = producer_of_logits(graph)
        if last is not None:
            self.of.pop(last, None)
        for node in reversed(list(graph)):
            if node not in self.of:
                after = [self.of[user] for user in users(node) if user in self.of]
                if after:
                    self.of[node] = min(after)


def producer_of_logits(graph: ir.Graph) -> ir.Node | None:
    """The last product before the first output."""
    waiting = [graph.outputs[0].producer()]
    seen: set[ir.Node] = set()
    while waiting:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        if _is_linear(node):
            return node
        seen.add(node)
        waiting.extend(value.producer() for value in node.inputs if value is not None)
    return None


def _layer_by_role(node: ir.Node) -> int | None:
    first, _, rest = node.metadata_props.get(ROLE, "").partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == "layers" and number.isdigit() else None


def _before(anchor: ir.Node) -> list[ir.Node]:
    """What stands before an attention, up to the products that its inputs come from, these included."""
    waiting = [value.producer() for value in anchor.inputs[:3] if value is not None]
    seen: dict[ir.Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        if not _is_linear(node) and node.op_type not in ATTENTIONS:
            waiting.extend(value.producer() for value in node.inputs if value is not None)
    return list(seen)


def _projections(anchor: ir.Node) -> list[ir.Node]:
    """The products that an attention's inputs come from."""
    return [node for node in _before(anchor) if _is_linear(node)]


def _is_attention(node: ir.Node) -> bool:
    """An attention, or the softmax of one in pieces, which a product of two computed values follows."""
    if node.op_type in ATTENTIONS:
        return True
    if node.op_type != "Softmax":
        return False
    near: list[ir.Node] = [node]
    for _ in range(4):
        near = [user for each in near for user in users(each)]
        if any(user.op_type == "MatMul" and not _is_linear(user) for user in near):
            return True
    return False


def _is_linear(node: ir.Node) -> bool:
    """A product with a weight."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    transpose = producer(weight, "Transpose")
    stored = transpose.inputs[0] if transpose is not None else weight
    return node.op_type in LINEARS and stored is not None and stored.is_initializer()


# Parts ------------------------------------------------------------------------------------------------------


class _Parts:
    """The ideas that nodes show."""

    def __init__(self, graph: ir.Graph, reasons: Reasons) -> None:
        self.reasons = reasons
        self.head = producer_of_logits(graph)

    def of(self, node: ir.Node) -> Iterator[Part]:
        op = node.op_type
        if _is_attention(node):
            yield from self.attention(node)
        elif op in NORMS:
            reason = self.reasons.of_pass("norm", node)
            yield Part("norm", op, str(node.name))
            if reason is not None:
                yield Part("skip_norm", op, str(node.name), reason)
        elif op == "ReduceMean":
            yield self.in_pieces("norm", node)
        elif op in ACTIVATIONS or node.domain == outline.DOMAIN:
            yield Part("activation", op, str(node.name))
            if node.domain == outline.DOMAIN:
                yield Part("gate_up", "packed", str(node.name))
        elif _is_activation_in_pieces(node):
            products = (user for user in users(node) if user.op_type == "Mul")
            why = [self.reasons.of_pass("mlp", product) for product in products]
            yield self.in_pieces("activation", node, next(filter(None, why), None))
        elif op == "RotaryEmbedding":
            yield Part("rotary", op, str(node.name))
        elif _turns_halves(node):
            yield Part("rotary", op, str(node.name), self._why_in_pieces(node))
        elif op in ("Cos", "Sin"):
            reason = self.reasons.of_users("control", node)
            if reason is not None:  # what is left of tables that were understood is for somebody else
                yield Part("rotary", op, str(node.name), reason)
        elif op == "Mul":
            reason = self.reasons.of_pass("mlp", node)
            if reason is not None and all(maker.op_type != "Sigmoid" for maker in _makers(node)):
                yield Part("gate_up", op, str(node.name), reason)
        elif op in ("Gather", "GatherBlockQuantized") and _reads_tokens(node):
            yield Part("embedding", op, str(node.name))
        elif node is self.head:
            yield Part("head", op, str(node.name))

    def attention(self, node: ir.Node) -> Iterator[Part]:
        name = str(node.name)
        if node.op_type == "Softmax":
            yield self.in_pieces("attention", node)
            return
        if node.op_type != FUSED_ATTENTION:
            yield Part("attention", node.op_type, name, self._why_not_taken(node))
            return
        yield Part("attention", node.op_type, name)
        if attribute(node, "do_rotary", 0):
            yield Part("rotary", "inside", name)
        reason = self.reasons.of_pass("qkv", node)
        if node.inputs[1] is None or reason is not None:
            yield Part("qkv", "packed" if reason is None else "apart", name, reason)
        elif len(set(_projections(node))) == 1:
            yield Part("qkv", "split", name)

    def in_pieces(self, part: str, node: ir.Node, known: Reason | None = None) -> Part:
        return Part(part, node.op_type, str(node.name), known or self._why_in_pieces(node))

    def _why_in_pieces(self, node: ir.Node) -> Reason:
        """What kept a rotary's tables from being understood, else the rule that came nearest."""
        around = _around(node) if _turns_halves(node) else []
        tables = (self.reasons.of_pass("control", each) for each in around)
        return next(filter(None, tables), None) or self.reasons.of_piece(node) or unknown(node)

    def _why_not_taken(self, node: ir.Node) -> Reason:
        """A standard Attention that the target did not take: what came before it is to blame, where it is known."""
        given = [*node.inputs, None, None, None]
        mask, past = given[3], given[4]
        before = _before(node)
        own = self.reasons.of_pass("attention", node)
        if own is None:
            return Reason("", "", str(node.name), "no pass looked at it", 0.0)
        pieces = [each for each in before if each.op_type == "ReduceMean" or _turns_halves(each)]
        if pieces:
            return self._why_in_pieces(pieces[0])
        found = None
        if attribute(node, "q_num_heads", 0) == 0:
            on_heads = [node, *(each for each in before if each.op_type in {"RotaryEmbedding", *NORMS})]
            found = max(filter(None, map(self.reasons.of_layout, on_heads)), default=None, key=_share)
        elif past is None:
            found = self.reasons.of_graph("cache")
        elif mask is not None:
            found = self.reasons.of_ancestors("control", node)
        return found or own


def _share(reason: Reason) -> float:
    return reason.share


def _is_activation_in_pieces(node: ir.Node) -> bool:
    """Erf; σ, tanh and exp where a product with another computed value follows, and no constant's (a cap's)."""
    if node.op_type == "Erf":
        return True
    if node.op_type not in ("Sigmoid", "Tanh", "Exp"):
        return False
    near = [node]
    for _ in range(3):
        near = [user for each in near for user in users(each)]
        for user in near:
            given = [value for value in user.inputs if value is not None]
            if user.op_type in ("Mul", "Div") and not any(value.is_initializer() for value in given):
                return True
    return False


def _turns_halves(node: ir.Node) -> bool:
    """Two parts of one value put together again after some arithmetic each: (−x₂, x₁), (x₁c − x₂s, x₂c + x₁s)."""
    dtype = node.outputs[0].dtype
    if node.op_type != "Concat" or len(node.inputs) != 2 or dtype is None or not dtype.is_floating_point():
        return False
    a, b = (_wholes(value) for value in node.inputs)
    return bool(a & b)


def _around(node: ir.Node) -> list[ir.Node]:
    """The products and sums that a Concat of halves is multiplied and summed by, before it or after."""
    after = [*users(node), *(then for user in users(node) for then in users(user))]
    before = [*_makers(node), *(first for maker in _makers(node) for first in _makers(maker))]
    return [*after, *(maker for each in after for maker in _makers(each)), *before]


def _makers(node: ir.Node) -> list[ir.Node]:
    made = (value.producer() for value in node.inputs if value is not None)
    return [maker for maker in made if maker is not None]


def _wholes(value: ir.Value | None, steps: int = 4) -> set[ir.Value]:
    """Values of which a value is made by slicing and arithmetic."""
    node = value.producer() if value is not None else None
    if node is None or not steps:
        return set()
    if node.op_type == "Slice":
        return {node.inputs[0]} if node.inputs[0] is not None else set()
    if node.op_type not in ("Add", "Mul", "Neg", "Reshape", "Sub", "Unsqueeze"):
        return set()
    return set().union(*(_wholes(each, steps - 1) for each in node.inputs))


def _reads_tokens(node: ir.Node) -> bool:
    table, rows = node.inputs[:2]
    return table is not None and table.is_initializer() and rows is not None and rows.name == "input_ids"
