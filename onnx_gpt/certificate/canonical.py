"""JSON in one spelling, so that a value has one digest; and the layout in which a certificate is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

VOLATILE = frozenset(["seconds", "peak_rss_bytes"])
"""Keys of a report that change from one run to the next: no digest that users compare depends on them."""


def canonical_bytes(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; floats as Python writes them, the shortest that read back equal.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """SHA-256 of `canonical_bytes`, in hexadecimal."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def without(value: Any, keys: frozenset[str]) -> Any:
    """A JSON value without some keys of its objects, however deep they are."""
    if isinstance(value, Mapping):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    if isinstance(value, list | tuple):
        return [without(item, keys) for item in value]
    return value


def laid_out(value: Any, depth: int = 3, indent: int = 0) -> str:
    """JSON text for people: containers down to ``depth`` one item a line, what is deeper on the line of its parent."""
    if depth == 0 or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    pad = " " * (indent + 1)
    if isinstance(value, list):
        items = [laid_out(item, depth - 1, indent + 1) for item in value]
        opening, closing = "[", "]"
    else:
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {laid_out(item, depth - 1, indent + 1)}"
            for key, item in value.items()
        ]
        opening, closing = "{", "}"
    lines = ",\n".join(pad + item for item in items)
    return f"{opening}\n{lines}\n{' ' * indent}{closing}"
