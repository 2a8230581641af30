"""Where models come from. A source is a file here, found because it exists.

It offers ``claims(uri) → bool`` (from the name and the file's first bytes alone) and
``load(uri) → Opened``. Exactly one source claims a uri.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Protocol, cast

from exporter.checkpoint import Opened
from exporter.discovery import modules_of
from exporter.errors import OnnxGptError, rejected
from exporter.sources._files import unreadable

KINDS = (
    "give a checkpoint directory, a .gguf, .pt or .onnx file, hf:org/name, module:package.module:factory, "
    "or sample:tiny / sample:smollm2"
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


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
        OnnxGptError: ``source-missing``, ``source-unknown`` where nothing claims the uri, or what the source says of a
            bad file.
    """
    try:
        source = next((source for source in sources() if source.claims(uri)), None)
    except OSError as error:  # a name that is too long, say
        raise unreadable(Path(uri), error) from error
    if source is None:
        raise _unclaimed(uri)
    return source.load(uri)


def _unclaimed(uri: str) -> OnnxGptError:
    path = Path(uri)
    if not path.exists():
        hub = f"; for a model of the Hub, write hf:{uri}" if HUB_NAME.fullmatch(uri) else ""
        return rejected(
            "source-missing", f"there is no file or folder {uri!r}", f"check the path{hub}, or {KINDS}"
        )
    beside = path.suffix == ".safetensors"
    remedy = (
        f"give the folder that it lies in, with its config.json: {path.absolute().parent}"
        if beside
        else KINDS
    )
    return rejected("source-unknown", f"{uri!r} is not a model that onnx-gpt can open", remedy)
