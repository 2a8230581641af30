"""What a way to make a model smaller does to it: as measured on a few models, and carried over to others.

How much a model minds is its own. Between the two models of the table the same codes differ in KL by a factor of 15,
and ratios between schemes by 3, so a figure of another model is a guess and has the error bars of one. A measurement on
the model at hand (`onnx_gpt.planning.probing`) makes the ratios of the table good for something.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from calibration.scheme import BLOCK_SIZE, HALF
from onnx_gpt.planning.prediction import Estimate

USUAL_BLOCK = BLOCK_SIZE[4]
TABLE = Path(__file__).parent / "damage.toml"

ALIKE = 4.0
"""A model of so many times more or fewer parameters counts as one of the same size."""
SAME_SIZE, OTHER_SIZE = 3.0, 10.0
"""Factors by which a figure of another model may be wrong, either way."""
RATIO = 2.0
"""… and a ratio of two schemes of another model, applied to what was measured on this one."""
TEXT = 1.3
"""… and what was measured on this one, for another text and longer contexts."""


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Row(_Frozen):
    """A quantization: settings of a `Recipe`, and the mean KL that it came to."""

    settings: Mapping[str, Any]
    kl: float
    error: float


class Pruning(_Frozen):
    """Structures taken out: those of ``onnx-gpt prune --structured``, and what log perplexity rose by."""

    structured: str
    loss: float
    error: float
    by: str = ""


class Healing(_Frozen):
    """Distillation after structures were taken out and fitted: the share of the lost log perplexity that came back."""

    share: float = pydantic.Field(gt=0, le=1)
    by: str


class Known(_Frozen):
    """What was measured on one model."""

    name: str
    parameters: int
    by: str
    schemes: tuple[Row, ...]
    prunings: tuple[Pruning, ...] = ()
    healing: Healing | None = None


@functools.cache
def known() -> tuple[Known, ...]:
    """The table."""
    document = tomllib.loads(TABLE.read_text("utf-8"))
    return tuple(Known.model_validate_json(json.dumps(one)) for one in document["models"])


def offered() -> list[dict[str, Any]]:
    """Settings of all schemes that have been measured anywhere; those of the float model first."""
    found = [key(row.settings) for one in known() for row in one.schemes]
    return [{"quantize": "none"}, *(json.loads(text) for text in dict.fromkeys(found))]


def prunings() -> list[str]:
    """What has been taken out of any model, as ``--structured`` has it."""
    return list(dict.fromkeys(row.structured for one in known() for row in one.prunings))


def scheme_damage(
    settings: Mapping[str, Any], parameters: int, probed: Mapping[str, float] | None = None
) -> Estimate | None:
    """Mean KL of a quantization; None where nobody has measured it on any model.

    Args:
        parameters: of the model at hand.
        probed: mean KL of some schemes on the model itself, by `key`.
    """
    if settings == {"quantize": "none"}:
        return Estimate(value=0.0, low=0.0, high=1e-6, basis="float32: rounding alone")
    tables = [
        _Table(
            _basis(one, parameters, one.by),
            _factor(one, parameters),
            {key(r.settings): r.kl for r in one.schemes},
        )
        for one in _nearest(parameters)
    ]
    if probed:
        tables.insert(0, _Table("measured on this model", TEXT, dict(probed)))
    return _carried(key(settings), tables, _likeness)


def pruning_damage(structured: str, parameters: int, *, healed: bool = False) -> Estimate | None:
    """What log perplexity rises by, in nats a token; None where nobody has measured it."""
    tables = [
        _Table(
            _basis(one, parameters, one.prunings[0].by or one.by),
            _factor(one, parameters),
            {row.structured: row.loss for row in one.prunings},
        )
        for one in _nearest(parameters)
        if one.prunings
    ]
    lost = _carried(structured, tables, lambda one, other: 1)
    if not healed or lost is None:
        return lost
    known = next((one for one in _nearest(parameters) if one.healing is not None), None)
    if known is None or known.healing is None:
        return None
    left = 1 - known.healing.share
    basis = f"{lost.basis}, × {left:.2g} as on {known.name} ({known.healing.by})"
    return Estimate(value=left * lost.value, low=0.0, high=lost.high, basis=basis)


@dataclasses.dataclass(frozen=True)
class _Table:
    """Damages of one model by name, where they come from, and by what factor they may be wrong for another."""

    basis: str
    factor: float
    values: Mapping[str, float]


def _carried(wanted: str, tables: Sequence[_Table], likeness: Callable[[str, str], int]) -> Estimate | None:
    """A figure of the first table; where it is not there, another's, in proportion to what both have.

    Args:
        tables: the one that counts most first.
        likeness: of two names, 0 for those whose damages have nothing to do with each other.
    """
    first = tables[0]
    if wanted in first.values:
        return _around(first.values[wanted], first.factor, first.basis)
    for other in tables[1:]:
        if wanted not in other.values:
            continue
        common = [name for name in first.values if name in other.values and likeness(name, wanted)]
        if not common:
            return _around(other.values[wanted], OTHER_SIZE, other.basis)
        anchor = max(common, key=lambda name: likeness(name, wanted))
        ratio = other.values[wanted] / other.values[anchor]
        basis = f"× {ratio:.2g} of {_name(anchor)} ({first.basis}), the ratio of {other.basis}"
        return _around(ratio * first.values[anchor], RATIO * first.factor, basis)
    return None


def _likeness(one: str, other: str) -> int:
    """How much two schemes have in common: a family of widths above all, then the method."""
    ours, theirs = json.loads(one), json.loads(other)
    families = [HALF.get(settings["quantize"], settings["quantize"]) for settings in (ours, theirs)]
    if families[0] != families[1]:
        return 0
    same: dict[str, bool] = {
        name: ours.get(name) == theirs.get(name) for name in ("method", "block_size", "table_bits", "mixed")
    }
    return 1 + sum(same.values()) + int(same["method"])


def _name(wanted: str) -> str:
    return told(json.loads(wanted)) if wanted.startswith("{") else wanted


def key(settings: Mapping[str, Any]) -> str:
    """Settings as one word, whatever their order, a block size left out where it is the usual one."""
    usual = settings.get("block_size") == USUAL_BLOCK
    kept = {name: value for name, value in settings.items() if not (usual and name == "block_size")}
    return json.dumps(kept, sort_keys=True)


def summed(parts: Mapping[str, Estimate]) -> Estimate:
    """Damage of steps one after the other, as if it added up; each part is named in the basis."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    told = "; ".join(f"{name}: {part.basis}" for name, part in parts.items() if part.value)
    return Estimate(
        value=sum(part.value for part in parts.values()),
        low=sum(part.low for part in parts.values()),
        high=sum(part.high for part in parts.values()),
        basis=f"sum of {told}",
    )


