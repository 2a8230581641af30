"""A search's parts: units and their bytes, patterns of layers, knapsack, KLs of variants, what outlives a kill."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from calibration.quantization.tensors import CodesTensor, ParameterTensor
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import TABLE, Grid, RoundToNearest, fits, scheme_of
from calibration.search import code_book
from calibration.search.allocation import frontier
from calibration.search.code_book import CodeBook
from calibration.search.ledger import Ledger
from calibration.search.measuring import Measurer
from calibration.search.units import (
    Option,
    Part,
    Unit,
    mixed_text,
    options_of,
    scheme_of_allocation,
    units_of,
)
from calibration.segments import cut
from exporter.errors import OnnxGptError
from exporter.families import families
from graph_passes import ORT_PIPELINE, run_pipeline
from onnx_gpt.exporting import export

GRIDS = [Grid(4, 16), Grid(4, 32), Grid(8, 32), Grid(2, 32)]


def decoder(family: str) -> ir.Model:
    model = export(tiny(family)).model
    run_pipeline(model, ORT_PIPELINE, verify=False)
    return model


@pytest.fixture(scope="module")
def llama() -> ir.Model:
    return decoder("llama")


# Units ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(families()))
def test_units_hold_every_matrix_once_and_know_its_bytes(family: str) -> None:
    model = decoder(family)
    units = units_of(model)
    assert units[-1].name == TABLE
    assert {unit.layer for unit in units} == {0, 1, None}
    option = Option(Grid(4, 32))
    quantize_weights(model, scheme_of_allocation(units, {unit.name: option for unit in units}))
    stored = [v.const_value for v in model.graph.initializers.values()]
    nbytes = sum(-(-t.nbytes // 4096) * 4096 for t in stored if isinstance(t, CodesTensor | ParameterTensor))
    assert sum(unit.nbytes(option) for unit in units) == nbytes


def test_what_an_allocation_does_not_name_stays_float(llama: ir.Model) -> None:
    model = llama.clone()
    (unit,) = [unit for unit in units_of(model) if unit.name == "layers.1.attention.qkv"]
    (option,) = options_of("4/16+v=8/32")
    done = quantize_weights(model, scheme_of_allocation([unit], {unit.name: option}))
    assert [(t.role, t.bits, t.block_size) for t in done if t.bits] == [
        ("layers.1.attention.qkv", 4, 16),
        ("layers.1.attention.qkv", 8, 32),
    ]


@pytest.mark.parametrize("text", ["4", "4/64/1", "4/64+v", "4/64+=8/64", "x/64", "3/64", "4/48"])
def test_a_bad_format_is_refused(text: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        options_of(text)
    assert caught.value.code == "scheme-invalid"


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=4))
def test_spans_of_layers(layer: int, spans: list[tuple[int, int]]) -> None:
    text = "+".join(str(a) if more == 0 else f"{a}-{a + more}" for a, more in spans)
    inside = any(a <= layer <= a + more for a, more in spans)
    assert fits(f"layers.{layer}.ffn.down", f"layers.{text}.ffn.down") == inside
    assert fits(f"layers.{layer}.ffn.down", f"layers.{text}.*") == inside
    assert not fits(f"layers.{layer}.ffn.up", f"layers.{text}.ffn.down")


def test_a_pattern_begins_at_any_part_of_a_role() -> None:
    assert fits("layers.0.ffn.down", "ffn.*") and fits("layers.0.ffn.down", "down")
    assert not fits("layers.0.attention.o", "ffn.*") and not fits("layers.0.ffn.down", "own")


def test_only_the_table_is_meant_by_its_name() -> None:
    assert fits(TABLE, TABLE)
    assert not fits(TABLE, "*")
    assert not fits("layers.0.ffn.down", TABLE)


def unit_lists() -> Iterator[Unit]:
    for layer in range(4):
        stem = f"layers.{layer}"
        yield Unit(
            f"{stem}.attention.qkv", tuple(Part(f"{stem}.attention.{n}", (16, 32)) for n in "qkv"), layer
        )
        yield Unit(f"{stem}.ffn.down", (Part(f"{stem}.ffn.down", (32, 64)),), layer)
    yield Unit(TABLE, (Part(TABLE, (100, 32)),), None)


UNITS = list(unit_lists())
OPTIONS = st.builds(Option, st.sampled_from(GRIDS), st.just(()))
WIDE_V = st.builds(lambda a, b: Option(a, (("v", b),)), st.sampled_from(GRIDS), st.sampled_from(GRIDS))


@given(st.data(), st.sampled_from(GRIDS[:3]))
def test_a_recipe_says_what_was_allocated(data: st.DataObject, usual: Grid) -> None:
    chosen = {u.name: data.draw(OPTIONS | WIDE_V if len(u.parts) > 1 else OPTIONS) for u in UNITS}
    scheme = scheme_of(
        f"int{usual.bits}", block_size=usual.block_size, mixed=mixed_text(UNITS, chosen, usual)
    )
    assert isinstance(scheme, RoundToNearest)
    for unit in UNITS:
        for part in unit.parts:
            assert scheme.grid_of(part.role) == chosen[unit.name].grid_of(part.role)


# The knapsack -----------------------------------------------------------------------------------------------

NUMBERS = st.floats(0, 100, allow_nan=False, width=32)
GROUPS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=3), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(GROUPS, st.floats(0, 1))
def test_no_choice_within_the_budget_is_better(groups: list[list[tuple[float, float]]], share: float) -> None:
    costs, losses = ([[entry[i] for entry in own] for own in groups] for i in (0, 1))
    most = sum(max(own) for own in costs)
    budget = share * most
    front = frontier(costs, losses)

    def total(table: list[list[float]], picks: list[int] | tuple[int, ...]) -> float:
        return sum(own[i] for own, i in zip(table, picks, strict=True))

    every = list(itertools.product(*(range(len(own)) for own in groups)))
    found = front.within(budget)
    slack = front.step * len(groups) + 1e-6
    sure = [total(losses, picks) for picks in every if total(costs, picks) <= budget - slack]
    if found is None:
        assert not sure
    else:
        assert total(costs, found) <= budget + 1e-6
        assert total(losses, found) <= min(sure, default=np.inf) + 1e-9
    seen = [total(losses, picks) for picks in front.choices()]
    assert seen == sorted(seen, reverse=True)
    assert np.isclose(seen[-1], min(total(losses, picks) for picks in every))


# Measuring --------------------------------------------------------------------------------------------------


def tokens(count: int, length: int = 32) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 131, (count, length))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_variants_together_are_variants_alone(family: str, tmp_path: Path) -> None:
    model = decoder(family)
    units = units_of(model)
    measurer = Measurer(model, units, tokens(2), tmp_path)
    options = options_of("4/16,8/32")
    some = [units[0], units[-2], units[-1]]
    coarse = {units[1].name: options[0]}
    assert measurer.whole({}) < 1e-9
    for base in ({}, coarse):
        found = list(measurer.deltas(base, {unit.name: options for unit in some}))
        assert [(d.unit, d.option) for d in found] == [
            (u.name, o) for u in (some[-1], *some[:-1]) for o in options
        ]
        for delta in found:
            alone = measurer.whole({**base, delta.unit: delta.option})
            assert np.isclose(delta.kl, alone, rtol=1e-3, atol=1e-9)
        kls = {(d.unit, d.option): d.kl for d in found}
        assert all(kls[u.name, options[0]] > kls[u.name, options[1]] for u in some)


def test_a_book_gives_the_codes_of_stacked_maps_and_keeps_them(llama: ir.Model, tmp_path: Path) -> None:
    units = units_of(llama)
    options = options_of("4/16,4/16+v=8/32")
    pairs = [(p.role, o.grid_of(p.role)) for u in units[:1] for o in options for p in u.parts]
    book = CodeBook(tmp_path / "codes")
    (tmp_path / "scratch").mkdir()
    book.choose(llama, pairs, tokens(64), tmp_path / "scratch", lambda *_: None)
    files = {file: file.stat().st_mtime_ns for file in book.folder.iterdir()}
    assert len(files) == 2 * len(set(pairs))
    book.choose(llama, pairs, tokens(64), tmp_path / "scratch", lambda *_: None)
    assert {file: file.stat().st_mtime_ns for file in book.folder.iterdir()} == files
    segment = cut(llama)[1]
    scheme = scheme_of_allocation(units[:1], {units[0].name: options[0]})
    name = next(str(site.table.name) for site in segment.sites())
    (coder,) = book.coders(segment, scheme)[name]
    assert coder is not None
    whole = coder.coded(0, 128, None)
    some = coder.coded(50, 110, None)
    assert whole.codes.shape == (128, 64)
    assert np.array_equal(whole.codes[50:110], some.codes)
    assert np.array_equal(whole.scale[50:110], some.scale)


def test_two_runs_may_fill_one_book(llama: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(part.role, Grid(4, 32)) for part in units_of(llama)[0].parts]

    def fill(name: str, scratch: str) -> dict[str, bytes]:
        (tmp_path / scratch).mkdir()
        book = CodeBook(tmp_path / name)
        book.choose(llama, pairs, tokens(64), tmp_path / scratch, lambda *_: None)
        return {file.name: file.read_bytes() for file in book.folder.iterdir() if file.is_file()}

    alone = fill("alone", "first")
    one_weight = code_book.fill_file

    def and_another_run_meanwhile(*arguments: Any) -> None:
        one_weight(*arguments)
        if not (tmp_path / "third").exists():
            fill("shared", "third")

    monkeypatch.setattr(code_book, "fill_file", and_another_run_meanwhile)
    assert fill("shared", "second") == alone


def test_a_ledger_survives_a_line_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "measured.jsonl"
    ledger = Ledger(file)
    for key in ("a", "b"):
        ledger.put(key, len(key) / 3)
    file.write_text(file.read_text("utf-8")[:-5], "utf-8")
    again = Ledger(file)
    assert (again.get("a"), again.get("b")) == (1 / 3, None)
    again.put("c", 2.0)
    assert Ledger(file).get("c") == 2.0
