"""Settings that nothing in a job would read: each is a usage error that names it, and what leaves it unread."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.report import Limits


@dataclasses.dataclass(frozen=True)
class Read:
    """When a job reads some of its settings.

    Attributes:
        settings: their names.
        when: whether a job does, by its recipe.
        otherwise: what is so where it does not.
        remedy: what would have them read.
    """

    settings: tuple[str, ...]
    when: Callable[[Any], bool]
    otherwise: str
    remedy: str


def require_read(recipe: Any, reads: Sequence[Read]) -> None:
    """Check that a job reads every setting that differs from its default.

    Args:
        recipe: a frozen dataclass; its `Limits` are named by those that are given.

    Raises:
        OnnxGptError: ``setting-unread`` (exit 2).
    """
    for read in reads:
        if not read.when(recipe):
            refuse_unread(_given(recipe, read.settings), read.otherwise, read.remedy)


def refuse_unread(settings: Mapping[str, Any], why: str, remedy: str) -> None:
    """Raise ``setting-unread`` (exit 2) where any of some settings is given: is not None."""
    names = [name for name, value in settings.items() if value is not None]
    if not names:
        return
    several = len(names) > 1
    named = f"{', '.join(names[:-1])} and {names[-1]} are" if several else f"{names[0]} is"
    raise OnnxGptError(
        "setting-unread",
        f"{named} given, and {why}",
        f"{remedy}, or drop {'them' if several else 'it'}",
        exit=Exit.USAGE,
    )


def _given(recipe: Any, names: Sequence[str]) -> dict[str, Any]:
    """Settings that differ from their default, thresholds by their own names."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name in names and value != field.default:
            given |= value.model_dump() if isinstance(value, Limits) else {field.name: value}
    return given
