"""Verbs of the command line. A verb is a file here, found because it exists; its function has its name."""

from __future__ import annotations

import cyclopts

from exporter.discovery import modules_of


def register(app: cyclopts.App) -> None:
    """Add every verb to the command line."""
    for name, module in modules_of(__name__).items():
        app.command(getattr(module, name), name=name)
