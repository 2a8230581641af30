"""Rules applied to a graph until none fits: a worklist over an index of rules by op."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.engine.emit import Emitter
from graph_passes.engine.matcher import Match, Miss, dims_of, match
from graph_passes.engine.rule import Rule
from graph_passes.engine.terms import Refused
from graph_passes.matching import replace, role_of
from graph_passes.outcome import NearMiss

NEAR, FEWEST = 0.7, 3
"""Share of a pattern's nodes, and how many at least, that have to fit for a miss to be called near."""

PATIENCE = 10
"""How often rules may fire for every node that there was, before they are taken to undo one another."""


@dataclasses.dataclass
class Count:
    """What a rule did: how often it was tried, nearly fitted and fired, and its wall time."""

    tried: int = 0
    near: int = 0
    fired: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What applying rules did.

    Attributes:
        counts: by rule.
        attempts: how far every rule came at every node that is left.
    """

    counts: dict[str, Count]
    attempts: tuple[NearMiss, ...]

    @property
    def misses(self) -> tuple[NearMiss, ...]:
        """The near ones among the attempts."""
        return tuple(miss for miss in self.attempts if _is_near(miss.share, len(miss.nodes)))

    @property
    def fired(self) -> int:
        return sum(count.fired for count in self.counts.values())

    @property
    def tried(self) -> int:
        return sum(count.tried for count in self.counts.values())


def rewrite(model: ir.Model, rules: Sequence[Rule]) -> Rewriting:
    """Apply rules wherever they fit, larger spellings first, until none does.

    The graph is gone through in order, again and again until nothing fires; new nodes are looked at at once. How
    often depends on how deep rules build on one another, not on the size of the graph, so the work grows with
    the number of nodes.
    """
    return _Worklist(model, rules).run()


class _Worklist:
    def __init__(self, model: ir.Model, rules: Sequence[Rule]) -> None:
        self.model = model
        self.counts = {rule.name: Count() for rule in rules}
        self.index: dict[str, list[tuple[Rule, int]]] = collections.defaultdict(list)
        for rule in rules:
            for op, spelling in rule.roots:
                self.index[op].append((rule, spelling))
        for entries in self.index.values():
            entries.sort(key=lambda entry: -entry[0].sizes[entry[1]])
        self.misses: dict[ir.Node, dict[str, NearMiss]] = {}

    def run(self) -> Rewriting:
        before, most = -1, PATIENCE * max(100, self.model.graph.num_nodes())
        while self.fired() != before:
            before = self.fired()
            self.misses.clear()
            todo = collections.deque(self.model.graph)
            while todo:
                node = todo.popleft()
                if node.graph is not None:
                    todo.extendleft(self.visit(node))
                if self.fired() > most:
                    busy = sorted(self.counts, key=lambda name: -self.counts[name].fired)[:3]
                    raise AssertionError(
                        f"rules undo one another for ever; most often fired: {', '.join(busy)}"
                    )
        left = [
            miss for node, misses in self.misses.items() if node.graph is not None for miss in misses.values()
        ]
        return Rewriting(self.counts, tuple(left))

    def fired(self) -> int:
        return sum(count.fired for count in self.counts.values())

    def visit(self, node: ir.Node) -> tuple[ir.Node, ...]:
        """Try the rules of a node; the new nodes if one fired."""
        self.misses.pop(node, None)
        for rule, spelling in self.index.get(node.op_type, ()):
            count = self.counts[rule.name]
            count.tried += 1
            started = time.perf_counter()
            found = self.attempt(rule, spelling, node)
            count.seconds += time.perf_counter() - started
            if not isinstance(found, Miss):
                count.fired += 1
                return found
            self.note(rule, spelling, node, found)
        return ()

    def note(self, rule: Rule, spelling: int, node: ir.Node, miss: Miss) -> None:
        """Keep the spelling of a rule that came furthest at a node."""
        share = min(1.0, len(miss.nodes) / max(1, rule.sizes[spelling]))
        self.counts[rule.name].near += _is_near(share, len(miss.nodes))
        known = self.misses.setdefault(node, {})
        if miss.nodes and (rule.name not in known or known[rule.name].share < share):
            known[rule.name] = NearMiss(rule.name, role_of(node), miss.at, miss.why, share, miss.nodes)

    def attempt(self, rule: Rule, spelling: int, node: ir.Node) -> tuple[ir.Node, ...] | Miss:
        found = match(rule, spelling, node.outputs[0])
        if isinstance(found, Miss):
            return found
        try:
            return self.apply(rule, found)
        except Refused as refused:
            return Miss((*found.nodes, *found.shared), node.name or node.op_type, str(refused))

    def apply(self, rule: Rule, found: Match) -> tuple[ir.Node, ...]:
        graph = self.model.graph
        root = found.roots[0]
        at = root.producer()
        assert at is not None
        terms = {v.name: v if v.kind == "value" else found.values[v.name] for v in rule.variables}
        _, right = rule.sides(terms, found.shapes)
        emitter = Emitter(graph, found.values, found.shapes, root.dtype or ir.DataType.FLOAT)
        try:
            values = emitter.side(right)
            for old, new in zip(found.roots, values, strict=True):
                _require_same(old, new)
        except Refused:
            for value in emitter.constants:
                del graph.initializers[str(value.name)]
            raise
        replace(at, found.nodes, emitter.nodes, list(zip(found.roots, values, strict=True)))
        for node in found.shared:  # most downstream first
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                graph.remove(node, safe=True)
        return tuple(emitter.nodes)


def _is_near(share: float, nodes: int) -> bool:
    return share >= NEAR and nodes >= FEWEST


def _require_same(old: ir.Value, new: ir.Value) -> None:
    if old.dtype != new.dtype and old.dtype is not None:
        raise Refused(f"the new value would be {new.dtype}, not {old.dtype}")
    was, would_be = dims_of(old), dims_of(new)
    if was is None or was != would_be:
        raise Refused(f"the new value would have shape {would_be}, not {was}")
