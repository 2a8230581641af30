"""``onnx-gpt bisect``: the first pass, firing and piece where a model goes wrong; or where two models part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bisecting.aligning import KINDS
from onnx_gpt.bisecting.bisection import Bisection
from onnx_gpt.bisecting.bisection import bisect as bisect_pipeline
from onnx_gpt.bisecting.drawing import colour
from onnx_gpt.bisecting.parting import DistanceFacts, Parting, compare_layers
from onnx_gpt.commands._flags import ContextLength, Json, OptionalOut, Passes, Target
from onnx_gpt.commands._show import print_table, progress_bar


def bisect(
    source: str,
    /,
    *,
    against: str | None = None,
    out: OptionalOut = None,
    quantize: str = "none",
    target: Target = "ort",
    passes: Passes = None,
    calibration: Path | None = None,
    context_length: ContextLength = None,
    text: Path | None = None,
    json: Json = False,
) -> int:
    """Find the first pass after which a decoder gives something else, the firing in it and the smallest wrong piece.

    Prompts, chunks, steps after a cache, padded batches and last logits are compared with the source's own graph in
    float64; what its float32 run is off by is noise. Exit status 5 where something is wrong.

    With --against two finished models are compared instead, point by point: where they part first, which is wrong
    unless one is quantized, and for every layer how much error enters, to what it grows, and what it costs.

    Parameters
    ----------
    source
        Anything that optimize takes, but a module; with --against a bundle or any .onnx too.
    against
        The model that it should be: a source, a bundle or an .onnx.
    out
        Folder to make. For a wrong piece: both sides as models, inputs, and repro.py, which needs numpy and
        onnxruntime alone. With --against: table.json and heat.svg.
    quantize
        none, int8, int4, w8a8 or keep: judge what quantization makes of each weight, too.
    calibration
        Text that codes or ranges are chosen on, as of optimize.
    text
        UTF-8 file whose first tokens are run.
    """
    settings = (quantize, target, passes, calibration, context_length)
    if against is not None and settings != ("none", "ort", None, None, None):
        raise OnnxGptError(
            "bisect-option",
            "--against compares two finished models, and settings of a job are given too",
            "leave --quantize, --target, --passes, --calibration and --context-length out",
            exit=Exit.USAGE,
        )
    with progress_bar() as bar:
        found: Bisection | Parting
        if against is not None:
            found = compare_layers(source, against, out=out, text=text, progress=bar)
        else:
            found = bisect_pipeline(
                source,
                out=out,
                passes=passes,
                target=target,
                quantize=quantize,
                calibration=calibration,
                context_length=context_length,
                text=text,
                progress=bar,
            )
    if json:
        print(found.model_dump_json(indent=2, by_alias=True))
    elif isinstance(found, Parting):
        show_parting(found)
    else:
        show(found)
    if isinstance(found, Parting):
        return Exit.PARITY if found.first and not found.lossy else Exit.DONE
    return Exit.PARITY if found.wrong else Exit.DONE


def show(found: Bisection) -> None:
    """Stages as a table, then what is wrong."""
    rows = [
        (
            stage.name,
            stage.verdict,
            "" if stage.error is None else f"{stage.error:.2g}",
            stage.case,
            stage.firings or "",
        )
        for stage in found.stages
    ]
    print_table(("stage", "verdict", "largest error", "in", "firings"), rows, found.source)
    print(
        f"\nnoise {found.noise:.2g} of the largest logit ({found.measured}), wrong above {found.tolerance:.2g}"
    )
    wrong, piece = found.wrong, found.found
    if wrong is None:
        print("every stage is right")
        return
    if piece is None:
        reason = f": {wrong.why}" if wrong.why else ""
        print(f"✗ {wrong.name} is wrong, and no single piece of it{reason}")
        return
    where = f" (firing {piece.firing})" if piece.firing else ""
    print(f"✗ {wrong.name} is the first that is wrong, at {piece.place}{where}: {piece.why}")
    print(f"  in {piece.case}; with its values set right, the outputs are right again: {piece.explains}")
    for title, lines in (("before", piece.before), ("after", piece.after)):
        print(f"  {title}: " + "\n          ".join(lines))
    if piece.others:
        print(f"  also wrong: {', '.join(piece.others)}")
    if found.repro:
        print(f"  shown by: python {found.repro}/repro.py")


def show_parting(found: Parting) -> None:
    """Cases, the first point, and the heat map: a row a layer."""
    rows = [
        (name, "does not run" if error is None else f"{error:.2g}") for name, error in found.cases.items()
    ]
    print_table(("case", "largest error"), rows, f"{found.candidate} against {found.reference}")
    print(
        f"\nnoise {found.noise:.2g} of the largest logit ({found.measured}), apart above {found.tolerance:.2g}\n"
    )
    grid = Table(
        box=None, pad_edge=False, title="relative error that enters at each point", title_justify="left"
    )
    columns = ("", *(kind.replace("_", " ") for kind in KINDS), "grown", "cosine", "KL attention", "KL ffn")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="right" if i else "left")
    for name, points in _rows(found.table):
        end = next(reversed(points.values()))
        kls = [points[kind].kl if kind in points else None for kind in ("middle", "out")]
        grid.add_row(
            name,
            *(_cell(points[kind].enters if kind in points else None) for kind in KINDS),
            _cell(end.grown),
            f"{end.cosine:.4f}",
            *("" if kl is None else f"{kl:.2g}" for kl in kls),
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(grid)
    if found.first is None:
        print(f"\nthey do not part beyond noise{' but for what rounding weights does' if found.twin else ''}")
        return
    first = found.first
    mark = "they have to, being quantized, and" if found.lossy else "✗ they"
    print(
        f"\n{mark} part at {first.point} ({first.value}), in {first.case}, call {first.call + 1}: "
        f"{first.error:.2g} of the largest value, noise ends at {first.tolerance:.2g}"
    )
    if found.folder:
        print(f"  drawn in {found.folder}/heat.svg")


def _rows(table: tuple[DistanceFacts, ...]) -> Iterator[tuple[str, dict[str, DistanceFacts]]]:
    """Points of each layer under its number; points of none under their own name, in the last column but one."""
    rows: dict[str, dict[str, DistanceFacts]] = {}
    for point in table:
        name = point.point if point.layer is None else f"layer {point.layer}"
        rows.setdefault(name, {})["out" if point.layer is None else point.point] = point
    yield from rows.items()


def _cell(error: float | None) -> Text:
    if error is None:
        return Text("")
    return Text(f"{error:.2g}", style=f"black on {colour(error)}")
