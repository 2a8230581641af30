"""The chat template: there, and where the runtime reads it."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.subject import TEMPLATE, Subject


def check(subject: Subject) -> Iterator[Finding]:
    if "tokenizer.json" not in subject.files or subject.expected.template == "none":
        return
    inline = bool(subject.documents.get("tokenizer_config.json", {}).get("chat_template"))
    beside = TEMPLATE in subject.files
    if subject.expected.template == "inline" and beside and not inline:
        yield Finding(
            "template-not-inline",
            "error",
            "tokenizer_config.json: chat_template",
            f"the template is in {TEMPLATE}, which {subject.expected.runtime} does not read",
            "put it into tokenizer_config.json",
            mechanical=True,
        )
    elif not inline and not beside:
        yield Finding(
            "template-absent",
            "warning",
            "tokenizer_config.json: chat_template",
            "the model can be prompted, but not talked to",
            "add its chat template, if it was trained on conversations",
        )
