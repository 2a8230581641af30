"""Which whole layers to leave out: one after the other, each time the one whose loss moves the logits least.

Candidates are the layers that turn the residual stream least (`Chain.influence`); which of them goes is measured,
together with those that have gone before.
"""

from __future__ import annotations

from calibration.progress import Advance
from calibration.pruning.chain import Chain

CANDIDATES = 8
"""Layers that are tried each time."""


def dropped(chain: Chain, count: int, advance: Advance) -> list[int]:
    """The numbers of ``count`` layers, in the order in which they go."""
    influence = chain.influence
    gone: list[int] = []
    for n in range(count):
        advance(n, count, "layers")
        left = [i for i in range(len(influence)) if i not in gone]
        tried = sorted(left, key=lambda i: influence[i])[:CANDIDATES]
        gone.append(min(tried, key=lambda i: chain.damage(dict.fromkeys([*gone, i]))))
    return gone
