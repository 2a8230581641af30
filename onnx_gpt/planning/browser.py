"""Times decoders where Python does not run: they are written as bundles, and a page times them in a browser.

``decoders.json``, beside the bundles, is what `write_decoders` asks for; ``times.json`` is what the page of
``samples/web`` answers, seconds by model, decoder, and tokens before the step or of the prompt:

    {"on": "Chrome 150, onnxruntime-web 1.31, 2 threads",
     "times": {"web:q8": {"wide": {"step": {"64": 0.02, "512": 0.03}, "prompt": {"256": 0.7, "768": 2.4}}, …}}}

A model of a target has its own passes and its own mixture of formats, so that its weights are one format here, called
as the model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError, unsupported
from onnx_gpt.bundle.decoder_facts import decoder_facts
from onnx_gpt.bundle.plan import Build, Plan, plan
from onnx_gpt.bundle.staging import scratch, staged
from onnx_gpt.bundle.targets import BundleFacts, json_bytes
from onnx_gpt.bundle.writing import place, save
from onnx_gpt.planning import decoders
from onnx_gpt.planning.decoders import CONTEXTS, LENGTHS, PROMPTS, STEPS, Sample
from onnx_gpt.planning.work import graph_of, quantized, work_of
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe import Recipe

PAGE, ASKED = "web", "decoders.json"
"""The target whose bundles the page runs, and the file that tells it what to time."""

Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Timed(_Frozen):
    """Of one decoder: steps by tokens before them, prompts by their tokens."""

    step: Mapping[int, Seconds]
    prompt: Mapping[int, Seconds]


class Times(_Frozen):
    """``times.json``: which browser, with how many threads, and what it found."""

    on: str = pydantic.Field(min_length=1)
    times: Mapping[str, Mapping[str, Timed]]


def write_decoders(target: str, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write the decoders of random weights as bundles of a target, a folder each, and what is to be timed of them.

    Args:
        target: ``web:q8``, or several models of it, ``web:fp32+q4``.

    Returns:
        What is in decoders.json.

    Raises:
        OnnxGptError: ``target-unknown`` (exit 2); ``target-unsupported`` (exit 3) for a model that the page does not
            run, or that is not made without calibration text; what `onnx_gpt.bundle.staging.staged` raises.
    """
    wanted, progress = plan(Recipe(targets=(target,))), progress or Silent()
    names = [build.name for build in wanted.builds]
    if not set(names) <= _timeable().keys():
        raise unsupported(
            "target-unsupported",
            f"no browser is asked for times of {', '.join(name for name in names if name not in _timeable())}",
            f"use some of {', '.join(_timeable())}; without --target this machine is timed",
        )
    with staged(out) as stage:
        for shape, opened in decoders.decoders():
            progress.stage(shape)
            _write(wanted, opened, stage / shape, progress)
        asked: dict[str, Any] = {
            "models": names,
            "decoders": list(decoders.SHAPES),
            "step": CONTEXTS,
            "prompt": LENGTHS,
            "steps": STEPS,
            "prompts": PROMPTS,
        }
        (stage / ASKED).write_bytes(json_bytes(asked))
    return asked


def _timeable() -> dict[str, Build]:
    """Models that the page can time, by name. Those in float16 are made on calibration text, and there is none here."""
    return {build.name: build for build in plan(Recipe(targets=(PAGE,))).builds if not build.recipe.is_half}


def _write(wanted: Plan, opened: Checkpoint, folder: Path, progress: Progress) -> None:
    """A bundle without a tokenizer: prompts are token ids."""
    (target,), counts = wanted.targets, {}
    for model, build in zip(target.models, wanted.builds, strict=True):
        exported = (graph := graph_of(opened, build, turned=False)).exported
        with scratch(folder) as written:
            written.mkdir()
            save(quantized(graph, build), written, progress)
            counts[model.path] = place(written, model, folder, move=True)
    decoder = decoder_facts(exported.model, exported.vocab_size, exported.context_length)
    for name, content in target.files(BundleFacts(decoder, opened.config, {}, counts)).items():
        (folder / name).write_bytes(content)


def read_times(path: Path) -> tuple[str, dict[str, list[Sample]]]:
    """What a browser found: what it is, and the samples of each model, ``web:q8`` say.

    Raises:
        OnnxGptError: ``times-invalid`` (exit 2).
    """
    try:
        found = Times.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise _invalid_times(path, str(error)) from error
    builds = _timeable()
    if not found.times or not found.times.keys() <= builds.keys():
        raise _invalid_times(path, f"it has times of {', '.join(found.times) or 'no model'}")
    asked = {shape: (set(CONTEXTS), set(LENGTHS)) for shape in decoders.SHAPES}
    for name, timed in found.times.items():
        given = {shape: (set(one.step), set(one.prompt)) for shape, one in timed.items()}
        if given != asked:
            raise _invalid_times(
                path, f"of {name} it has steps and prompts of {given}, {asked} were asked for"
            )
    return found.on, {name: _samples(builds[name], timed) for name, timed in found.times.items()}


def _samples(build: Build, timed: Mapping[str, Timed]) -> list[Sample]:
    works = {
        shape: work_of(graph_of(opened, build, turned=False), build).of_model(build.name)
        for shape, opened in decoders.decoders()
    }
    return [Sample(work, timed[shape].step, timed[shape].prompt) for shape, work in works.items()]


def _invalid_times(path: Path, why: str) -> OnnxGptError:
    return OnnxGptError(
        "times-invalid",
        f"{path} is not what a browser found of the decoders: {why}",
        "save it on measure.html of samples/web, which times what `onnx-gpt measure --target web:q8 -o FOLDER` wrote",
        exit=Exit.USAGE,
    )
