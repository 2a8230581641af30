"""What web bundles run on, in tests: `benchmarks.transformers_js`.

Where npm, or a Chromium, is not there, tests are skipped and say so; `.ci/run` puts both there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import transformers_js
from benchmarks.environment import NotHereError

SECONDS = 300


def in_node(bundle: Path, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What transformers.js makes of each call in Node.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    try:
        return transformers_js.in_node(bundle, calls, SECONDS)
    except NotHereError as error:
        pytest.skip(str(error))


def in_chromium(bundle: Path, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same in headless Chromium, on the sample's own page and server."""
    try:
        return transformers_js.in_chromium({"bundle": bundle}, calls, SECONDS)
    except NotHereError as error:
        pytest.skip(str(error))
