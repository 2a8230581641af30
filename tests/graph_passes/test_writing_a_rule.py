"""docs/writing-a-rule.md is run as its reader would: the file is added, the snippets print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_rules

import graph_passes.rules
from graph_passes.passes import canonical

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-a-rule.md").read_text("utf-8")
BLOCKS = [(kind, text) for kind, text in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)]
RULE, *SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]
NAME = "hard_swish"


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's file among the rules."""
    (tmp_path / f"{NAME}.py").write_text(RULE, "utf-8")
    monkeypatch.setattr(graph_passes.rules, "__path__", [*graph_passes.rules.__path__, str(tmp_path)])
    canonical.rules.cache_clear()
    yield
    canonical.rules.cache_clear()
    sys.modules.pop(f"graph_passes.rules.{NAME}", None)
    vars(graph_passes.rules).pop(NAME, None)


@pytest.mark.usefixtures("added")
def test_snippets_print_what_the_page_says() -> None:
    said = [text for kind, text in BLOCKS if kind == "text"]
    assert len(SNIPPETS) == len(said) == 4
    names: dict[str, object] = {}
    for snippet, wanted in zip(SNIPPETS, said, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet, "docs/writing-a-rule.md", "exec"), names)
        assert printed.getvalue() == wanted


@pytest.mark.usefixtures("added")
def test_the_rule_is_found_and_tested_because_its_file_exists() -> None:
    (rule,) = (found for found in canonical.rules() if found.name == NAME)
    test_rules.test_every_spelling_fires_and_both_sides_are_equal(rule)
    test_rules.test_an_intermediate_that_somebody_else_wants_survives(rule)
    assert len(RULE.strip().splitlines()) <= 12


def test_what_the_page_names_is_there() -> None:
    for path in re.findall(r"(?:graph_passes|tests)/[\w/]+\.py", PAGE):
        assert (ROOT / path).exists() or NAME in path, path
    assert f"pytest tests/graph_passes/test_rules.py -k {NAME}" in PAGE
