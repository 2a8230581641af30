"""Bundle targets. A target is a file here, found because it exists; it holds one value, ``TARGET``.

A target says which models a runtime wants (`ModelFile`: passes, weights, names), what that runtime runs, and which
small files it wants beside them. What several targets want alike is built and proven once (`onnx_gpt.bundle.plan`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter.discovery import modules_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.decoder_facts import DecoderFacts
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.token_ids import ids_of, stated


@dataclasses.dataclass(frozen=True)
class BundleFacts:
    """What a target may need to know of the model.

    Attributes:
        decoder: None for a graph without a cache.
        config: keys of ``config.json``.
        files: tokenizer and generation files, by name.
        data_files: how many files hold each model's weights, by the model's path in the bundle.
    """

    decoder: DecoderFacts | None
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    data_files: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def common_files(self) -> dict[str, bytes]:
        """config.json, tokenizer and generation files, as every runtime wants them."""
        return {"config.json": json_bytes(self.config), **self.files}

    def token_ids(self, key: str) -> list[int]:
        """The ids stated for ``eos_token_id`` and the like.

        What is no number is none: files of others are repaired with it. A source's are checked before.
        """
        generation = json.loads(self.files.get("generation_config.json", b"{}"))
        return ids_of(stated(key, generation, self.config))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON file of a bundle."""
    return json.dumps(dict(value), indent=2, ensure_ascii=False).encode() + b"\n"


@dataclasses.dataclass(frozen=True)
class Weights:
    """How one model of a target wants its weights, whatever the job asks for. Fields are those of `Recipe`."""

    quantize: str
    block_size: int | None = None
    table_bits: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """One model of a target.

    Attributes:
        name: by which a user asks for it alone: ``web:q4``.
        path: of the ``.onnx`` file in the bundle.
        pipeline: passes that lower the canonical graph to what the runtime runs fastest.
        runtime: what it is made for.
        weights: None where they are as the job asks.
        data_suffix: of the name of a file of weights, after ``path``; those after the first end in ``_1``, ``_2`` …
        data_limit: bytes of one file of weights, at most; None for no limit.
        opened: the file that the runtime opens, where `Target.finish` makes another out of ``path``.
    """

    name: str
    path: str
    pipeline: str
    runtime: Runtime
    weights: Weights | None = None
    data_suffix: str = ".data"
    data_limit: int | None = None
    opened: str | None = None

    def data_name(self, i: int) -> str:
        """Name of the i-th file of weights, which lies beside ``path``."""
        return data_name(Path(self.path).name, self.data_suffix, i)


def data_name(model: str, suffix: str, i: int) -> str:
    """Name of the i-th file of weights of a model file: ``model.onnx_data``, ``model.onnx_data_1`` …"""
    return f"{model}{suffix}{f'_{i}' if i else ''}"


@dataclasses.dataclass(frozen=True)
class Target:
    """One runtime's bundle.

    Attributes:
        name: that of its file here, words joined by hyphens, and of its folder where a job has several.
        models: all that the target offers, the first being the one that a report's head speaks of.
        files: small files by their path in the bundle.
        finish: called with the folder when everything else lies in it, to turn it into what the runtime opens. The
            models have passed parity before; those with ``opened`` are compared with what they were made of after.
    """

    name: str
    models: tuple[ModelFile, ...]
    files: Callable[[BundleFacts], Mapping[str, bytes]]
    finish: Callable[[Path], None] | None = None


@functools.cache
def targets() -> Mapping[str, Target]:
    """Targets by name."""
    return {module.TARGET.name: module.TARGET for module in modules_of(__name__).values()}


def target(name: str) -> Target:
    """A target by name.

    Raises:
        OnnxGptError: ``target-unknown`` (exit 2).
    """
    if name not in targets():
        raise OnnxGptError(
            "target-unknown",
            f"there is no target {name!r}",
            f"use one of {', '.join(targets())}",
            exit=Exit.USAGE,
        )
    return targets()[name]


def chosen(asked: str) -> Target:
    """A target with the models that are asked for: ``web`` with all of them, ``web:q8+q4`` with two.

    Raises:
        OnnxGptError: ``target-unknown`` (exit 2).
    """
    name, _, some = asked.partition(":")
    whole = target(name)
    if not some:
        return whole
    offered = {model.name: model for model in whole.models}
    for model in some.split("+"):
        if model not in offered:
            raise OnnxGptError(
                "target-unknown",
                f"target {name!r} has no model {model!r}",
                f"use some of {', '.join(offered)}, as in {name}:{'+'.join(list(offered)[:2])}",
                exit=Exit.USAGE,
            )
    return dataclasses.replace(
        whole, models=tuple(model for model in whole.models if model.name in some.split("+"))
    )
