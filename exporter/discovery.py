"""Adding one is adding one file: a family, a source, a pass, a target or a verb is found because its file exists."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names_of(package: str) -> list[str]:
    """The modules of a package in alphabetical order, not imported; a leading underscore keeps a helper out."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def modules_of(package: str) -> dict[str, ModuleType]:
    """The modules of a package by name."""
    return {name: importlib.import_module(f"{package}.{name}") for name in names_of(package)}
