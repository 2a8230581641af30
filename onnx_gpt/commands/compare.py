"""``onnx-gpt compare``: several models on one text, what each step has cost and gained, and a chart of all."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.staging import require_absent, write_file
from onnx_gpt.commands._flags import Json, OptionalOut, Switch, Text, Tokens
from onnx_gpt.commands._show import print_json, print_table, progress_bar
from onnx_gpt.comparing import Comparison, Variant
from onnx_gpt.comparing import compare as measured
from onnx_gpt.planning.chart import Point, svg


def compare(
    first: str,
    /,
    *others: str,
    out: OptionalOut = None,
    text: Text = None,
    tokens: Tokens = 2048,
    time: Switch = False,
    json: Json = False,
) -> int:
    """Compare models with the first, and each with the one that it was made from, on one text.

    A dense model, its pruned checkpoint, that one healed, and its bundle: the damage of every step, and what it gained.

    Parameters
    ----------
    first
        A checkpoint, a bundle or an .onnx file: what the others are compared with.
    others
        More of them, with the same vocabulary.
    out
        .svg file for a chart of size and KL.
    time
        Time decode steps too. Nothing else should run meanwhile.
    """
    if out is not None:
        _require_chart(out)
        require_absent(out)
    with progress_bar() as bar:
        found = measured(first, *others, text=text, tokens=tokens, time=time, progress=bar)
    if out is not None:
        points = [Point(one.name, one.bytes / 1e6, one.kl, one.front) for one in found.variants]
        write_file(out, svg(points, x="MB", y=f"mean KL from {first}, nats a token"))
    if json:
        print_json(found.json())
    else:
        _show(found)
    return 0


def _require_chart(out: Path) -> None:
    if out.suffix.lower() != ".svg":
        raise OnnxGptError(
            "compare-usage",
            f"the chart is an .svg file, and {str(out)!r} is none",
            "name it, -o chart.svg say",
            exit=Exit.USAGE,
        )


def _show(found: Comparison) -> None:
    whole = found.variants[0]
    columns = ("model", "MB", "M weights a token", "KL from the first", "log perplexity", "… of this step")
    timed = whole.decode is not None
    rows = [_row(one, whole, timed) for one in found.variants]
    print_table((*columns, *(["decode"] if timed else [])), rows)
    steps = [f"{one.name} from {one.parent}" for one in found.variants if one.parent]
    print(f"{found.tokens} tokens of {found.text}; * no other is both as small and as near to the first")
    print(f"steps: {', '.join(steps)}")


def _row(one: Variant, whole: Variant, timed: bool) -> tuple[str, ...]:
    decode = [] if one.decode is None or not timed else [f"{one.decode:.1f}"]
    return (
        f"{'* ' if one.front else ''}{one.name}",
        f"{one.bytes / 1e6:.2f} ({one.bytes / whole.bytes:.2f} ×)",
        f"{one.multiplications / 1e6:.2f} ({one.multiplications / max(whole.multiplications, 1):.2f} ×)",
        f"{one.kl:.3g} ± {one.kl_error:.1g}",
        f"{one.log_perplexity:.4f}",
        "" if one.parent is None else f"{one.step:+.4f}",
        *decode,
    )
