"""What a pass gives back: how often it fired, and where it nearly did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.matching import role_of


@dataclasses.dataclass(frozen=True)
class NearMiss:
    """A rewrite that nearly applied.

    Attributes:
        rule: the equation; empty where a pass is no more than one.
        place: role, or name, of the node at which the match began.
        at: the node or value where it stopped, by name, and ``why``.
        share: how much of what it looks for is there, 0…1; 1 where only a condition failed.
        nodes: what is there, the place first.
    """

    rule: str
    place: str
    at: str
    why: str
    share: float
    nodes: tuple[ir.Node, ...]

    @classmethod
    def of(cls, node: ir.Node, why: str) -> NearMiss:
        """A node that a pass looked at and left."""
        return cls("", role_of(node), node.name or node.op_type, why, 1.0, (node,))

    def __str__(self) -> str:
        stopped = f"{self.rule} stopped at {self.at}: " if self.rule else ""
        return f"{self.place}: {stopped}{self.why}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How often a pass fired, and where it nearly did.

    Attributes:
        fired: rewrites made.
        refused: ``"place: condition that failed"``, one for each rewrite that nearly applied.
        misses: the same with its parts, and what came less near too: of use to who asks why a piece is left.
        tried: how often a rule was tried at a node, where a pass is made of rules.
    """

    fired: int
    refused: tuple[str, ...] = ()
    misses: tuple[NearMiss, ...] = ()
    tried: int = 0

    @classmethod
    def of(cls, fired: int, misses: Sequence[NearMiss]) -> Outcome:
        """All misses are near ones."""
        return cls(fired, tuple(map(str, misses)), tuple(misses))
