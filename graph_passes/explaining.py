"""Which ideas of a decoder a graph holds as one node after its passes, and for each that it does not: the reason why.

Read off the graph, and off what the passes refused. Layers are counted by their attentions, found or not; a node
belongs to the layer whose product it comes before. No weight is read.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from exporter.emitter import ROLE
from graph_passes.matching import attribute, listening, producer
from graph_passes.outcome import NearMiss
from graph_passes.passes import outline
from graph_passes.passes.canonical import rules
from graph_passes.pipeline import PassReport, run_pipeline

FUSED_ATTENTION = "GroupQueryAttention"
ATTENTIONS = frozenset([FUSED_ATTENTION, "Attention", "MultiHeadAttention"])
NORMS = frozenset(
    [
        "RMSNormalization",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "SkipLayerNormalization",
    ]
)
ACTIVATIONS = frozenset(["QuickGelu", "FastGelu", "Gelu", "Relu"])
LINEARS = frozenset(["MatMul", "Gemm", "FusedMatMul", "MatMulNBits"])
ENDS = frozenset(["embedding", "head"])
FAR = 8
"""Nodes that lie at most between a cosine and the place where its table was refused."""

NEXT = 3
"""Nodes that lie at most between a piece and the place where a rule gave up before it came to the piece."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an idea is not one node.

    Attributes:
        by: the pass that stopped.
        rule: its rule that came nearest; empty where the pass is no more than one, or none came near.
        at: the node or value where it stopped, and ``why``.
        share: how much of what it looks for is there, 0…1.
    """

    by: str
    rule: str
    at: str
    why: str
    share: float

    def __str__(self) -> str:
        return (
            f"{self.rule or self.by} stopped at {self.at}: {self.why}"
            if self.by
            else f"{self.at}: {self.why}"
        )


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
    lineage = _Lineage()
    with listening(lineage):
        reports = run_pipeline(model, pipeline, verify=False)
    layers = _Layers(model.graph)
    found = _Parts(model.graph, _Misses(reports, lineage))
    parts: list[list[Part]] = [[] for _ in layers.anchors]
    others: list[Part] = []
    for node in model.graph:
        layer = layers.of.get(node)
        for part in found.of(node):
            mine = others if layer is None or part.part in ENDS else parts[layer]
            if part not in mine and not (part.reason and _same_failure(part, mine)):
                mine.append(part)
    return Explanation(tuple(map(_blamed, parts)), tuple(others))


def _blamed(parts: Sequence[Part]) -> tuple[Part, ...]:
    """An attention stays in pieces for want of a rotary that does: the reason is one, and the rotary's."""
    rotary = next((part.reason for part in parts if part.part == "rotary" and part.reason), None)
    return tuple(
        dataclasses.replace(part, reason=rotary)
        if rotary and part.part == "attention" and part.reason
        else part
        for part in parts
    )


def _same_failure(part: Part, others: Iterable[Part]) -> bool:
    """Whether a further piece of what is reported already: layer_norm has two means, rotary a q and a k."""
    return any(o.part == part.part and o.reason == part.reason for o in others)


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
                after = [self.of[user] for user in _users(node) if user in self.of]
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


def _projections(anchor: ir.Node) -> Iterator[ir.Node]:
    """The products that an attention's inputs come from."""
    waiting = [value.producer() for value in anchor.inputs[:3] if value is not None]
    seen: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _is_linear(node):
            yield node
        elif node.op_type not in ATTENTIONS:
            waiting.extend(value.producer() for value in node.inputs if value is not None)


def _is_attention(node: ir.Node) -> bool:
    """An attention, or the softmax of one in pieces, which a product of two computed values follows."""
    if node.op_type in ATTENTIONS:
        return True
    if node.op_type != "Softmax":
        return False
    near: list[ir.Node] = [node]
    for _ in range(4):
        near = [user for each in near for user in _users(each)]
        if any(user.op_type == "MatMul" and not _is_linear(user) for user in near):
            return True
    return False


