"""A training run on disk: what it takes to go on as if nothing had happened.

Each state is a folder of its own, written beside and renamed, and the one before goes only then: whenever the process
is killed, a whole one is there. Tensors are safetensors, numbers are JSON; nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, NUMBERS, PARTIAL = "tensors.safetensors", "state.json", ".partial"

Group = dict[str, Tensor]
"""Tensors by the names of what is trained."""


@dataclasses.dataclass(frozen=True)
class State:
    """Behind so many steps.

    Attributes:
        step: that have been made; the order of the text follows from it and the seed.
        values, first, second: what is trained, and AdamW's two moments of it.
        best: the values with the least held-out loss so far.
        best_step: the step that they are of.
        curve: steps and held-out losses, in nats a token.
        resumed: steps at which a run went on.
    """

    step: int
    values: Group
    first: Group
    second: Group
    best: Group
    best_step: int
    curve: tuple[tuple[int, float], ...]
    resumed: tuple[int, ...]


def save(folder: Path, state: State) -> None:
    """Keep a state, and drop those before it."""
    whole = folder / f"step-{state.step:08}"
    partial = whole.with_suffix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    groups = {name: getattr(state, name) for name in ("values", "first", "second")}
    if state.best_step != state.step:
        groups["best"] = state.best
    tensors = {f"{group}/{name}": t for group, of in groups.items() for name, t in of.items()}
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
    numbers = {name: getattr(state, name) for name in ("step", "best_step", "curve", "resumed")}
    (partial / NUMBERS).write_text(json.dumps(numbers), "utf-8")
    partial.rename(whole)
    for other in _states(folder):
        if other != whole:
            shutil.rmtree(other)


def load(folder: Path) -> State | None:
    """The last state that is whole; None where there is none."""
    known = _states(folder)
    if not known:
        return None
    tensors: Mapping[str, Tensor] = load_file(known[-1] / TENSORS)
    numbers = json.loads((known[-1] / NUMBERS).read_text("utf-8"))

    def group(name: str) -> Group:
        start = f"{name}/"
        return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}

    values = group("values")
    return State(
        step=numbers["step"],
        values=values,
        first=group("first"),
        second=group("second"),
        best=values if numbers["best_step"] == numbers["step"] else group("best"),
        best_step=numbers["best_step"],
        curve=tuple((step, loss) for step, loss in numbers["curve"]),
        resumed=tuple(numbers["resumed"]),
    )


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != PARTIAL)
