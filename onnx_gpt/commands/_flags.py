"""Flags that several verbs have: what they take, and their help, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Switch = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag that is there or not, without a --no-…"""
Json = Annotated[bool, Parameter(negative="", show_default=False, help="Print one JSON document.")]

_OUT = Parameter(name=("--out", "-o"))
OptionalOut = Annotated[Path | None, _OUT]
NewFolder = Annotated[Path, _OUT, Parameter(help="Directory to make. It must not exist.")]

ContextLength = Annotated[int | None, Parameter(help="Largest number of tokens; the model's own by default.")]
Passes = Annotated[str | None, Parameter(help="A pipeline as text; the target's by default.")]
Target = Annotated[str, Parameter(help="Runtime whose passes are run.")]
Text = Annotated[
    Path | None,
    Parameter(help="UTF-8 file to evaluate on; held-out English of Python's own documentation by default."),
]
Tokens = Annotated[int, Parameter(help="Tokens to evaluate on, at least.")]
Threads = Annotated[int | None, Parameter(help="Threads; the machine's physical cores by default.")]
Work = Annotated[
    Path | None, Parameter(help="Folder that measurements are kept in; one in the user's cache by default.")
]
