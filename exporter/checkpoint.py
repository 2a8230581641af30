"""What every source gives: a configuration, weights that have not been read, and the tokenizer's files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.weights import Weight


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained decoder in Hugging Face terms, whatever it was stored as.

    Attributes:
        uri: the source as the user named it.
        config: the keys of ``config.json``; not yet checked, a family does that.
        weights: tensors by their Hugging Face names.
        files: tokenizer and generation files by name (``tokenizer.json``, ``tokenizer_config.json``,
            ``generation_config.json``, ``chat_template.jinja``), passed through to the bundle as they are.
    """

    uri: str
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Hugging Face class name, e.g. ``LlamaForCausalLM``; empty where the config names none."""
        names = self.config.get("architectures") or [""]
        return str(names[0])


@dataclasses.dataclass(frozen=True)
class GraphSource:
    """A decoder's graph as somebody else exported it.

    Attributes:
        uri: the source as the user named it.
        path: the ``.onnx`` file.
        read: gives the graph, a new one at each call: float32, weights unread.
        config: the keys of the ``config.json`` beside it; empty where there is none.
        files: tokenizer and generation files beside it, by name.
    """

    uri: str
    path: Path
    read: Callable[[], ir.Model]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModuleSource:
    """A user's own ``torch.nn.Module``: tokens ``[B, S]`` int64 in, logits ``[B, S, V]`` out.

    Attributes:
        uri: ``module:package.module:factory``.
        factory: called without arguments, gives the module.
        files: tokenizer files, where the module offers any.
    """

    uri: str
    factory: Callable[[], Any]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


Opened = Checkpoint | GraphSource | ModuleSource
"""What a source gives."""
