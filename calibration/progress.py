"""How far a walk over a model has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Advance: TypeAlias = Callable[[int, int, str], None]
"""Told how many steps of how many are done, and which is next."""
