"""Solves a budget: which format each unit of weights takes, as a recipe that makes the bundle.

1. The KL of each unit in each format alone (`sensitivities`), the bytes it takes, and its products' time.
2. The choice of least KL within the budget, as if KLs added up (`calibration.search.allocation`).
3. They do not: the choice is measured as a whole, then each unit of it one format up and one down, all else as chosen.
   A choice among these is solved again, measured as a whole, and kept where it is better.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.scheme import Grid
from calibration.search.allocation import frontier
from calibration.search.units import Option, Unit, mixed_text, options_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.searching.budget import Budget
from onnx_gpt.searching.costs import Costs
from onnx_gpt.searching.search import Losses, Study, study
from onnx_gpt.searching.sensitivities import OPTIONS, wanted

ROUNDS, HALVINGS = 2, 3
"""Of step 3, at most, and how often the changes of one may be halved."""
POINTS = 10
"""Of the frontier that is shown."""
TRIES = 4
"""Corrections of a size or a KL by what was measured."""

Chosen = dict[str, Option]


@dataclasses.dataclass(frozen=True)
class Point:
    """A choice: what its files take, the KL that is expected of it, and its decode step in seconds."""

    size: int
    kl: float
    step: float


@dataclasses.dataclass(frozen=True)
class Found:
    """A solved budget.

    Attributes:
        recipe: makes the bundle.
        chosen: what it is expected to be.
        measured_kl: of the whole choice on the text that was searched on, with codes that do not know each other.
        points: of the frontier of size and KL.
    """

    recipe: Recipe
    chosen: Point
    measured_kl: float
    points: tuple[Point, ...]

    def json(self) -> dict[str, Any]:
        """For the report and for programs."""
        return {
            "chosen": _plain(self.chosen) | {"measured_kl": self.measured_kl},
            "frontier": [_plain(point) for point in self.points],
        }


def allocate(
    source: str,
    budget: Budget,
    recipe: Recipe,
    *,
    options: str = OPTIONS,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """The formats of least KL within a budget; the smallest of those near enough, where the budget states a KL.

    Args:
        source: what `exporter.sources.load` takes.
        recipe: the job's other settings, for int4 with no widths or blocks; its method chooses the codes.
        options: formats to choose from, as of `onnx_gpt.searching.sensitivities`.
        work: folder of measurements, as of `onnx_gpt.searching.sensitivities`.

    Raises:
        OnnxGptError: ``budget-unmet`` (exit 7) where no choice keeps it; ``scheme-invalid`` (exit 2) for a recipe that
            says what the budget is to find.
    """
    _require_open(recipe)
    with study(source, recipe, recipe.resolved_method, work, progress or Silent()) as opened:
        formats = wanted(opened.units, options_of(options))
        losses = opened.losses(formats)
        costs = Costs(opened)
        solved = _Problem(opened, costs, budget).solve(losses)
        return solved.found(recipe)


class _Problem:
    """One budget on one model."""

    def __init__(self, opened: Study, costs: Costs, budget: Budget) -> None:
        self.opened, self.costs, self.budget = opened, costs, budget
        self.losses: Losses = {}
        self.best: Chosen = {}
        self.kl = 0.0

    @property
    def units(self) -> Sequence[Unit]:
        return self.opened.units

    def solve(self, losses: Losses) -> _Problem:
        self.losses = losses
        budget = self.budget
        for _ in range(TRIES):
            best = self._choose(losses, budget, budget.kl)
            if best is None:
                raise self._unmet()
            self.best = best
            self.kl = self.opened.whole(self.best)
            over = self.costs.size(self.best) - (self.budget.size or np.inf)
            if over > 0 and budget.size is not None:
                budget = dataclasses.replace(budget, size=budget.size - over)
            elif self.budget.kl is not None and self.kl > self.budget.kl and budget.kl is not None:
                budget = dataclasses.replace(budget, kl=budget.kl * 0.95 * self.budget.kl / self.kl)
            else:
                break
        for _ in range(ROUNDS):
            if not self._polish(budget):
                break
        self._require_met()
        return self

    def _polish(self, budget: Budget) -> bool:
        """Try a better choice next to the best, of fewer changes where all are too many; whether one was found."""
        here = self.opened.losses({unit.name: self._neighbours(unit) for unit in self.units}, self.best)
        steps = {
            name: {self.best[name]: 0.0, **{option: kl - self.kl for option, kl in own.items()}}
            for name, own in here.items()
        }
        goal = None if self.budget.kl is None else self.budget.kl - self.kl
        for _ in range(HALVINGS):
            other = self._choose(steps, budget, goal) or self.best
            gains = sorted(
                (steps[name][option], name) for name, option in other.items() if option != self.best[name]
            )
            if not gains or self.costs.size(other) > (self.budget.size or np.inf):
                return False
            kl = self.opened.whole(other)
            if self._is_better(other, kl):
                self.best, self.kl = other, kl
                return True
            improving = [name for gain, name in gains if gain < 0]
            steps |= {name: {self.best[name]: 0.0} for name in improving[(len(improving) + 1) // 2 :]}
        return False

    def _is_better(self, other: Chosen, kl: float) -> bool:
        if self.budget.kl is None or self.kl > self.budget.kl:
            return kl < self.kl
        return kl <= self.budget.kl and self.costs.size(other) < self.costs.size(self.best)

    def _neighbours(self, unit: Unit) -> list[Option]:
        """The next cheaper and the next dearer format of a unit, among those that are worth their bytes."""
        own = self.losses[unit.name]
        ordered = sorted(own, key=lambda option: (unit.nbytes(option), own[option]))
        useful = [
            option
            for i, option in enumerate(ordered)
            if option == self.best[unit.name] or all(own[option] < own[other] for other in ordered[:i])
        ]
        at = useful.index(self.best[unit.name])
        return [useful[i] for i in (at - 1, at + 1) if 0 <= i < len(useful)]

    def _choose(self, losses: Losses, budget: Budget, goal: float | None) -> Chosen | None:
        """The best choice as if losses added up, where one keeps the budget: that of least loss, or the smallest that
        comes to a goal."""
        formats = [list(losses[unit.name]) for unit in self.units]
        loss = [
            [losses[unit.name][option] for option in own]
            for unit, own in zip(self.units, formats, strict=True)
        ]
        size = [
            [float(unit.nbytes(option)) for option in own]
            for unit, own in zip(self.units, formats, strict=True)
        ]
        time = [
            [self.costs.seconds(unit, o) for o in own] for unit, own in zip(self.units, formats, strict=True)
        ]
        room = np.inf if budget.size is None else budget.size - self.costs.fixed
        spare = np.inf if budget.decode is None else 1 / budget.decode - self.costs.rest
        for price in _prices(loss, time, np.isfinite(spare)):
            paid = [
                [a + price * b for a, b in zip(*own, strict=True)] for own in zip(loss, time, strict=True)
            ]
            front = frontier(size, paid)
            if goal is None:
                tried = front.within(room)
            else:
                tried = next((some for some in front.choices() if _sum(loss, some) <= goal), None)
            if tried is not None and _sum(time, tried) <= spare and _sum(size, tried) <= room:
                return {unit.name: own[i] for unit, own, i in zip(self.units, formats, tried, strict=True)}
        return None

    def _require_met(self) -> None:
        point = self._point(self.best)
        slow = self.budget.decode is not None and point.step > 1.001 / self.budget.decode
        if point.size > (self.budget.size or np.inf) or self.kl > (self.budget.kl or np.inf) or slow:
            raise self._unmet()

    def _unmet(self) -> OnnxGptError:
        smallest = {u.name: min(self.losses[u.name], key=u.nbytes) for u in self.units}
        nearest = {u.name: min(self.losses[u.name], key=self.losses[u.name].__getitem__) for u in self.units}
        ends = [self._point(choice) for choice in (smallest, nearest)]
        return OnnxGptError(
            "budget-unmet",
            f"no choice of formats keeps {self._asked()}: they reach from {_told(ends[0])} to {_told(ends[1])}",
            "ask for less",
            exit=Exit.RESOURCES,
        )

    def _asked(self) -> str:
        asked = {"size": self.budget.size, "kl": self.budget.kl, "decode": self.budget.decode}
        return ", ".join(f"{name}={value:g}" for name, value in asked.items() if value is not None)

    # What was found -----------------------------------------------------------------------------------------

    def found(self, recipe: Recipe) -> Found:
        usual = self._usual()
        made = dataclasses.replace(
            recipe,
            quantize=f"int{usual.bits}",
            block_size=usual.block_size,
            table_bits=self.best[self.units[-1].name].grid.bits,
            mixed=mixed_text(self.units, self.best, usual),
        )
        ratio = self.kl / max(self._point(self.best).kl, 1e-12)
        points = [dataclasses.replace(point, kl=point.kl * ratio) for point in self._points()]
        chosen = dataclasses.replace(self._point(self.best), kl=self.kl)
        return Found(made.resolved(), chosen, self.kl, tuple(points))

    def _usual(self) -> Grid:
        """The grid that most weights have, of those that a scheme has a name for."""
        counts: collections.Counter[Grid] = collections.Counter({Grid(4, 32): 0})
        for unit in self.units:
            for part in unit.parts:
                grid = self.best[unit.name].grid_of(part.role)
                if unit.layer is not None and grid.bits in (4, 8):
                    counts[grid] += part.shape[0] * part.shape[1]
        return counts.most_common(1)[0][0]

    def _points(self) -> list[Point]:
        """The frontier of size and KL, as sums tell it."""
        formats = [list(self.losses[unit.name]) for unit in self.units]
        loss = [
            [self.losses[unit.name][o] for o in own] for unit, own in zip(self.units, formats, strict=True)
        ]
        size = [[float(unit.nbytes(o)) for o in own] for unit, own in zip(self.units, formats, strict=True)]
        front = frontier(size, loss)
        low, high = (sum(end(own) for own in size) for end in (min, max))
        points = []
        for budget in np.geomspace(low * 1.001, high, POINTS):
            picks = front.within(float(budget))
            if picks is not None:
                choice = {u.name: own[i] for u, own, i in zip(self.units, formats, picks, strict=True)}
                points.append(self._point(choice))
        return list(dict.fromkeys(points))

    def _point(self, choice: Mapping[str, Option]) -> Point:
        kl = sum(self.losses[unit.name][choice[unit.name]] for unit in self.units)
        seconds = sum(self.costs.seconds(unit, choice[unit.name]) for unit in self.units)
        return Point(self.costs.size(choice), kl, seconds + self.costs.rest)


def _prices(loss: list[list[float]], time: list[list[float]], limited: bool) -> list[float]:
    """What a second may cost in KL, from nothing upwards: the first that keeps a limit of time does it best."""
    if not limited:
        return [0.0]
    scale = sum(max(own) for own in loss) / max(sum(max(own) for own in time), 1e-12)
    return [0.0, *(scale * 2.0**power for power in np.arange(-16, 10, 0.5))]


def _sum(table: list[list[float]], picks: list[int]) -> float:
    return sum(own[i] for own, i in zip(table, picks, strict=True))


def _require_open(recipe: Recipe) -> None:
    said = (recipe.block_size, recipe.table_bits, recipe.mixed)
    if recipe.quantize != "int4" or recipe.resolved_method not in ("rtn", "gptq") or any(said):
        raise OnnxGptError(
            "scheme-invalid",
            "a budget finds the widths and blocks of all weights of an int4 job by rtn or gptq, and others are given",
            "drop --quantize, --method, --block-size, --table-bits and --mixed, or the budget",
            exit=Exit.USAGE,
        )


def _told(point: Point) -> str:
    return f"{point.size / 1e6:.1f} MB, {1 / point.step:.0f} tokens a second, KL {point.kl:.2g}"


def _plain(point: Point) -> dict[str, Any]:
    return {"bytes": point.size, "kl": point.kl, "step_seconds": point.step}
