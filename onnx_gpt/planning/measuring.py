"""Measures a device: decoders are timed, here or in a browser, and costs are fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.machine import this_machine
from onnx_gpt.planning.browser import read_times
from onnx_gpt.planning.device import Device, devices
from onnx_gpt.planning.fitting import table
from onnx_gpt.planning.timing import FORMATS, samples_here, this_runtime
from onnx_gpt.progress import Progress, Silent


def measure(
    name: str,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    times: Path | None = None,
    by: str = "",
    progress: Progress | None = None,
) -> Device:
    """Time this machine: minutes, and it should have nothing else to do. With ``times``, take those of a browser.

    Args:
        name: of the device; that of one that comes with the package gives this one with new figures.
        formats: names in `onnx_gpt.planning.timing.FORMATS`, of this machine.
        times: what measure.html of ``samples/web`` has saved of the decoders that
            `onnx_gpt.planning.browser.write_decoders` wrote.
        by: what the file says it was written by.

    Returns:
        The device, for `onnx_gpt.planning.device.toml_text`.

    Raises:
        OnnxGptError: ``times-invalid``; ``measure-usage`` where the named device runs nothing of what is timed. Both
            are exit 2.
    """
    if times is None:
        device = _named(_this_machine(name, formats))
        on, samples = this_runtime(), samples_here(formats, progress or Silent())
    else:
        on, samples = read_times(times)
        device = _named(_browser(name, on, tuple(samples)))
    measured = table(samples, on=on, by=by or f"onnx-gpt measure{' --times' if times else ''}")
    return device.model_copy(update={"measured": measured})


def _this_machine(name: str, formats: Sequence[str]) -> Device:
    return Device(
        name=name,
        title=f"this machine, {this_machine().cpu}",
        targets=("ort",),
        schemes=(*dict.fromkeys(str(FORMATS[form]["quantize"]) for form in formats), "keep"),
        measure="onnx-gpt measure -o FILE.toml",
    )


def _browser(name: str, on: str, targets: tuple[str, ...]) -> Device:
    return Device(
        name=name,
        title=f"a browser, {on}",
        targets=targets,
        schemes=(),
        measure=f"onnx-gpt measure --target {targets[0]} -o FOLDER",
    )


def _named(own: Device) -> Device:
    """The device that comes with the package where there is one of that name."""
    known = devices().get(own.name, own)
    if not set(known.targets) & set(own.targets):
        raise OnnxGptError(
            "measure-usage",
            f"{known.title} runs {', '.join(known.targets)}, and times of {', '.join(own.targets)} say nothing of it",
            known.measure,
            exit=Exit.USAGE,
        )
    return known
