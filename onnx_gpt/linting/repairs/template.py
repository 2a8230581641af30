"""The chat template inside tokenizer_config.json."""

from __future__ import annotations

from exporter.sources._files import read_bytes
from exporter.sources.hf_directory import FILE_LIMIT
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.subject import TEMPLATE

OF = "document"
CODES = ("template-not-inline",)
NAME = "tokenizer_config.json"


def repair(draft: Draft) -> Draft:
    text = read_bytes(draft.subject.folder, TEMPLATE, FILE_LIMIT).decode("utf-8", "replace")
    document = {**draft.documents.get(NAME, {}), "chat_template": text}
    return draft.write(NAME, document, f"chat_template is that of {TEMPLATE}")
