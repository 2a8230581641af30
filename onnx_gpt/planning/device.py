"""Devices: what runs there, and how fast, where somebody has measured it.

A device is a .toml file in ``devices/``, found because it exists, or one of a user's own that `onnx-gpt measure` has
written. Times are nanoseconds, fitted to whole decoders (`onnx_gpt.planning.measuring`):

    a step after C tokens         Σ weight[format] · weights  +  layer · layers  +  attended · C · Σ heads · head_dim
    a prompt of S tokens, a token the same with prompt's figures, C the keys of its piece; the head runs once

A browser's runtime copies the whole cache at each step: there ``attended`` of a step is of bytes of it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pydantic
import tomli_w

from exporter.errors import Exit, OnnxGptError

FOLDER = Path(__file__).parent / "devices"


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Cost(_Frozen):
    """Nanoseconds of one token: for each weight that it is multiplied by, each layer, each number of queries · keys."""

    weight: float = pydantic.Field(ge=0)
    layer: float = pydantic.Field(ge=0)
    attended: float = pydantic.Field(ge=0)


class Timing(_Frozen):
    """Of one format of weights.

    Attributes:
        step: of a decode step.
        prompt: of a token of a prompt.
        memory: bytes of the process for each byte of the file; None where nobody could tell, as in a browser.
    """

    step: Cost
    prompt: Cost
    memory: float | None = pydantic.Field(default=None, gt=0)


class Measured(_Frozen):
    """What was measured.

    Attributes:
        on: machine, threads, runtime.
        by: the command.
        misfit: of the fit, the largest relative error on the decoders that were timed.
        base: bytes of a process before it has a model; None likewise.
        formats: by name: ``float32``, ``4/32`` (bits/block), ``w8a8``, ``dynamic8``; a target's model, ``web:q8``,
            where its weights are its own.
    """

    on: str
    by: str
    misfit: float = pydantic.Field(ge=0)
    base: float | None = pydantic.Field(default=None, ge=0)
    formats: Mapping[str, Timing]


class Device(_Frozen):
    """One kind of device.

    Attributes:
        title: in words.
        targets: bundle targets that run there, the best first.
        schemes: quantizations that its runtime runs well, of those that targets leave open.
        measured: None where nobody has measured it.
        measure: what to run there to change that.
    """

    name: str
    title: str
    targets: tuple[str, ...]
    schemes: tuple[str, ...]
    measure: str
    measured: Measured | None = None


def devices() -> dict[str, Device]:
    """The devices that come with the package, by name."""
    return {device.name: device for device in map(read, sorted(FOLDER.glob("*.toml")))}


def device_of(name: str) -> Device:
    """A device by its name, or from a .toml file.

    Raises:
        OnnxGptError: ``device-unknown``, ``device-invalid`` (exit 2).
    """
    known = devices()
    if name in known:
        return known[name]
    if name.endswith(".toml"):
        return read(Path(name))
    raise OnnxGptError(
        "device-unknown",
        f"there is no device {name!r}",
        f"use one of {', '.join(known)}, or a .toml file that `onnx-gpt measure` has written",
        exit=Exit.USAGE,
    )


def read(path: Path) -> Device:
    """A device from a file.

    Raises:
        OnnxGptError: ``device-invalid`` (exit 2).
    """
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
        return Device.model_validate_json(json.dumps(document))
    except (
        OSError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # tomllib's and pydantic's are ValueErrors
        raise OnnxGptError(
            "device-invalid",
            f"{path} is no description of a device: {error}",
            "write one with `onnx-gpt measure -o FILE.toml`",
            exit=Exit.USAGE,
        ) from error


def toml_text(device: Device) -> str:
    """The text of a device's file; `read` gives the same back."""
    return tomli_w.dumps(device.model_dump(exclude_none=True))
