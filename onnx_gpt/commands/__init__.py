"""Verbs of the command line. A verb is a file here, found because it exists; its function has the verb's name."""

from __future__ import annotations

import importlib
import pkgutil

import cyclopts


def register(app: cyclopts.App) -> None:
    """Add every verb to the command line."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
        app.command(getattr(importlib.import_module(f"{__name__}.{module}"), module), name=module)
