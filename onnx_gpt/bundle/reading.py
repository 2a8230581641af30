"""A bundle's folder as a runtime sees it: where the model is, and the few facts that are not in the graph.

Folders of onnxruntime-genai's builder are read as well: genai_config.json stands in for config.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from exporter.errors import OnnxGptError, rejected
from onnx_gpt.bundle.token_ids import are_ids, ids_of, stated
from onnx_gpt.generation.chat import ChatTemplate, chat_template, template_of

EOS = "eos_token_id"
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "context_length")


@dataclasses.dataclass(frozen=True)
class BundleFolder:
    """What a runner needs of a bundle.

    Attributes:
        model: the .onnx file.
        context_length: tokens that fit, where the bundle says so.
        head_dim: of the KV cache, where the bundle says so.
        eos: tokens that end a text.
        tokenizer: None where the bundle has none (a user's module).
        chat: None where there is no template.
    """

    model: Path
    context_length: int | None
    head_dim: int | None
    eos: frozenset[int]
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None


def read_bundle(folder: Path) -> BundleFolder:
    """Read a bundle's small files.

    Raises:
        OnnxGptError: ``bundle-missing``, ``bundle-incomplete``, ``bundle-invalid`` or
            ``chat-template-invalid``.
    """
    if not folder.is_dir():
        remedy = (
            f"give its folder: {folder.parent}" if folder.is_file() else "build one with `onnx-gpt optimize`"
        )
        raise rejected("bundle-missing", f"{folder} is no folder", remedy)
    genai = _table(_json(folder, "genai_config.json"), "model")
    decoder = _table(genai, "decoder")
    config = {**genai, **_json(folder, "config.json")}
    name = Path(str(decoder.get("filename", "model.onnx")))
    model = folder / name
    if name.is_absolute() or ".." in name.parts:
        raise _invalid(Path("genai_config.json"), f"its model is {str(name)!r}, outside the folder")
    if not model.is_file():
        below = sorted(str(path.parent) for path in folder.glob(f"*/{model.name}"))
        raise rejected(
            "bundle-incomplete",
            f"{folder} has no {model.name}",
            f"name one of {', '.join(below)}" if below else "build one with `onnx-gpt optimize --target ort`",
        )
    template = folder / "chat_template.jinja"
    tokens = _json(folder, "tokenizer_config.json")
    return BundleFolder(
        model=model,
        context_length=next((_integer(config, key) for key in CONTEXT_KEYS if key in config), None),
        head_dim=_head_dim(config, decoder),
        eos=_eos(_json(folder, "generation_config.json"), config),
        tokenizer=_tokenizer(folder / "tokenizer.json"),
        chat=chat_template(tokens, _text(template) if template.is_file() else None),
    )


def require_readable(config: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Check, before a bundle is made of them, that its runner will be able to read a source's small files.

    Raises:
        OnnxGptError: ``config-invalid`` for special tokens that are none; ``chat-template-invalid``.
    """
    template_of(files)
    generation = json.loads(files.get("generation_config.json", b"{}"))
    for key in (EOS, "bos_token_id", "pad_token_id"):
        if not all(are_ids(document.get(key)) for document in (generation, config)):
            raise rejected(
                "config-invalid",
                f"{key} is no token and no list of tokens",
                "write the id of the token, or take the key away",
            )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(path, f"not UTF-8: {error}") from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid(path, "not a JSON object")
    return value


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise _invalid(Path(key), "not a JSON object")
    return value


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or value <= 0:
        raise _invalid(Path("config.json"), f"{key} is {value!r}")
    return value


def _head_dim(config: Mapping[str, Any], decoder: Mapping[str, Any]) -> int | None:
    if "head_size" in decoder:
        return _integer(decoder, "head_size")
    if config.get("head_dim"):
        return _integer(config, "head_dim")
    if "hidden_size" in config and "num_attention_heads" in config:
        return _integer(config, "hidden_size") // _integer(config, "num_attention_heads")
    return None


def _eos(generation: Mapping[str, Any], config: Mapping[str, Any]) -> frozenset[int]:
    value = stated(EOS, generation, config)
    if not are_ids(value):
        raise _invalid(Path("generation_config.json"), f"{EOS} is {value!r}")
    return frozenset(ids_of(value))


def _tokenizer(path: Path) -> Tokenizer | None:
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise _invalid(path, f"not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _invalid(path: Path, what: str) -> OnnxGptError:
    return rejected("bundle-invalid", f"{path.name}: {what}", "build the bundle again, or repair the file")
