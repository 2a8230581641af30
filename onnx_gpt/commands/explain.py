"""``onnx-gpt explain``: which fusions are there, layer by layer, and why the others are not."""

from __future__ import annotations

from graph_passes.explaining.fusions import Part
from onnx_gpt.commands._flags import ContextLength, Json, Passes, Target
from onnx_gpt.commands._show import print_json, print_table
from onnx_gpt.explanation import Explanation, reasons, require_fused, span
from onnx_gpt.explanation import explain as explanation_of

COLUMNS = ("attention", "rotary", "qkv", "norm", "skip_norm", "activation", "gate_up")


def explain(
    source: str,
    /,
    *,
    expect: bool | None = None,
    target: Target = "ort",
    context_length: ContextLength = None,
    passes: Passes = None,
    json: Json = False,
) -> int:
    """Run the passes that optimize would run, and say for every layer which fusion fired and which did not, and why.

    Nothing is written and no weight is read. For a missing fusion: the rule that came nearest, the node where it
    stopped and the condition that failed there.

    Parameters
    ----------
    source
        Anything that optimize takes.
    expect
        Fail with exit status 3 where a fusion is missing. On for known families and for graphs with an attention.
    """
    found = explanation_of(source, target=target, context_length=context_length, passes=passes)
    if json:
        print_json(found.json())
    else:
        _show(found)
    if found.expected if expect is None else expect:
        require_fused(found, told=not json)
    return 0


def _show(found: Explanation) -> None:
    """Layers that are alike are one line."""
    alike: list[tuple[list[int], tuple[str, ...]]] = []
    for i, parts in enumerate(found.layers):
        cells = _cells(parts)
        if alike and alike[-1][1] == cells:
            alike[-1][0].append(i)
        else:
            alike.append(([i], cells))
    shown = [i for i in range(len(COLUMNS)) if any(cells[i] for _, cells in alike)]
    header = [COLUMNS[i].replace("_", " ") for i in shown]
    rows = [(span(layers), *(cells[i] for i in shown)) for layers, cells in alike]
    print(f"{found.source} ({found.family}), {found.nodes} nodes after: {found.pipeline}\n")
    if rows:
        print_table(("", *header), rows, figures=False)
    ends = [f"{part.part} {_form(part)}" for part in found.others]
    if ends:
        print("of no layer: " + ", ".join(ends))
    for line in reasons(found):
        print(f"✗ {line}")


def _cells(parts: tuple[Part, ...]) -> tuple[str, ...]:
    return tuple(_cell([part for part in parts if part.part == column]) for column in COLUMNS)


def _cell(parts: list[Part]) -> str:
    if parts and parts[0].part == "norm":
        missing = sum(part.reason is not None for part in parts)
        return f"{len(parts)}" + (f", {missing} ✗" if missing else "")
    return ", ".join(dict.fromkeys(map(_form, parts)))


def _form(part: Part) -> str:
    return part.form if part.reason is None else f"✗ {part.form}"
