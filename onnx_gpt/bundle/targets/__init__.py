"""Bundle targets. A target is a file here, found because it exists.

It offers ``PIPELINE`` (the passes that lower the canonical graph to what its runtime runs fastest) and
``files(facts) → name → bytes`` (what the runtime wants beside ``model.onnx`` and ``model.onnx.data``).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Protocol, cast

from exporter.discovery import modules_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.decoder_facts import DecoderFacts


@dataclasses.dataclass(frozen=True)
class BundleFacts:
    """What a target may need to know of the model.

    Attributes:
        decoder: None for a graph without a cache.
        config: keys of ``config.json``.
        files: tokenizer and generation files, by name.
    """

    decoder: DecoderFacts | None
    config: Mapping[str, Any]
    files: Mapping[str, bytes]

    def common_files(self) -> dict[str, bytes]:
        """config.json, tokenizer and generation files, as every runtime wants them."""
        config = json.dumps(dict(self.config), indent=2, ensure_ascii=False).encode() + b"\n"
        return {"config.json": config, **self.files}

    def token_ids(self, key: str) -> list[int]:
        """``eos_token_id`` and the like: generation_config.json goes before config.json; one id or several."""
        generation = json.loads(self.files.get("generation_config.json", b"{}"))
        value = generation.get(key, self.config.get(key))
        if value is None:
            return []
        return [int(v) for v in value] if isinstance(value, list) else [int(value)]


class Target(Protocol):
    """What a target's file offers."""

    PIPELINE: str

    @staticmethod
    def files(facts: BundleFacts) -> dict[str, bytes]: ...


@functools.cache
def targets() -> Mapping[str, Target]:
    """Targets by name."""
    return cast(Mapping[str, Target], modules_of(__name__))


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
