"""``onnx-gpt measure``: how fast this machine is, as a table that plan reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.commands._show import print_json, print_table, progress_bar
from onnx_gpt.planning.device import toml_text
from onnx_gpt.planning.timing import measure as timed


def measure(
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    name: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Time small decoders with random weights in every format on this machine; minutes, and nothing else should run.

    Parameters
    ----------
    out
        .toml file to write: onnx-gpt plan --device FILE.toml reads it.
    name
        What the device is called there; the file's name by default.
    json
        Print JSON.
    """
    if out.exists():
        raise OnnxGptError("output-exists", f"{out} exists", "choose another name", exit=Exit.EXISTS)
    with progress_bar() as bar:
        device = timed(name or out.stem, progress=bar)
    out.write_text(toml_text(device), "utf-8")
    if json:
        print_json(device.model_dump(exclude_none=True))
        return 0
    assert device.measured is not None
    print_table(
        ("format", "step: ps a weight", "µs a layer", "prompt: ps a weight", "memory, of the file"),
        [
            (
                form,
                f"{t.step.weight * 1e3:.0f}",
                f"{t.step.layer / 1e3:.1f}",
                f"{t.prompt.weight * 1e3:.1f}",
                f"{t.memory:.2f}",
            )
            for form, t in device.measured.formats.items()
        ],
    )
    print(f"{device.measured.on}; what was timed is met within {100 * device.measured.misfit:.0f} %")
    return 0
