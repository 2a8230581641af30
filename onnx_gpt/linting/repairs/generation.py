"""Ids of special tokens: those of the tokenizer where a document's are out of range, missing, or do not end a text."""

from __future__ import annotations

from typing import Any

from onnx_gpt.bundle.token_ids import ids_of
from onnx_gpt.linting.checks.tokens import KEYS, token_id
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.sizes import vocab_size
from onnx_gpt.linting.subject import table

OF = "document"
CODES = ("token-id-range", "eos-absent", "eos-differs", "file-absent")
NAME, GENAI = "generation_config.json", "genai_config.json"


def repair(draft: Draft) -> Draft:
    if draft.subject.expected.config == GENAI:
        document = dict(draft.documents.get(GENAI, {}))
        model = dict(table(document, "model"))
        changed = _ids(draft, model)
        return draft.write(GENAI, {**document, "model": model}, "; ".join(changed)) if changed else draft
    generation = dict(draft.documents.get(NAME, {}))
    changed = _ids(draft, generation)
    if changed:
        draft = draft.write(NAME, generation, "; ".join(changed))
    return _config(draft)


def _ids(draft: Draft, document: dict[str, Any]) -> list[str]:
    """Set what is missing or wrong in a document; gives what was set."""
    changed = []
    for key in KEYS:
        ids = [i for i in ids_of(document.get(key)) if _in_range(draft, i)]
        if not ids:
            ids = [i for _, i in draft.subject.ids(key) if _in_range(draft, i)]
        own = token_id(draft.subject, key)
        if own is not None and (not ids or (key == "eos_token_id" and own not in ids)):
            ids.append(own)
        ids = list(dict.fromkeys(ids))
        value = ids[0] if len(ids) == 1 else ids
        if ids and ids_of(document.get(key)) != ids:
            document[key] = value
            changed.append(f"{key} is {value}")
    return changed


def _config(draft: Draft) -> Draft:
    """Ids of config.json that no token has."""
    config = dict(draft.documents.get("config.json", {}))
    changed = []
    for key in KEYS:
        own = token_id(draft.subject, key)
        if own is not None and any(not _in_range(draft, i) for i in ids_of(config.get(key))):
            config[key] = own
            changed.append(f"{key} is {own}")
    return draft.write("config.json", config, "; ".join(changed)) if changed else draft


def _in_range(draft: Draft, i: int) -> bool:
    sizes = [size for graph in draft.graphs if (size := vocab_size(graph)) is not None]
    return i >= 0 and (not sizes or i < min(sizes))
