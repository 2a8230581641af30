"""Model families. A family is a file here, found because it exists.

It offers ``ARCHITECTURES`` (Hugging Face class names, its own first), ``Config`` (a `FamilyConfig`),
``describe(config) → Decoder`` and, where checkpoints carry tensors that hold nothing learned, ``IGNORED`` (regular
expressions of their names).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol, cast

from exporter import variants
from exporter.checkpoint import Checkpoint
from exporter.config import FamilyConfig
from exporter.decoder import Decoder
from exporter.discovery import modules_of
from exporter.errors import unsupported


class Family(Protocol):
    """What a family's file offers."""

    __name__: str
    ARCHITECTURES: tuple[str, ...]
    Config: type[FamilyConfig]

    @staticmethod
    def describe(config: FamilyConfig) -> Decoder: ...


@functools.cache
def families() -> Mapping[str, Family]:
    """Families by file name."""
    return cast(Mapping[str, Family], modules_of(__name__))


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that a checkpoint's ``architectures`` names.

    Of several that have one name, because transformers runs and saves them as one class, it is the one whose file is
    called as the ``model_type``, and else the one that has it as its own: as the first.

    Raises:
        OnnxGptError: ``architecture-unknown`` (exit 3).
    """
    asked = checkpoint.architecture
    named = {name: family for name, family in families().items() if asked in family.ARCHITECTURES}
    if named:
        kind = variants.ordinary_config(checkpoint.config).get("model_type")
        own = min(named, key=lambda name: named[name].ARCHITECTURES.index(asked))
        return named[kind if kind in named else own]
    known = sorted({name for family in families().values() for name in family.ARCHITECTURES})
    raise unsupported(
        "architecture-unknown",
        f"no family describes the architecture {asked!r}" if asked else "config.json names no architecture",
        f"use one of {', '.join(known)}, or describe it in exporter/families/",
    )


def describe(checkpoint: Checkpoint) -> Decoder:
    """Read the configuration and describe the model it speaks of, a variant with its own sizes."""
    family = family_of(checkpoint)
    name = family.__name__.rpartition(".")[2]
    ordinary = family.describe(family.Config.parse(variants.ordinary_config(checkpoint.config), name))
    return variants.resized(ordinary, checkpoint.config)
