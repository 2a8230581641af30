"""The table of targets tells a bundle that is right from one that is not, and claims nothing that was not run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import targets
from benchmarks.runtimes import RUNTIMES, Answer, NotHereError
from benchmarks.target_table import BEGIN, END, equal_tokens, matrix, speeds, write_sections


@pytest.fixture(scope="module")
def model() -> targets.Model:
    return targets.sample("tiny")


def test_a_bundle_that_says_the_same_is_equal(model: targets.Model) -> None:
    row = targets.cell(model, "ort", "float")
    assert (row["verdict"], row["equal"]) == ("equal", targets.TOKENS)
    assert 7 < row["MB"] < 8 and row["prefill tok/s"] > 0 and row["decode tok/s"] > 0


@pytest.mark.parametrize("weights", targets.WEIGHTS)
def test_another_token_differs(model: targets.Model, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = RUNTIMES["ort"]

    def wrong(path: str) -> object:
        def generate(*arguments: object) -> Answer:
            right = ort.generate(path)(*arguments)  # type: ignore[arg-type]
            return Answer([*right.tokens[:5], 0, *right.tokens[6:]], None)

        return generate

    broken = dataclasses.replace(ort, generate=wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(targets, "RUNTIMES", {**RUNTIMES, "ort": broken})
    row = targets.cell(model, "ort", weights)
    assert (row["verdict"], row["equal"]) == ("differs", 5)


def test_what_cannot_be_opened_fails_and_what_is_not_here_is_not_run(
    model: targets.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: Exception) -> targets.Runtime:
        def generate(path: str) -> object:
            raise error

        return dataclasses.replace(RUNTIMES["ort"], generate=generate)  # type: ignore[arg-type]

    for error, verdict in ((OSError("no kernel"), "fails"), (NotHereError("no Node"), "not run")):
        monkeypatch.setattr(targets, "RUNTIMES", {**RUNTIMES, "ort": raising(error)})
        row = targets.cell(model, "ort", "float")
        assert row["verdict"] == verdict and str(error) in row["why"] and row["equal"] is None


def test_a_cell_without_a_row_was_not_run(tmp_path: Path) -> None:
    row = {
        "model": "sample:tiny",
        "weights": "float",
        "target": "ort",
        "verdict": "equal",
        "equal": 32,
        "of": 32,
    }
    rows = [row | {"MB": 7.57, "prefill tok/s": 99.6, "decode tok/s": 1234.5, "why": None}]
    (table,) = matrix(rows)
    assert table["ort"] == "32 equal; 7.57 MB; 100 / 1234 tok/s"
    (brief,) = equal_tokens(rows)
    assert (brief["ort"], brief["web"]) == ("32 · not run", "not run · not run")
    timed = {line["sample:tiny"]: line for line in speeds(rows, "sample:tiny")}
    assert timed["ort"]["float decode tok/s"] == 1234.5 and timed["ort"]["int8 MB"] is None
    assert {table[target] for target in RUNTIMES if target != "ort"} == {"not run"}
    documents = [tmp_path / "targets.md", tmp_path / "README.md"]
    for document in documents:
        document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    write_sections(rows, *documents)
    for document in documents:
        text = document.read_text("utf-8")
        assert text.startswith(f"before\n{BEGIN}") and text.endswith(f"{END}\nafter\n")
        assert "1 bundles were tried; 1 loaded" in text and "old" not in text
