"""Digests of what a bundle was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.checkpoint import Checkpoint, GraphSource, Opened
from exporter.onnx_format.reader import read_file
from exporter.weights import Array, Weight
from onnx_gpt.certificate.background import begin
from onnx_gpt.certificate.canonical import digest
from onnx_gpt.certificate.files import READERS


def source_digests(opened: Opened, module: Any = None) -> dict[str, str]:
    """SHA-256 of each part of a source, by name: files that hold weights, the configuration, tokenizer files.

    A file counts by its path from the folder that holds them all, so that a digest does not depend on where they lay.
    What is in no file of its own has a name in brackets: ``[config]`` as canonical JSON, ``[tensors]`` of arrays in
    memory, name by name.

    Args:
        module: the ``torch.nn.Module`` of a `ModuleSource`.
    """
    found = {name: hashlib.sha256(data).hexdigest() for name, data in opened.files.items()}
    paths: set[Path] = set()
    if isinstance(opened, Checkpoint):
        leaves = [leaf for weight in opened.weights.values() for leaf in _leaves(weight)]
        paths = {leaf.path for leaf in leaves if hasattr(leaf, "path")}
        found["[config]"] = digest(_plain(opened.config))
        arrays = {name: w.array for name, w in opened.weights.items() if isinstance(w, Array)}
        if arrays:
            found["[tensors]"] = _of_arrays(arrays)
    elif isinstance(opened, GraphSource):
        paths = model_files(opened.path, read_file(opened.path))
        found["[config]"] = digest(_plain(opened.config))
    elif module is not None:
        state = module.state_dict()
        found["[tensors]"] = _of_arrays(
            {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
        )
    ordered = sorted(paths)
    with ThreadPoolExecutor(READERS) as pool:
        of_files = pool.map(_sha256, ordered)
        found |= dict(zip(_names(ordered), of_files, strict=True))
    return dict(sorted(found.items()))


Digests = Callable[[Any], dict[str, str]]
"""Gives a source's digests (`source_digests`), of its module's weights too where it is given that."""


def digesting(opened: Opened) -> Digests:
    """Digest a source beside whatever else goes on, once for all who ask; a module's weights on demand."""
    found = begin(lambda: source_digests(opened))
    return lambda module: found.result() if module is None else source_digests(opened, module)


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths from the innermost folder that holds all: bare names, where they are in one folder."""
    whole = [path.absolute() for path in paths]
    folder = os.path.commonpath([path.parent for path in whole]) if whole else ""
    return [path.relative_to(folder).as_posix() for path in whole]


def model_files(path: Path, model: ir.Model) -> set[Path]:
    """A graph's file, and those that hold its weights."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {path, *(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))}


def _sha256(path: Path) -> str:
    """A file's digest; a source may be a link, as in the Hub's cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leaves(weight: Weight) -> Iterator[Any]:
    """The stored tensors under an expression."""
    inner = [getattr(weight, field.name) for field in dataclasses.fields(weight)]  # type: ignore[arg-type]
    below = [item for value in inner for item in (value if isinstance(value, tuple) else (value,))]
    weights = [item for item in below if isinstance(item, Weight)]
    if not weights:
        yield weight
    for one in weights:
        yield from _leaves(one)


def _of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    facts = {
        name: [
            str(array.dtype),
            list(array.shape),
            hashlib.sha256(np.ascontiguousarray(array).data).hexdigest(),
        ]
        for name, array in arrays.items()
    }
    return digest(facts)


def _plain(config: Mapping[str, Any]) -> Any:
    """A configuration as JSON holds it; what JSON has no word for, as Python writes it."""
    if isinstance(config, Mapping):
        return {str(key): _plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_plain(item) for item in config]
    finite = not isinstance(config, float) or np.isfinite(config)
    return config if isinstance(config, str | int | float | None) and finite else str(config)