def _is_linear(node: ir.Node) -> bool:
    """A product with a weight."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    transpose = producer(weight, "Transpose")
    stored = transpose.inputs[0] if transpose is not None else weight
    return node.op_type in LINEARS and stored is not None and stored.is_initializer()


def _users(node: ir.Node) -> list[ir.Node]:
    return [user for value in node.outputs for user, _ in value.uses()]


def _within_steps(node: ir.Node, steps: int) -> list[ir.Node]:
    """What a node leads to, the nearest first."""
    found: dict[ir.Node, None] = {}
    near = [node]
    for _ in range(steps):
        near = [user for each in near for user in _users(each) if user not in found]
        found.update(dict.fromkeys(near))
    return list(found)


# Parts ------------------------------------------------------------------------------------------------------


class _Parts:
    """The ideas that nodes show."""

    def __init__(self, graph: ir.Graph, misses: _Misses) -> None:
        self.misses = misses
        self.head = producer_of_logits(graph)

    def of(self, node: ir.Node) -> Iterator[Part]:
        op = node.op_type
        if _is_attention(node):
            yield from self.attention(node)
        elif op in NORMS:
            reason = self.misses.of_pass("norm", node)
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
            products = (user for user in _users(node) if user.op_type == "Mul")
            reasons = [self.misses.of_pass("mlp", product) for product in products]
            yield self.in_pieces("activation", node, next(filter(None, reasons), None))
        elif op == "RotaryEmbedding":
            yield Part("rotary", op, str(node.name))
        elif _turns_halves(node):
            yield self.in_pieces("rotary", node)
        elif op in ("Cos", "Sin"):
            yield Part("rotary", op, str(node.name), self.misses.of_users("control", node) or _unknown(node))
        elif op == "Mul":
            reason = self.misses.of_pass("mlp", node)
            if reason is not None and "Sigmoid" not in _made_by(node):
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
        reason = self.misses.of_pass("qkv", node)
        if node.inputs[1] is None or reason is not None:
            yield Part("qkv", "packed" if reason is None else "apart", name, reason)
        elif len(set(_projections(node))) == 1:
            yield Part("qkv", "split", name)

    def in_pieces(self, part: str, node: ir.Node, known: Reason | None = None) -> Part:
        return Part(part, node.op_type, str(node.name), known or self.misses.of_piece(node) or _unknown(node))

    def _why_not_taken(self, node: ir.Node) -> Reason:
        """A standard Attention that the target did not take: what came before it is to blame, where it is known."""
        given = [*node.inputs, None, None, None]
        mask, past = given[3], given[4]
        own = self.misses.of_pass("attention", node)
        if own is None:
            return Reason("", "", str(node.name), "no pass looked at it", 0.0)
        found = None
        if attribute(node, "q_num_heads", 0) == 0:
            found = self.misses.of_piece(node)
        elif past is None:
            found = self.misses.of_graph("cache")
        elif mask is not None:
            found = self.misses.of_ancestors("control", node)
        return found or own


def _unknown(node: ir.Node) -> Reason:
    return Reason(
        "", "", str(node.name), f"no rule came near anything that this {node.op_type} is part of", 0.0
    )


def _is_activation_in_pieces(node: ir.Node) -> bool:
    """Erf; σ, tanh and exp where a product with another computed value follows, and no constant's (a cap's)."""
    if node.op_type == "Erf":
        return True
    if node.op_type not in ("Sigmoid", "Tanh", "Exp"):
        return False
    near = [node]
    for _ in range(3):
        near = [user for each in near for user in _users(each)]
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


def _made_by(node: ir.Node) -> set[str]:
    makers = (value.producer() for value in node.inputs if value is not None)
    return {maker.op_type for maker in makers if maker is not None}


def _reads_tokens(node: ir.Node) -> bool:
    table, rows = node.inputs[:2]
    return table is not None and table.is_initializer() and rows is not None and rows.name == "input_ids"


# Reasons ----------------------------------------------------------------------------------------------------


class _Misses:
    """What the passes refused, by the nodes that it is about."""

    def __init__(self, passes: Sequence[PassReport], lineage: _Lineage) -> None:
        self.lineage = lineage
        self.all: list[tuple[str, NearMiss]] = []
        for report in passes:
            texts = () if report.misses else tuple(map(_parsed, report.refused))
            self.all += [(report.name, miss) for miss in (*report.misses, *texts)]
        self.by_node: dict[str, list[tuple[str, NearMiss]]] = collections.defaultdict(list)
        for by, miss in self.all:
            for name in {*miss.nodes, miss.place, miss.at}:
                self.by_node[name].append((by, miss))
        self.ops = {rule.name: rule.ops for rule in rules()}

    def of_piece(self, node: ir.Node) -> Reason | None:
        """The rule that came furthest with a node in what it matched; of equals the one that matched more.

        Where none came that far, the one that came furthest of those that look for such a node and began close by.
        """
        about = [
            (by, miss) for by, miss in self.by_node[str(node.name)] if miss.rule and node.name in miss.nodes
        ]
        about = about or [
            (by, miss)
            for user in _within_steps(node, NEXT)
            for by, miss in self.by_node[str(user.name)]
            if miss.nodes[:1] == (user.name,) and node.op_type in self.ops.get(miss.rule, ())
        ]
        if not about:
            return None
        return _reason(*max(about, key=lambda entry: (entry[1].share, len(entry[1].nodes))))

    def of_pass(self, by: str, node: ir.Node) -> Reason | None:
        """What a pass said of a node."""
        known = {str(node.name), node.metadata_props.get(ROLE, "")}
        about = [m for name in known for p, m in self.by_node[name] if p == by and {m.place, m.at} & known]
        return _reason(by, about[0]) if about else None

    def of_graph(self, by: str) -> Reason | None:
        """The first thing that a pass said."""
        return next((_reason(name, miss) for name, miss in self.all if name == by), None)

    def of_ancestors(self, by: str, node: ir.Node) -> Reason | None:
        """What a pass said of a node that has become this one since."""
        about = (miss for name, miss in self.all if name == by and self.lineage.heir(miss.place) is node)
        return next((_reason(by, miss) for miss in about), None)

    def of_users(self, by: str, node: ir.Node) -> Reason | None:
        """What a pass said of what a node leads to."""
        for user in _within_steps(node, FAR):
            for name, miss in self.by_node[str(user.name)]:
                if name == by:
                    return _reason(by, miss)
        return None


class _Lineage:
    """What became of nodes that rewrites took away; listens to them."""

    def __init__(self) -> None:
        self._named: dict[str, ir.Node] = {}
        self._heirs: dict[ir.Node, ir.Node] = {}

    def __call__(
        self,
        at: ir.Node,
        old: Sequence[ir.Node],
        new: Sequence[ir.Node],
        values: Sequence[tuple[ir.Value, ir.Value]],
    ) -> None:
        heir = values[0][1].producer() if values else None
        for node in old:
            self._named.setdefault(str(node.name), node)
            if heir is not None and heir not in old:
                self._heirs[node] = heir

    def heir(self, name: str) -> ir.Node | None:
        """The node that stands now for what had a name once."""
        node = self._named.get(name)
        while node in self._heirs:
            node = self._heirs[node]
        return node


def _parsed(text: str) -> NearMiss:
    place, _, why = text.partition(": ")
    return NearMiss("", place, place, why, 1.0, (place,))


def _reason(by: str, miss: NearMiss) -> Reason:
    return Reason(by, miss.rule, miss.at, miss.why, round(miss.share, 2))
