"""Seeded faults are faults: each changes what its model gives, in the call that it says, and nothing else is wrong."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.fault_list import FAULTS, Fault
from benchmarks.faults import finished
from onnx_gpt.bisecting.cases import Case, Feeding, cases, length_for
from onnx_gpt.bisecting.judging import Truth, deviations, truth_of
from onnx_gpt.bisecting.running import run
from onnx_gpt.exporting import export

SHOWN_BY = {
    "prefill": "prompt",
    "decode": "step after a cache",
    "batch": "padded batch",
    "keep": "last logits",
}
MODELS = {(f.family, f.variant, tuple(f.overrides.items())): f for f in FAULTS}


@functools.cache
def truth(family: str, variant: str, overrides: tuple[tuple[str, object], ...]) -> Truth:
    """What a fault's model has to give."""
    model = export(MODELS[family, variant, overrides].checkpoint()).model
    rows = np.random.default_rng(0).integers(0, 131, (2, length_for(model, 64)))
    return truth_of(model, rows)


def truth_for(fault: Fault) -> Truth:
    return truth(fault.family, fault.variant, tuple(fault.overrides.items()))


def case_of(fault: Fault, length: int) -> Case:
    return next(case for case in cases(length) if case.name == SHOWN_BY[fault.shows])


def test_there_are_enough_of_them_and_no_two_are_called_alike() -> None:
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.scheme == "none"], ids=lambda f: f.name)
def test_a_fault_changes_what_its_model_gives(fault: Fault) -> None:
    wanted = truth_for(fault)
    case = case_of(fault, wanted.text.shape[1])
    (found,) = deviations(finished(fault), wanted, [case])
    assert found.error > 2 * wanted.tolerance


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.scheme != "none"], ids=lambda f: f.name)
def test_a_fault_in_codes_does_more_than_the_codes(fault: Fault) -> None:
    wanted = truth_for(fault)
    case = case_of(fault, wanted.text.shape[1])

    def logits(model: ir.Model) -> np.ndarray:
        return run(model, [Feeding(model).feeds(case, wanted.text, 0, {})])[0]["logits"]

    healthy, faulty = logits(finished(fault, faulty=False)), logits(finished(fault))
    assert np.abs(faulty - healthy).max() > 0.05 * np.abs(healthy).max()


@pytest.mark.parametrize("fault", MODELS.values(), ids=lambda f: f"{f.family}-{f.variant}")
def test_without_its_fault_a_model_is_right_in_every_case(fault: Fault) -> None:
    wanted = truth_for(fault)
    found = deviations(finished(fault, faulty=False, scheme="none"), wanted, cases(wanted.text.shape[1]))
    assert len(found) == 6
    assert all(deviation.error <= wanted.tolerance for deviation in found), found
