"""Flags out of settings: a job's are declared once, in its recipe, and taken over with their types and their help."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import docstring_parser
from cyclopts import Parameter

from onnx_gpt.recipe import Recipe
from onnx_gpt.recipe_file import types
from onnx_gpt.report import Limits

NONE: dict[str, Any] = {}
"""No setting is given."""
LIMITS = {
    "max_kl": "Gate: largest mean KL divergence, nats a token; that of the scheme and the model's size by default.",
    "min_top1": "Gate: smallest share of tokens with the same top choice, 0 to 1.",
    "max_perplexity_ratio": "Gate: largest perplexity, as a multiple of the reference's.",
}
assert LIMITS.keys() == Limits.model_fields.keys()


def flags_of(recipe: type, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings of a recipe, each with its type and its help.

    Args:
        recipe: a dataclass, whose docstring has the help.
        kinds: types by name.
    """
    told = {
        p.arg_name: " ".join((p.description or "").split())
        for p in docstring_parser.parse(recipe.__doc__ or "").params
    }
    defaults = {field.name: field.default for field in dataclasses.fields(recipe)}
    return {
        name: Annotated[_given(kind), Parameter(help=_help(told[name], defaults[name]))]
        for name, kind in kinds.items()
    }


def flattened(name: str, fields: Mapping[str, Any]) -> Any:
    """What cyclopts makes flags of, and fills with those that are given."""
    made: Any = TypedDict(name, fields, total=False)  # type: ignore[misc]  # its keys are made
    return Annotated[made, Parameter(name="*")]


def _given(kind: Any) -> Any:
    """A type without None: a setting that is given is something."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return typing.Literal[tuple(option for option in options if option is not None)]
    real = [option for option in options if option is not type(None)]
    return real[0] if type(None) in options else kind


def _help(text: str, default: Any) -> str:
    shown = ",".join(default) if isinstance(default, tuple) else default
    return text if shown in (None, "") else f"{text} [default: {shown}]"


def _settings() -> Any:
    """Those of `Recipe`; its targets are --target, its limits flags of their own."""
    fields = flags_of(Recipe, types())
    _, help = typing.get_args(fields.pop("targets"))
    return flattened("Settings", {**fields, "target": Annotated[str, help], "limits": Thresholds})


if TYPE_CHECKING:
    Thresholds = dict[str, float]
    Settings = dict[str, Any]
else:
    Thresholds = flattened(
        "Thresholds", {name: Annotated[float, Parameter(help=text)] for name, text in LIMITS.items()}
    )
    Settings = _settings()
