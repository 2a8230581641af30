"""``onnx-gpt sensitivity``: what each unit of weights costs the model in each format."""

from __future__ import annotations

from pathlib import Path

from onnx_gpt.commands._flags import Json, Target, Work
from onnx_gpt.commands._show import print_json, print_table, progress_bar
from onnx_gpt.searching.sensitivities import OPTIONS, Method
from onnx_gpt.searching.sensitivities import sensitivity as measure


def sensitivity(
    source: str,
    /,
    *,
    options: str = OPTIONS,
    method: Method = "rtn",
    calibration: Path | None = None,
    target: Target = "ort",
    work: Work = None,
    json: Json = False,
) -> int:
    """Measure the KL from the float model with one unit of weights at a time in another format, all else float.

    Query, key and value of a layer are one unit, so are gate and up; every other linear map is one, and the table.
    What has been measured is kept: a run that was stopped goes on where it was.

    Parameters
    ----------
    source
        Anything that optimize takes.
    options
        Formats to compare, BITS/BLOCK, with others for some parts of a unit: "4/64,8/64,4/64+v=8/64".
    method
        How codes are chosen. rtn: round to nearest. gptq: on calibration text, slower and nearer to what optimize does.
    calibration
        Text that is measured: .txt, .jsonl, .parquet, .npy, a folder. Python's documentation by default.
    """
    with progress_bar() as bar:
        found = measure(
            source,
            options=options,
            method=method,
            calibration=calibration,
            target=target,
            work=work,
            progress=bar,
        )
    if json:
        print_json(found.json())
        return 0
    formats = list(dict.fromkeys(option for own in found.losses.values() for option in own))
    rows = [
        (unit.name, *(_cell(found.losses[unit.name].get(option)) for option in formats))
        for unit in found.units
    ]
    print_table(("mean KL, nats a token", *map(str, formats)), rows)
    print(f"{found.tokens} tokens, {found.method}; sums of small ones add up, of large ones they do not")
    return 0


def _cell(kl: float | None) -> str:
    return "–" if kl is None else f"{kl:.2g}"
