"""Ids of special tokens, as the small files of a model state them: one, a list of them, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stated(key: str, generation: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """What is said under ``eos_token_id`` and the like: generation_config.json goes before config.json."""
    return generation.get(key, config.get(key))


def ids_of(value: Any) -> list[int]:
    """The ids of what is stated; what is no whole number is left out."""
    return [v for v in (value if isinstance(value, list) else [value]) if type(v) is int]


def are_ids(value: Any) -> bool:
    """Whether nothing else than ids is stated."""
    return value is None or len(ids_of(value)) == (len(value) if isinstance(value, list) else 1)
