"""Roles from data flow: ``layers.3.ffn.down`` for the product that is that, whatever the exporter called it.

Reads the canonical graph from its attentions: what makes their queries, keys and values, what their output goes
through on its way back into the residual stream, and what else stands between one attention and the next. Nodes that
have a role get its name too. Weights are not read.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from exporter.emitter import ROLE
from graph_passes.control.interface import interface_of
from graph_passes.matching import MICROSOFT, NORMS, role_of
from graph_passes.outcome import Outcome

KIND = "exact"

LINEARS = frozenset([("", "MatMul"), ("", "Gemm"), (MICROSOFT, "MatMulNBits"), (MICROSOFT, "FusedMatMul")])
ATTENTIONS = frozenset(["Attention", "GroupQueryAttention", "MultiHeadAttention"])
MOVES = frozenset("Cast Expand Identity Reshape RotaryEmbedding Slice Squeeze Transpose Unsqueeze".split())  # noqa: SIM905
STORED = frozenset(["Cast", "DequantizeLinear", "Identity", "Reshape", "Softplus", "Transpose"])
"""What may lie between a weight and the node that uses it; Softplus where it is a number of an activation (xIELU)."""

WITH_CONSTANT = frozenset(["Add", "Div", "Mul", "Tanh"])
"""Biases, scales and caps."""

ACTIVATIONS = frozenset("Elu Erf Gelu QuickGelu FastGelu LeakyRelu Relu Sigmoid Softplus Tanh".split())  # noqa: SIM905


def apply(model: ir.Model) -> Outcome:
    graph = model.graph
    interface = interface_of(graph)
    if isinstance(interface, str):
        return Outcome(0, (f"graph: {interface}",))
    found = _Roles(graph)
    found.attentions()
    found.ends(interface.input_ids)
    found.feed_forwards()
    return Outcome(found.write(), tuple(found.refused))


class _Roles:
    """Roles by node, found in the order: attentions, head, feed-forwards."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.roles: dict[ir.Node, str] = {}
        self.refused: list[str] = []
        self.layers: dict[ir.Value, int] = {}
        """Of the residual stream that an attention reads, the attention's number."""

    def attentions(self) -> None:
        """Everything around attention i: q, k, v and their norms, o, the norms before and after."""
        attentions = [node for node in self.graph if node.op_type in ATTENTIONS and len(node.inputs) > 2]
        for i, node in enumerate(attentions):
            at = f"layers.{i}"
            self.roles[node] = f"{at}.attention.heads"
            for name, value in zip("qkv", node.inputs[:3], strict=True):
                linear, norm, packed = self._source(value)
                if linear is None:
                    self.refused.append(f"{role_of(node)}: nothing is found that makes its {name}")
                    continue
                self.roles[linear] = f"{at}.attention.{'qkv' if packed else name}"
                if norm is not None:
                    self.roles[norm] = f"{at}.attention.{name}_norm"
                self._name_before(linear, f"{at}.attention_norm", i)
            linear = self._next_linear(node.outputs[0])
            if linear is None:
                self.refused.append(f"{role_of(node)}: nothing is found that its output goes through")
                continue
            self.roles[linear] = f"{at}.attention.o"
            self._name_after(linear, f"{at}.attention_post_norm")

    def ends(self, input_ids: ir.Value) -> None:
        """The embedding, learned positions, the last norm and the head."""
        for node in self.graph:
            if node.op_type in ("Gather", "GatherBlockQuantized") and _is_stored(node.inputs[0]):
                if node.inputs[1] is input_ids:
                    self.roles[node] = "embedding"
                    self._name_embedding_norm(node)
                elif len(node.outputs[0].shape or ()) == 3 and self._is_added(node.outputs[0]):
                    self.roles[node] = "positions"
        head = self._source(self.graph.outputs[0])[0]
        if head is None:
            self.refused.append(f"{self.graph.outputs[0].name}: nothing is found that makes the logits")
            return
        self.roles[head] = "head"
        norm = _through_moves(head.inputs[0])
        if norm is not None and norm.op_type in NORMS:
            self.roles[norm] = "norm"

    def _name_embedding_norm(self, embedding: ir.Node) -> None:
        """The norm that alone reads what is looked up; of another one's input the residual stream is made, too."""
        users = list(_users(embedding))
        if len(users) == 1 and users[0].op_type in NORMS and users[0] not in self.roles:
            self.roles[users[0]] = "embedding_norm"

    def feed_forwards(self) -> None:
        """Products that read the residual stream, or its norm, and the product that follows them."""
        owners: dict[ir.Value, int] = {}
        seen: dict[ir.Value, int] = {}
        firsts: dict[int, list[ir.Node]] = {}
        for node in self.graph:
            last = max((seen[value] for value in node.inputs if value in seen), default=-1)
            role = self.roles.get(node, "")
            if role.endswith(".attention.heads"):
                last = int(role.split(".")[1])
            seen.update(dict.fromkeys(node.outputs, last))
            owner = self._owner(node, owners)
            if not _is_linear(node) or node in self.roles:
                if owner is not None and node not in self.roles:
                    owners.update(dict.fromkeys(node.outputs, owner))
                continue
            if owner is not None:
                self.roles[node] = f"layers.{owner}.ffn.down"
                self._name_after(node, f"layers.{owner}.ffn_post_norm")
                continue
            # the attention of a parallel layer does not come before its feed-forward: it reads the same stream
            stream = self._stream(node)
            owner = last if stream is None else max(last, self.layers.get(stream, -1))
            if owner < 0:
                self.refused.append(f"{role_of(node)}: it belongs to no layer")
                continue
            owners.update(dict.fromkeys(node.outputs, owner))
            firsts.setdefault(owner, []).append(node)
            self._name_before(node, f"layers.{owner}.ffn_norm", None)
        for owner, linears in firsts.items():
            self._name_firsts(owner, linears)

    def _name_firsts(self, owner: int, linears: list[ir.Node]) -> None:
        """up alone, gate and up, or both in one product."""
        at = f"layers.{owner}.ffn"
        if len(linears) == 1:
            users = {user.op_type for user in _users(linears[0])}
            self.roles[linears[0]] = f"{at}.gate_up" if "Split" in users else f"{at}.up"
            return
        gates = [node for node in linears if any(user.op_type in ACTIVATIONS for user in _users(node))]
        if len(linears) != 2 or len(gates) != 1:
            self.refused.append(
                f"{role_of(linears[0])}: {len(linears)} products read one stream, which is which is open"
            )
            return
        for node in linears:
            self.roles[node] = f"{at}.gate" if node in gates else f"{at}.up"

    def write(self) -> int:
        """Put the roles into the graph. Gives how many nodes have got another one."""
        self._drop_shared()
        names = set(self.roles.values())
        for node in self.graph:
            if node.name in names and self.roles.get(node) != node.name:
                node.name = f"{node.name}.original"
        fired = 0
        for node, role in self.roles.items():
            fired += node.metadata_props.get(ROLE) != role
            node.metadata_props[ROLE] = role
            node.name = role
        return fired

    def _drop_shared(self) -> None:
        """A role is one node's. Where several would have it, none is sure to be it."""
        nodes: dict[str, list[ir.Node]] = {}
        for node, role in self.roles.items():
            nodes.setdefault(role, []).append(node)
        for role, same in nodes.items():
            if len(same) > 1:
                self.refused.append(f"{', '.join(map(role_of, same))}: each could be {role}")
                for node in same:
                    del self.roles[node]

    def _source(self, value: ir.Value | None) -> tuple[ir.Node | None, ir.Node | None, bool]:
        """The product that makes a value, a norm on the way, and whether it makes other values too. Only moves, a
        norm, and work with a constant on each number lie between."""
        norm, packed = None, False
        while (node := value.producer() if value is not None else None) is not None:
            if _is_linear(node):
                return node, norm, packed
            data = [operand for operand in node.inputs if operand is not None and not _is_stored(operand)]
            if node.op_type in NORMS:
                norm = node
            elif node.op_type == "Split" or (node.op_type == "Slice" and len(data[0].uses()) > 1):
                packed = True
            elif node.op_type not in MOVES and not (node.op_type in WITH_CONSTANT and len(data) == 1):
                break
            value = data[0] if data else None
        return None, None, False

    def _next_linear(self, value: ir.Value) -> ir.Node | None:
        """The product that a value goes into, moved on the way at most."""
        while len(users := [node for node, _ in value.uses()]) == 1:
            if _is_linear(users[0]):
                return users[0]
            if users[0].op_type not in MOVES:
                return None
            value = users[0].outputs[0]
        return None

    def _name_before(self, linear: ir.Node, role: str, layer: int | None) -> None:
        """The norm that a product reads, unless it has a role; and of which layer the stream below is."""
        norm = _through_moves(linear.inputs[0])
        if norm is not None and norm.op_type in NORMS:
            self.roles.setdefault(norm, role)
        stream = self._stream(linear)
        if layer is not None and stream is not None:
            self.layers[stream] = layer

    def _name_after(self, linear: ir.Node, role: str) -> None:
        """The norm between a product and the residual stream, where there is one; one of a sum comes behind it."""
        for user in _users(linear):
            if user.op_type in NORMS and not _norms_a_sum(user):
                self.roles[user] = role

    def _stream(self, linear: ir.Node) -> ir.Value | None:
        """What a product reads, before the norm: of a sum that others read too, the sum."""
        norm = _through_moves(linear.inputs[0])
        if norm is None or norm.op_type not in NORMS:
            return linear.inputs[0]
        return norm.outputs[3] if _norms_a_sum(norm) and len(norm.outputs) > 3 else norm.inputs[0]

    def _owner(self, node: ir.Node, owners: dict[ir.Value, int]) -> int | None:
        """The layer whose feed-forward a node is in: all that it reads is that layer's, or stored."""
        data = [value for value in node.inputs if value is not None and not _is_stored(value)]
        found = {owners.get(value) for value in data}
        return found.pop() if len(found) == 1 else None

    def _is_added(self, value: ir.Value) -> bool:
        return any(node.op_type == "Add" or _norms_a_sum(node) for node, _ in value.uses())


def _norms_a_sum(node: ir.Node) -> bool:
    return node.op_type in NORMS and node.op_type.startswith("Skip")


def _is_linear(node: ir.Node) -> bool:
    return (node.domain, node.op_type) in LINEARS and _is_stored(node.inputs[1])


def _is_stored(value: ir.Value | None) -> bool:
    """Whether a value is a weight or a constant, or a weight as it is stored."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or (node.op_type not in STORED and node.op_type != "Constant"):
            return False
        if node.op_type == "Constant":
            return True
        value = node.inputs[0]
    return value is not None and not value.is_graph_input()


def _through_moves(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value, moves left out."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in MOVES:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return node


def _users(linear: ir.Node) -> Iterator[ir.Node]:
    """Nodes that read a product, its bias added."""
    for node, _ in linear.outputs[0].uses():
        if node.op_type == "Add" and any(map(_is_stored, node.inputs)):
            yield from (user for user, _ in node.outputs[0].uses())
        else:
            yield node
