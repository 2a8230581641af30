"""The flags of a job: the settings of `Recipe` that are given, in its words. One declaration serves all commands."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import docstring_parser
from cyclopts import Parameter

from onnx_gpt.recipe import Recipe
from onnx_gpt.recipe_file import types
from onnx_gpt.report import Limits

LIMITS = {
    "max_kl": "Gate: largest mean KL divergence, nats a token.",
    "min_top1": "Gate: smallest share of tokens with the same top choice, 0 to 1.",
    "max_perplexity_ratio": "Gate: largest perplexity, as a multiple of the reference's.",
}


def _flags() -> Any:
    """A TypedDict without the settings that are not given, for cyclopts to flatten."""
    told = {
        p.arg_name: " ".join((p.description or "").split())
        for p in docstring_parser.parse(Recipe.__doc__ or "").params
    }
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    fields = {
        name: Annotated[_given(kind), Parameter(help=_help(told[name], defaults[name]))]
        for name, kind in types().items()
    }
    fields["target"] = Annotated[str, Parameter(help=_help(told["targets"], "ort"))]
    del fields["targets"]
    limits: dict[str, Any] = {name: Annotated[float, Parameter(help=text)] for name, text in LIMITS.items()}
    fields["limits"] = Annotated[_typed_dict("Thresholds", limits), Parameter(name="*")]
    return _typed_dict("Flags", fields)


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    assert name == "Flags" or fields.keys() == Limits.model_fields.keys()
    made: Any = TypedDict(name, fields, total=False)  # type: ignore[misc]  # its keys are made
    return made


def _given(kind: Any) -> Any:
    """A type without None: a setting that is given is something."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return typing.Literal[tuple(option for option in options if option is not None)]
    real = [option for option in options if option is not type(None)]
    return real[0] if type(None) in options else kind


def _help(text: str, default: Any) -> str:
    return text if default in (None, "") else f"{text} [default: {default}]"


if TYPE_CHECKING:
    Flags = dict[str, Any]
else:
    Flags = _flags()

Settings = Annotated[Flags, Parameter(name="*")]
