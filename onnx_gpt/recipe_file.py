"""Recipes as .toml files: every setting of `Recipe` under its name, those that are not given left out.

quantize = "int4"
block_size = 64
mixed = ["attention.v=8", "layers.0-2+28.ffn.down=8"]

[limits]
max_kl = 0.1
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.planning.prediction import Predicted
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import Limits

FILE = "recipe.toml"
"""Its name in a bundle."""
PREDICTED = "predicted"
"""The section of what a plan expects; no setting."""

SEARCHED = {"quantize": "int4", "method": "gptq"}
"""What a job with a budget starts from, where neither a file nor its settings say otherwise."""


def recipe_of(
    settings: Mapping[str, Any], file: Path | None = None, *, defaults: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of a file, with other settings in the place of some of its own.

    Args:
        settings: by the names of `Recipe`; limits may be a part of `Limits`, or a mapping; ``target`` may name the
            targets, with commas between or several.
        defaults: of settings that are neither there nor in the file, in the place of those of `Recipe`.

    Raises:
        OnnxGptError: ``recipe-unreadable``, ``recipe-invalid`` (exit 2); what `Recipe` raises.
    """
    known = {} if file is None else read(file)
    settings = dict(settings)
    if "target" in settings:
        named = settings.pop("target")
        names = named.split(",") if isinstance(named, str) else named
        settings["targets"] = tuple(name.strip() for name in names if name.strip())
    limits = {**_limits(known.pop("limits", None)), **_limits(settings.get("limits"))}
    merged = {**(defaults or {}), **known, **settings, "limits": limits or None}
    return Recipe(**checked(merged, "the settings"))


def read(file: Path) -> dict[str, Any]:
    """The settings that a file holds, of the types that `Recipe` wants.

    Raises:
        OnnxGptError: ``recipe-unreadable``; ``recipe-invalid`` (exit 2) for unknown settings and wrong values, by name.
    """
    document = _document(file)
    document.pop(PREDICTED, None)
    if isinstance(document.get("mixed"), list):
        document["mixed"] = ",".join(map(str, document["mixed"]))
    return checked(document, str(file))


def predicted_of(file: Path | None) -> Predicted | None:
    """What a plan expected of a recipe; None where none has made it.

    Raises:
        OnnxGptError: ``recipe-unreadable``; ``recipe-invalid`` (exit 2).
    """
    section = None if file is None else _document(file).get(PREDICTED)
    if section is None:
        return None
    try:
        return Predicted.model_validate(section)
    except pydantic.ValidationError as error:
        cause = f"the section [{PREDICTED}] of {file} is none"
        raise _unusable(cause, "let `onnx-gpt plan` write it, or drop it", error) from error


def _document(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain one
        raise OnnxGptError(
            "recipe-unreadable", f"{file} is no recipe: {error}", "give a .toml file, as bundles hold one"
        ) from error


def checked(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Settings that have the names and the types of `Recipe`.

    Raises:
        OnnxGptError: ``recipe-invalid`` (exit 2), with every one that has not.
    """
    try:
        found = _model().model_validate_json(json.dumps(dict(settings), default=_plain), strict=True)
    except pydantic.ValidationError as error:
        remedy = "use the names and values that onnx-gpt optimize --help has"
        raise _unusable(f"{origin} cannot be used as a recipe", remedy, error) from error
    given = {name: getattr(found, name) for name in found.model_fields_set}
    if given.get("limits") is not None:
        given["limits"] = Limits(**given["limits"].model_dump())
    return given


def _unusable(cause: str, remedy: str, error: pydantic.ValidationError) -> OnnxGptError:
    problems = tuple(_explain(dict(problem)) for problem in error.errors())
    return OnnxGptError("recipe-invalid", cause, remedy, exit=Exit.USAGE, details=problems)


def toml_text(recipe: Recipe, predicted: Predicted | None = None) -> str:
    """A recipe as the text of a file; `read` gives its settings back, `predicted_of` what is expected of it."""
    document: dict[str, Any] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value is not None:
            document[field.name] = _plain(value)
    items = recipe.mixed.split(",")
    if len(items) > 1:
        document["mixed"] = items
    if predicted is not None:
        document[PREDICTED] = predicted.model_dump(mode="json", exclude_none=True)
    tables = sorted(document, key=lambda name: isinstance(document[name], dict))  # TOML's come last
    return tomli_w.dumps({name: document[name] for name in tables}, multiline_strings=False)


def types() -> dict[str, Any]:
    """The type of each setting, by name; a Literal where it has choices."""
    hints = typing.get_type_hints(Recipe)
    choices = {field.name: field.metadata.get("choices") for field in dataclasses.fields(Recipe)}
    return {name: hints[name] if some is None else Literal[some] for name, some in choices.items()}


@functools.cache
def _model() -> type[pydantic.BaseModel]:
    """Settings as pydantic checks them: strictly, and none that `Recipe` has not."""
    closed = pydantic.ConfigDict(extra="forbid")
    hints = typing.get_type_hints(Limits, include_extras=True)
    thresholds: dict[str, Any] = {name: (hints[name], None) for name in Limits.model_fields}
    limits = pydantic.create_model("Limits", __config__=closed, **thresholds)
    fields: dict[str, Any] = {name: (kind, None) for name, kind in types().items()}
    return pydantic.create_model("Settings", __config__=closed, **fields | {"limits": (limits | None, None)})


def _limits(given: Limits | Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {}
    values = given.model_dump() if isinstance(given, Limits) else dict(given)
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Limits):
        return _limits(value)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | str | list | dict) else str(value)


def _explain(problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "it"
    if problem["type"] != "extra_forbidden":
        return f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    known = [field.name for field in dataclasses.fields(Recipe)]
    known += [f"limits.{field}" for field in Limits.model_fields]
    near = difflib.get_close_matches(name, known, 1)
    return f"{name}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
