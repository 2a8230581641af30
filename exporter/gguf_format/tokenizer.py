"""tokenizer.json, tokenizer_config.json and generation_config.json from the metadata of a GGUF file.

``tokenizer.json`` is written as the tokenizers library writes it, so every runtime that reads Hugging Face
tokenizers reads this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from exporter.errors import OnnxGptError, unsupported
from exporter.gguf_format.pretokenizers import CUTS, UNNAMED, Cut, byte_level
from exporter.gguf_format.reader import Header
from exporter.gguf_format.sentencepiece import gemma_spelling, is_gemma, sentencepiece
from exporter.gguf_format.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

Json: TypeAlias = dict[str, Any]

TEMPLATE = "tokenizer.chat_template"
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")
"""The only special tokens of Phi-3 that do not swallow the spaces after them; no key of the file says so."""


def files_of(header: Header, vocabulary: Vocabulary, context_length: int) -> dict[str, bytes]:
    """The files by name.

    Raises:
        OnnxGptError: ``gguf-tokenizer-unsupported`` (exit 3) for a tokenizer of a kind that is not
            implemented, ``gguf-invalid`` (exit 4) for one that contradicts itself.
    """
    if vocabulary.model == "gpt2":
        parts, add_bos = _byte_level(header, vocabulary)
    elif vocabulary.model == "llama":
        if is_gemma(header):
            vocabulary = gemma_spelling(header, vocabulary)
        parts, add_bos = sentencepiece(header, vocabulary), True
    else:
        raise _unsupported(header, f"a tokenizer of the kind {vocabulary.model[:80]!r}", "gpt2, llama")
    around = {
        "bos": header.flag("tokenizer.ggml.add_bos_token", add_bos) and "bos" in vocabulary.ids,
        "eos": header.flag("tokenizer.ggml.add_eos_token", False) and "eos" in vocabulary.ids,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(header, vocabulary),
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _template(vocabulary, around["bos"], around["eos"]),
        **parts,
    }
    config = _tokenizer_config(header, vocabulary, context_length)
    config |= {f"add_{role}_token": added for role, added in around.items()}
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode("utf-8"),
        "tokenizer_config.json": _readable(config),
        "generation_config.json": _readable(
            {key: value for key, value in special_ids(vocabulary.ids).items() if value is not None}
        ),
    }


def special_ids(ids: Mapping[str, int]) -> Json:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``; None for one that the file does not name.

    Generation ends at the end of a text, of a turn and of a message; where these differ, ``eos_token_id`` is
    a list. Absent ids are said to be None, since a configuration class has ids of its own for keys that are
    left out.
    """
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if role in ids))
    return {
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids.get("pad"),
    }


def _byte_level(header: Header, vocabulary: Vocabulary) -> tuple[Json, bool]:
    """GPT-2's BPE over bytes (Radford et al. 2019), and whether a text begins with bos by default."""
    cut = _cut(header)
    parts = {
        "normalizer": {"type": "NFC"} if cut.normalize else None,
        "pre_tokenizer": cut.pre_tokenizer(),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut.whole,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": _merges(header, vocabulary),
        },
    }
    return parts, cut.add_bos


def _cut(header: Header) -> Cut:
    name = header.text("tokenizer.ggml.pre", "default")
    if name == "default":
        name = UNNAMED.get(header.text("general.architecture"), name)
    if name not in CUTS:
        raise _unsupported(header, f"cutting text in the way called {name[:80]!r}", ", ".join(CUTS))
    return CUTS[name]


def _merges(header: Header, vocabulary: Vocabulary) -> list[list[str]]:
    """The file's merges, best first, each of two tokens into a third."""
    known = set(vocabulary.tokens)
    merges = []
    for line in header.strings("tokenizer.ggml.merges"):
        left, _, right = line.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise header.invalid(f"the merge {line[:80]!r} is not of two tokens into a third")
        merges.append([left, right])
    return merges


def _added_tokens(header: Header, vocabulary: Vocabulary) -> list[Json]:
    """Tokens that a text is searched for before it is cut: control tokens, and those that someone added."""
    phi3 = header.text("general.architecture") == "phi3"
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": phi3 and token not in _PHI3_KEEPS_SPACE,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and token
    ]


def _template(vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> Json | None:
    """Encoding begins with bos and ends with eos, where it should."""
    if not (add_bos or add_eos):
        return None

    def one(name: str, type_id: int) -> list[Json]:
        bos = [{"SpecialToken": {"id": vocabulary.token("bos"), "type_id": type_id}}] if add_bos else []
        eos = [{"SpecialToken": {"id": vocabulary.token("eos"), "type_id": type_id}}] if add_eos else []
        return [*bos, {"Sequence": {"id": name, "type_id": type_id}}, *eos]

    used = [role for role, added in (("bos", add_bos), ("eos", add_eos)) if added]
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[role]], "tokens": [token]}
            for role in used
            if (token := vocabulary.token(role)) is not None
        },
    }


def _tokenizer_config(header: Header, vocabulary: Vocabulary, context_length: int) -> Json:
    """With the class that takes tokenizer.json as it is; others rebuild it by rules of their own."""
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in _added_tokens(header, vocabulary)
        },
    }
    for role in ("bos", "eos", "unk", "pad"):
        if role in vocabulary.ids:
            config[f"{role}_token"] = vocabulary.token(role)
    templates = {
        key.removeprefix(TEMPLATE).removeprefix(".") or "default": header.text(key)
        for key in header.metadata
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}.")
    }
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config


def _readable(value: Json) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _unsupported(header: Header, what: str, known: str) -> OnnxGptError:
    return unsupported(
        "gguf-tokenizer-unsupported",
        f"{header.path.name}: {what} is not implemented",
        f"use a model with one of: {known}",
    )
