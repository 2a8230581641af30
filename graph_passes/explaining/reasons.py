"""Why a piece of a graph is left: what passes refused, by the nodes that it is about."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence, Set

import onnx_ir as ir

from graph_passes.engine.rule import Rule
from graph_passes.engine.terms import Apply, within
from graph_passes.outcome import NearMiss
from graph_passes.passes.canonical import rules
from graph_passes.pipeline import PassReport

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

    def same(self, other: Reason) -> bool:
        """Whether it is the same reason, at another place perhaps."""
        return (self.by, self.rule, self.why) == (other.by, other.rule, other.why)

    def __str__(self) -> str:
        return (
            f"{self.rule or self.by} stopped at {self.at}: {self.why}"
            if self.by
            else f"{self.at}: {self.why}"
        )


class Reasons:
    """What the passes of a pipeline refused."""

    def __init__(self, passes: Sequence[PassReport], lineage: Lineage) -> None:
        self._lineage = lineage
        self._ops = {rule.name: rule.ops for rule in rules()}
        self._by_node: dict[ir.Node, list[tuple[str, NearMiss]]] = collections.defaultdict(list)
        self._by_pass: dict[str, list[NearMiss]] = {}
        for report in passes:
            known = set(map(str, report.misses))
            found = [*report.misses, *(_parsed(text) for text in report.refused if text not in known)]
            self._by_pass.setdefault(report.name, []).extend(found)
            for miss in found:
                for node in miss.nodes:
                    self._by_node[node].append((report.name, miss))

    def of_layout(self, node: ir.Node) -> Reason | None:
        """`of_piece` of what still works on heads, [B, H, S, D]: rules that want tokens, [B, S, H·D], come after."""
        return self.of_piece(node, {rule.name for rule in rules() if _wants_tokens(rule)})

    def of_piece(self, node: ir.Node, without: Set[str] = frozenset()) -> Reason | None:
        """The rule that came furthest with a node in what it matched; of equals the one that matched more.

        Where none came that far, the one that came furthest of those that look for such a node and began close by.
        """
        about = [
            (by, miss) for by, miss in self._by_node[node] if miss.rule and miss.rule not in without
        ] or [
            (by, miss)
            for user in _within_steps(node, NEXT)
            for by, miss in self._by_node[user]
            if miss.nodes[0] is user and node.op_type in self._ops.get(miss.rule, ())
        ]
        if not about:
            return None
        return _reason(*max(about, key=lambda entry: (entry[1].share, len(entry[1].nodes))))

    def of_pass(self, by: str, node: ir.Node) -> Reason | None:
        """What a pass said of a node."""
        return next((_reason(by, miss) for name, miss in self._by_node[node] if name == by), None)

    def of_graph(self, by: str) -> Reason | None:
        """The first thing that a pass said."""
        return next((_reason(by, miss) for miss in self._by_pass.get(by, ())), None)

    def of_ancestors(self, by: str, node: ir.Node) -> Reason | None:
        """What a pass said of a node that has become this one since."""
        about = (m for m in self._by_pass.get(by, ()) if self._lineage.heir(m) is node)
        return next((_reason(by, miss) for miss in about), None)

    def of_users(self, by: str, node: ir.Node) -> Reason | None:
        """What a pass said of what a node leads to."""
        near = {str(user.name) for user in _within_steps(node, FAR)}
        return next((_reason(by, miss) for miss in self._by_pass.get(by, ()) if miss.place in near), None)


class Lineage:
    """What became of nodes that rewrites took away; a listener to them (`graph_passes.matching.listening`)."""

    def __init__(self) -> None:
        self._heirs: dict[ir.Node, ir.Node] = {}

    def __call__(
        self,
        at: ir.Node,
        old: Sequence[ir.Node],
        new: Sequence[ir.Node],
        values: Sequence[tuple[ir.Value, ir.Value]],
    ) -> None:
        heir = values[0][1].producer() if values else None
        if heir is not None and heir not in old:
            self._heirs.update(dict.fromkeys(old, heir))

    def heir(self, miss: NearMiss) -> ir.Node | None:
        """The node that stands now where a pass stopped."""
        node = miss.nodes[0] if miss.nodes else None
        while node in self._heirs:
            node = self._heirs[node]
        return node


def unknown(node: ir.Node) -> Reason:
    """Nothing has been said of a node."""
    return Reason(
        "", "", str(node.name), f"no rule came near anything that this {node.op_type} is part of", 0.0
    )


def users(node: ir.Node) -> list[ir.Node]:
    """The nodes that read what a node makes."""
    return [user for value in node.outputs for user, _ in value.uses()]


def _within_steps(node: ir.Node, steps: int) -> list[ir.Node]:
    """What a node leads to, the nearest first."""
    found: dict[ir.Node, None] = {}
    near = [node]
    for _ in range(steps):
        near = [user for each in near for user in users(each) if user not in found]
        found.update(dict.fromkeys(near))
    return list(found)


def _wants_tokens(rule: Rule) -> bool:
    terms = (term for side in rule.left for output in side for term in within(output))
    return any(isinstance(term, Apply) and "q_num_heads" in term.attributes for term in terms)


def _parsed(text: str) -> NearMiss:
    """``"place: why"``"""
    place, _, why = text.partition(": ")
    return NearMiss("", place, place, why, 1.0, ())


def _reason(by: str, miss: NearMiss) -> Reason:
    return Reason(by, miss.rule, miss.at, miss.why, round(miss.share, 2))
