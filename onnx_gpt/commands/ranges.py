"""``onnx-gpt ranges``: how large values get on text, and what float16 and 8 bits would make of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from calibration.ranges import Ranges
from onnx_gpt.commands._flags import ContextLength, Json, Target
from onnx_gpt.commands._show import print_json, print_table, progress_bar
from onnx_gpt.ranging import WINDOWS
from onnx_gpt.ranging import ranges as ranges_of

SCHEMA = "onnx-gpt/ranges/1"
SHOWN = 12
"""Edges, and norms, that a table shows."""


def ranges(
    source: str,
    /,
    *,
    text: Path | None = None,
    windows: int = WINDOWS,
    target: Target = "ort",
    context_length: ContextLength = None,
    json: Json = False,
) -> int:
    """Run the fused float graph on text: the largest |x| of every value, headroom in float16, error on 8 bits, norms.

    Parameters
    ----------
    source
        Anything that optimize takes, but a module or a quantized graph.
    text
        File or folder of text; Python's own documentation by default.
    windows
        Windows of 512 tokens to run.
    """
    with progress_bar() as bar:
        found = ranges_of(
            source, text=text, windows=windows, target=target, context_length=context_length, progress=bar
        )
    if json:
        print_json({"schema": SCHEMA, "source": source, **dataclasses.asdict(found)})
    else:
        show(found, source)
    return 0


def show(found: Ranges, source: str) -> None:
    """The largest edges, the norms nearest to trouble, and what does not fit."""
    largest = sorted(found.edges, key=lambda edge: -edge.range.largest)[:SHOWN]
    rows = [
        (
            edge.name,
            edge.op_type,
            f"{edge.range.largest:.4g}",
            f"{edge.range.rms:.3g}",
            f"{edge.range.half_headroom:.3g}×",
            f"{edge.range.half_error:.1e}",
            f"{edge.range.int8_error:.2g}",
            f"{100 * edge.range.int8_zeroed:.1f} %",
        )
        for edge in largest
    ]
    columns = ("value", "op", "largest", "rms", "fp16 room", "fp16 error", "int8 error", "zeroed")
    print_table(columns, rows, f"{source}: largest of {len(found.edges)} values on {found.tokens} tokens")
    print()
    norms = sorted(found.norms, key=lambda norm: -norm.square)[:SHOWN]
    print_table(
        ("norm", "largest Σx²", "smallest mean x²", "epsilon", "Σx² > fp16", "ε decides", "x² = 0 in fp16"),
        [
            (
                norm.role,
                f"{norm.square:.3g}",
                f"{norm.mean_square:.2g}",
                f"{norm.epsilon:g}",
                *(f"{100 * share:.2g} %" for share in (norm.overflowing, norm.dominated, norm.absorbed)),
            )
            for norm in norms
        ],
        f"what norms read, largest of {len(found.norms)}",
    )
    print()
    over = found.beyond_half()
    print(f"beyond float16: {', '.join(edge.name for edge in over) or 'nothing'}")
    if found.not_finite:
        first = found.not_finite[0]
        print(
            f"✗ {first.name} ({first.role}) is the first of {len(found.not_finite)} values with NaN or infinity"
        )
    else:
        print("no value is NaN or infinite")
