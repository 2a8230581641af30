"""A ``.onnx`` file: a decoder that somebody else exported, and the configuration and tokenizer that lie beside it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from exporter.checkpoint import GraphSource
from exporter.errors import rejected
from exporter.onnx_format.reader import read_graph
from exporter.sources._files import JSON_LIMIT, has, inside, parse_json_object, read_bytes
from exporter.sources.hf_directory import read_config, read_files

SUFFIX = ".onnx"
GENAI_CONFIG = "genai_config.json"


def claims(uri: str) -> bool:
    return uri.lower().endswith(SUFFIX) and not Path(uri).is_dir()


def load(uri: str) -> GraphSource:
    """Read what lies beside the graph; the graph itself is read when it is asked for.

    Raises:
        OnnxGptError: ``source-missing``; ``config-unreadable``; ``path-escapes``, ``file-irregular``,
            ``file-unreadable``, ``file-too-large``.
    """
    folder, name = Path(uri).parent, Path(uri).name
    if not has(folder, name):
        raise rejected("source-missing", f"there is no file {uri!r}", "check the path")
    path = inside(folder, name)
    if folder.absolute().name == "onnx" and not has(folder, "config.json"):
        folder = folder.absolute().parent  # as repositories for transformers.js are laid out
    return GraphSource(uri, path, functools.partial(read_graph, path), _config(folder), read_files(folder))


def _config(folder: Path) -> dict[str, Any]:
    """``config.json``, else what onnxruntime-genai's configuration says in the same keys."""
    if has(folder, "config.json"):
        return read_config(folder)
    if not has(folder, GENAI_CONFIG):
        return {}
    where = repr(str(folder / GENAI_CONFIG))
    document = parse_json_object(read_bytes(folder, GENAI_CONFIG, JSON_LIMIT), where, "config-unreadable")
    model = document.get("model")
    if not isinstance(model, dict):
        return {}
    keys = {"context_length": "max_position_embeddings", "vocab_size": "vocab_size"}
    keys |= {f"{which}_token_id": f"{which}_token_id" for which in ("bos", "eos", "pad")}
    return {ours: model[theirs] for theirs, ours in keys.items() if theirs in model}
