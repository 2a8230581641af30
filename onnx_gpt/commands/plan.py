"""``onnx-gpt plan``: how to make a model smaller for a device, and what each way would come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onnx_gpt.commands._show import print_json, print_table, progress_bar
from onnx_gpt.planning.candidates import Candidate
from onnx_gpt.planning.planner import Plan
from onnx_gpt.planning.planner import plan as propose
from onnx_gpt.planning.prediction import CONTEXT, Estimate


def plan(
    source: str,
    /,
    *,
    device: str,
    budget: str = "",
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    probe: Annotated[bool, Parameter(negative="")] = False,
    work: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Propose how to make a model smaller for a device: steps, format and target, from what has been measured.

    Size is counted; speed and memory are those of the device's table, damage that of other models, unless --probe
    measures this one. Every figure says what it rests on, and the bundle's report.json what came of it.

    Parameters
    ----------
    source
        Anything that optimize takes.
    device
        cpu-avx2, cpu-vnni, arm, wasm, webgpu, or a .toml file that onnx-gpt measure has written.
    budget
        Limits: "size=90MB,decode=100,kl=0.1". The way nearest to the model keeps them; with kl, the smallest.
    out
        Where to write the recipe that optimize --recipe runs.
    probe
        Measure on this model what rounding does to it: seconds for a small one, minutes for a large one.
    work
        Folder that a probe's measurements are kept in; one in the user's cache by default.
    json
        Print JSON.
    """
    with progress_bar() as bar:
        found = propose(source, device=device, budget=budget, out=out, probe=probe, work=work, progress=bar)
    if json:
        print_json(found.json())
    else:
        _show(found)
    return 0


def _show(found: Plan) -> None:
    """Ways of the front and those that need no other checkpoint; the rest is counted."""
    shown = [
        one for one in found.candidates if one.front or not one.predicted.before or one.verdict == "chosen"
    ]
    timed = found.device.measured is not None
    speeds = (f"decode at {CONTEXT}", f"prompt of {CONTEXT}", "memory, MB") if timed else ()
    columns = ("way", "MB", "mean KL (range)", *speeds, "verdict")
    rows = [_row(one, timed) for one in shown]
    print_table(columns, rows, f"{found.source} for {found.device.title}", figures=False)
    print("* no other way is both smaller and nearer to the model")
    rest = len(found.candidates) - len(shown)
    if rest:
        print(
            f"{rest} more ways, with structures taken out, are beaten in size and KL by some of these: --json has them"
        )
    for name, why in found.refused.items():
        print(f"not proposed: {name}: {why}")
    chosen = found.chosen.predicted
    speed = found.device.measured
    print(f"\nchosen: {found.chosen.name}")
    print(f"  KL: {chosen.kl.basis}")
    print(
        f"  speed: {f'measured on {speed.on}, by {speed.by}' if speed else f'not measured: {found.device.measure}'}"
    )
    for command in found.commands:
        print(f"  $ {command}")


def _row(one: Candidate, timed: bool) -> tuple[str, ...]:
    wanted = one.predicted
    kl = f"{wanted.kl.value:.2g} ({wanted.kl.low:.1g}–{wanted.kl.high:.1g})"
    figures = (_figure(wanted.decode), _figure(wanted.prompt), _figure(wanted.memory, 1e-6)) if timed else ()
    return (
        f"{'* ' if one.front else ''}{one.name}",
        f"{wanted.size.value / 1e6:.1f}",
        kl,
        *figures,
        one.verdict,
    )


def _figure(estimate: Estimate | None, scale: float = 1.0) -> str:
    return "–" if estimate is None else f"{estimate.value * scale:.0f}"
