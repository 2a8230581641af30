"""Adding one is adding one file: a family, a source, a pass, a target or a verb is found because its file exists."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules_of(package: str) -> dict[str, ModuleType]:
    """The modules of a package by name, in alphabetical order; a leading underscore keeps a helper out."""
    path = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(path))
    return {name: importlib.import_module(f"{package}.{name}") for name in names if not name.startswith("_")}
