"""The hash tree of RFC 9162 (Certificate Transparency), section 2.1.1, with SHA-256.

    leaf(d) = H(0x00 ‖ d)        node(l, r) = H(0x01 ‖ l ‖ r)

A list of n leaves is cut after the first k, the largest power of two below n. One root then stands for every leaf and
for their order, and the prefixes keep a node from being taken for a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf(data: bytes) -> bytes:
    """The digest of one leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The digest of a list of leaves, given by their digests; that of nothing is the digest of no bytes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    cut = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root(leaves[:cut]) + root(leaves[cut:])).digest()
