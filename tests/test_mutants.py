"""The table of mutants follows the code: a bug whose line is no longer there would be put nowhere, and be missed."""

from __future__ import annotations

import ast

import pytest

from benchmarks.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_another_program(mutant: Mutant) -> None:
    right = mutant.path.read_text("utf-8")
    assert ast.dump(ast.parse(mutant.source())) != ast.dump(ast.parse(right))
