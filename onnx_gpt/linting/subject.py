"""What is looked at: a folder's model files, and the small documents beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import rejected
from exporter.sources._files import has, parse_json_object, read_bytes
from exporter.sources.hf_directory import FILE_LIMIT
from onnx_gpt.bundle.token_ids import ids_of
from onnx_gpt.linting.expectation import Expectation, expectation
from onnx_gpt.linting.graph_file import GraphFile, read_header

DOCUMENTS = ("config.json", "genai_config.json", "generation_config.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"
ALIASES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "head_size"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "vocab_size": ("vocab_size",),
}
"""Keys by which configurations call a size."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A folder, as a target's runtime would meet it.

    Attributes:
        folder: the folder.
        target: name of the target.
        expected: what its runtime expects.
        graphs: the model files, in order of their names.
        documents: JSON documents by name, those of `DOCUMENTS` that are there.
        files: names of all files of the folder and of the runtime's model folder, relative to the folder.
        vocabulary: tokens by their text, out of tokenizer.json; None where there is none.
    """

    folder: Path
    target: str
    expected: Expectation
    graphs: tuple[GraphFile, ...]
    documents: Mapping[str, Mapping[str, Any]]
    files: frozenset[str]
    vocabulary: Mapping[str, int] | None

    @property
    def config(self) -> Mapping[str, Any]:
        """The document that describes the model, its keys as Hugging Face has them."""
        if "config.json" in self.documents and self.expected.config != "genai_config.json":
            return self.documents["config.json"]
        return genai_sizes(self.documents.get("genai_config.json", {})) or self.documents.get(
            "config.json", {}
        )

    def size(self, which: str) -> int | None:
        """A size that the configuration states, by a key of `ALIASES`, or that follows from others."""
        return size_of(self.config, which)

    def ids(self, key: str) -> tuple[tuple[str, int], ...]:
        """All ids that the documents give for ``eos_token_id`` and the like, each with the document's name."""
        found: list[tuple[str, int]] = []
        for name, document in self.documents.items():
            value = table(document, "model").get(key) if name == "genai_config.json" else document.get(key)
            found.extend((name, i) for i in ids_of(value))
        return tuple(found)


def table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table within a document; empty where it is none."""
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def genai_sizes(genai: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a genai_config.json by the keys of config.json; empty where it is none."""
    model = table(genai, "model")
    decoder = table(model, "decoder")
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    sizes = {key: decoder[key] for key in keys if key in decoder}
    sizes |= {"head_dim": decoder["head_size"]} if "head_size" in decoder else {}
    return sizes | ({"vocab_size": model["vocab_size"]} if "vocab_size" in model else {})


def size_of(config: Mapping[str, Any], which: str) -> int | None:
    """A size of a configuration, by a key of `ALIASES`."""
    for key in ALIASES[which]:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if which == "kv_heads":
        return size_of(config, "heads")
    if which == "head_dim":
        hidden, heads = size_of(config, "hidden_size"), size_of(config, "heads")
        return hidden // heads if hidden and heads else None
    return None


def read_subject(source: str | Path, target: str) -> Subject:
    """Read a folder, or the folder of one .onnx file, for a target.

    Raises:
        OnnxGptError: ``target-unknown`` (exit 2); ``bundle-missing``; ``bundle-invalid`` for a document that is not
            JSON; what `read_header` raises.
    """
    expected = expectation(target)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise rejected(
            "bundle-missing", f"there is no {str(path)!r}", "give a bundle's folder or an .onnx file"
        )
    documents = {name: _document(folder, name) for name in DOCUMENTS if has(folder, name)}
    models = [path] if path.is_file() else _models(folder, expected, documents)
    graphs = tuple(read_header(model, model.relative_to(folder).as_posix()) for model in models)
    places = {folder, folder / expected.model_folder, *(model.parent for model in models)}
    files = frozenset(
        file.relative_to(folder).as_posix()
        for place in places
        if place.is_dir()
        for file in place.iterdir()
        if not file.is_dir()
    )
    return Subject(folder, target, expected, graphs, documents, files, _vocabulary(folder))


def _models(folder: Path, expected: Expectation, documents: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Model files where the runtime looks for them; where there are none, those of the folder and of ``onnx``."""
    decoder = table(table(documents.get("genai_config.json", {}), "model"), "decoder")
    named = decoder.get("filename") if expected.config == "genai_config.json" else None
    if (
        isinstance(named, str)
        and (folder / named).is_file()
        and (folder / named).resolve().is_relative_to(folder.resolve())
    ):
        return [folder / named]
    for place in dict.fromkeys((expected.model_folder, "", "onnx")):
        found = sorted((folder / place).glob("*.onnx"))
        if found:
            return found
    return []


def _document(folder: Path, name: str) -> dict[str, Any]:
    return parse_json_object(read_bytes(folder, name, FILE_LIMIT), repr(name), "bundle-invalid")


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Every token that tokenizer.json knows, with its id."""
    if not has(folder, "tokenizer.json"):
        return None
    document = _document(folder, "tokenizer.json")
    vocab = table(document, "model").get("vocab")
    found: dict[str, int] = {}
    if isinstance(vocab, dict):
        found |= {token: i for token, i in vocab.items() if isinstance(i, int)}
    elif isinstance(vocab, list):  # unigram: [token, score] by id
        found |= {str(entry[0]): i for i, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            found[str(token.get("content"))] = token["id"]
    return found
