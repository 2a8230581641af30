"""Where models come from. A source is a file here, found because it exists.

It offers ``claims(uri) → bool`` (from the name and the file's first bytes alone) and
``load(uri) → Opened``. Exactly one source claims a uri.
"""

from __future__ import annotations

import functools
from typing import Protocol, cast

from exporter.checkpoint import Opened
from exporter.discovery import modules_of
from exporter.errors import rejected


class Source(Protocol):
    """What a source's file offers."""

    @staticmethod
    def claims(uri: str) -> bool: ...

    @staticmethod
    def load(uri: str) -> Opened: ...


@functools.cache
def sources() -> tuple[Source, ...]:
    return tuple(cast(Source, module) for module in modules_of(__name__).values())


def load(uri: str) -> Opened:
    """Open a source. Reads headers, not weights.

    Raises:
        OnnxGptError: ``source-unknown`` where nothing claims the uri, or what the source says of a bad file.
    """
    for source in sources():
        if source.claims(uri):
            return source.load(uri)
    raise rejected(
        "source-unknown",
        f"{uri!r} is not a model that onnx-gpt can open",
        "give a checkpoint directory, a .gguf, .pt or .onnx file, hf:org/name, module:package.module:factory, "
        "or sample:tiny / sample:smollm2",
    )
