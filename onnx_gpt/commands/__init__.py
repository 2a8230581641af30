"""Verbs of the command line. A verb is a file here, found because it exists; its function has its name."""

from __future__ import annotations

from collections.abc import Sequence

import cyclopts

from exporter.discovery import modules_of, names_of


def register(app: cyclopts.App, arguments: Sequence[str], *, help_epilogue: str) -> None:
    """Add every verb to the command line, the last lines of whose help are given.

    Where ``arguments`` begin with a verb, it alone is imported, when it is called: what the others need takes a
    second. A list of all takes them all, for what they say of themselves.
    """
    verbs = names_of(__name__)
    if arguments and arguments[0] in ("--version", *verbs):
        for name in verbs:
            app.command(f"{__name__}.{name}:{name}", name=name, help_epilogue=help_epilogue)
    else:
        for name, module in modules_of(__name__).items():
            app.command(getattr(module, name), name=name, help_epilogue=help_epilogue)