def _nearest(parameters: int) -> Iterator[Known]:
    yield from sorted(known(), key=lambda one: abs(math.log(one.parameters / max(parameters, 1))))


def _factor(one: Known, parameters: int) -> float:
    return SAME_SIZE if _alike(one, parameters) else OTHER_SIZE


def _alike(one: Known, parameters: int) -> bool:
    return 1 / ALIKE <= parameters / one.parameters <= ALIKE


def _basis(one: Known, parameters: int, by: str) -> str:
    ratio = parameters / one.parameters
    where = f"{one.name} ({by})"
    if _alike(one, parameters):
        return where
    far = f"{ratio:.3g} times larger" if ratio > 1 else f"{1 / ratio:.3g} times smaller"
    return f"{where}; this model is {far}, and none of its size was measured"


def _around(value: float, factor: float, basis: str) -> Estimate:
    return Estimate(value=value, low=value / factor, high=value * factor, basis=basis)


def told(settings: Mapping[str, Any]) -> str:
    """A scheme's settings in words."""
    quantize, block = settings["quantize"], settings.get("block_size")
    words = [f"{quantize}/{block}" if block else str(quantize), settings.get("method", "")]
    table, mixed = settings.get("table_bits"), settings.get("mixed")
    return " ".join(filter(None, [*words, f"table={table}" if table else "", mixed]))
