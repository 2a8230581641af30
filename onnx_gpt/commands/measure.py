"""``onnx-gpt measure``: how fast this machine is, as a table that plan reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.staging import require_absent, write_file
from onnx_gpt.commands._show import print_json, print_table, progress_bar
from onnx_gpt.planning.browser import write_decoders
from onnx_gpt.planning.device import Device, toml_text
from onnx_gpt.planning.measuring import measure as measured


def measure(
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    name: str | None = None,
    target: str | None = None,
    times: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Time small decoders with random weights in every format on this machine; minutes, and nothing else should run.

    A browser is measured in three steps: --target writes the decoders for it, measure.html of samples/web times them
    there, and --times makes a table of what it found.

    Parameters
    ----------
    out
        .toml file to write: onnx-gpt plan --device FILE.toml reads it. With --target, the folder of decoders.
    name
        What the device is called there; the file's name by default.
    target
        Write the decoders as bundles of a target, web:q8, and time nothing.
    times
        times.json that a browser has saved, instead of timing this machine.
    json
        Print JSON.
    """
    if target is not None:
        _write(target, out, name, times, json)
        return 0
    if out.suffix != ".toml":
        raise OnnxGptError(
            "measure-usage",
            f"onnx-gpt plan reads a device from a .toml file, and {str(out)!r} is none",
            "name it, -o mine.toml say",
            exit=Exit.USAGE,
        )
    require_absent(out)
    with progress_bar() as bar:
        device = measured(name or out.stem, times=times, progress=bar)
    write_file(out, toml_text(device))
    if json:
        print_json(device.model_dump(exclude_none=True))
    else:
        _show(device)
    return 0


def _write(target: str, out: Path, name: str | None, times: Path | None, json: bool) -> None:
    if name is not None or times is not None:
        raise OnnxGptError(
            "measure-usage",
            "--target writes decoders that are timed elsewhere: there is no table yet that --name or --times are about",
            "give them when the times are there, without --target",
            exit=Exit.USAGE,
        )
    with progress_bar() as bar:
        asked = write_decoders(target, out, progress=bar)
    if json:
        print_json(asked)
    else:
        print(
            f"python samples/web/serve.py {out}, then open /measure.html there, and give what it saves to --times"
        )


def _show(device: Device) -> None:
    assert device.measured is not None
    print_table(
        ("format", "step: ps a weight", "µs a layer", "prompt: ps a weight", "memory, of the file"),
        [
            (
                form,
                f"{t.step.weight * 1e3:.0f}",
                f"{t.step.layer / 1e3:.1f}",
                f"{t.prompt.weight * 1e3:.1f}",
                "–" if t.memory is None else f"{t.memory:.2f}",
            )
            for form, t in device.measured.formats.items()
        ],
    )
    print(f"{device.measured.on}; what was timed is met within {100 * device.measured.misfit:.0f} %")
