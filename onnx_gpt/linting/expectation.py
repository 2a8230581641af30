"""What a runtime expects of a folder, as one frozen value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

import onnx_ir as ir

from exporter.discovery import modules_of
from exporter.errors import Exit, OnnxGptError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Expectation:
    """One runtime, and what was read in its sources or measured with it.

    Attributes:
        runtime: its name, and the version that the facts are of.
        model_folder: where the model files must lie, relative to the folder; empty for the folder itself.
        model_names: names that the runtime looks for; empty where it is told the name.
        inputs: names of inputs that it feeds, beside the cache; without a default, others are never fed.
        integers: types in which it feeds tokens and mask.
        needs_cache: whether it runs decoders with a key/value cache only.
        feeds_optional: whether it also feeds inputs that have a default.
        batch_symbol: what dim 0 of the caches must be called; empty where the name is of no account.
        literal_cache: whether kv heads and head dim must be integers in the graph.
        opset: newest version of the standard operators that it loads.
        ir_version: newest version of the file format that it loads.
        contrib: operators of com.microsoft that it has; None where it is onnxruntime, which the lint of cliffs knows.
        cliffs: whether what is slow on onnxruntime's CPU kernels is slow here.
        left_pads: whether it puts padding before the shorter rows of a batch.
        data_suffix: what names of files of weights have after that of the model file; None where any name will do.
        data_limit: bytes that a file of weights may have; None for no limit.
        data_files: files of weights that a model may have.
        needs: files without which it does not load.
        wants: files without which it loads, but has no text or no end.
        template: ``inline`` where chat templates are read out of tokenizer_config.json only, ``any`` where a
            chat_template.jinja will do too, ``none`` where the runtime applies none.
        config: the file that describes the model to it: ``config.json``, ``genai_config.json``, or none.
    """

    runtime: str
    model_folder: str = ""
    model_names: tuple[str, ...] = ()
    inputs: frozenset[str] = frozenset({"input_ids", "attention_mask", "position_ids"})
    integers: tuple[ir.DataType, ...] = (ir.DataType.INT64,)
    needs_cache: bool = False
    feeds_optional: bool = True
    batch_symbol: str = ""
    literal_cache: bool = False
    opset: int = 26
    ir_version: int = 13
    contrib: frozenset[str] | None = None
    cliffs: bool = True
    left_pads: bool = False
    data_suffix: str | None = None
    data_limit: int | None = None
    data_files: int | None = None
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    template: Literal["inline", "any", "none"] = "any"
    config: str = ""

    def place(self, name: str) -> str:
        """Path of a model file of this name in the folder."""
        return str(PurePosixPath(self.model_folder) / name)


@functools.cache
def expectations() -> Mapping[str, Expectation]:
    """Expectations by target."""
    return {name: module.EXPECTATION for name, module in modules_of("onnx_gpt.linting.runtimes").items()}


def expectation(target: str) -> Expectation:
    """What a target's runtime expects.

    Raises:
        OnnxGptError: ``target-unknown`` (exit 2).
    """
    if target not in expectations():
        raise OnnxGptError(
            "target-unknown",
            f"nobody here knows what {target!r} expects of a folder",
            f"use one of {', '.join(expectations())}",
            exit=Exit.USAGE,
        )
    return expectations()[target]
