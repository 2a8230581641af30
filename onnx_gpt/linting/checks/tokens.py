"""Special tokens: ids lie in the vocabulary, the text ends somewhere, and the tokenizer's own end is among the ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.sizes import vocab_size
from onnx_gpt.linting.subject import Subject

KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check(subject: Subject) -> Iterator[Finding]:
    sizes = (*(vocab_size(graph) for graph in subject.graphs), subject.size("vocab_size"))
    vocab = min((size for size in sizes if size is not None), default=None)
    for key in KEYS:
        for document, i in subject.ids(key):
            if vocab is not None and not 0 <= i < vocab:
                # onnxruntime-genai does not load such an end (measured); to the others it is one that never comes.
                refused = key == "eos_token_id" and document == "genai_config.json"
                yield Finding(
                    "token-id-range",
                    "error" if refused else "warning",
                    f"{document}: {key}",
                    f"it is {i}, and the vocabulary has {vocab} tokens"
                    f"{': the runtime does not load such an end' if refused else ''}",
                    "give the id that the tokenizer has for it",
                    mechanical=token_id(subject, key) is not None,
                )
    if subject.documents or subject.vocabulary is not None:
        yield from _end(subject)
    yield from _tokenizer(subject, vocab)


def _end(subject: Subject) -> Iterator[Finding]:
    genai = subject.expected.config == "genai_config.json"
    document = "genai_config.json" if genai else "generation_config.json"
    read = (
        {document}
        if genai
        else {document, "config.json"}
        if subject.expected.config
        else set(subject.documents)
    )
    ends = {i for name, i in subject.ids("eos_token_id") if name in read}
    own = token_id(subject, "eos_token_id")
    if not ends:
        yield Finding(
            "eos-absent",
            "warning",
            f"{document}: eos_token_id",
            "no id ends a text: generation goes on to its limit",
            "name the id of the token that ends a text",
            mechanical=own is not None,
        )
    elif own is not None and own not in ends:
        yield Finding(
            "eos-differs",
            "warning",
            f"{document}: eos_token_id",
            f"it is {', '.join(map(str, sorted(ends)))}, and the tokenizer's eos_token is {own}",
            "add the tokenizer's id to it",
            mechanical=True,
        )


def _tokenizer(subject: Subject, vocab: int | None) -> Iterator[Finding]:
    highest = max((subject.vocabulary or {}).values(), default=-1)
    if vocab is not None and highest >= vocab:
        yield Finding(
            "tokenizer-larger",
            "error",
            "tokenizer.json",
            f"it gives ids up to {highest}, and the model knows {vocab} tokens",
            "take the tokenizer that the model was trained with",
        )


def token_id(subject: Subject, key: str) -> int | None:
    """The id that the tokenizer has for ``eos_token_id`` and the like."""
    text = _text(subject.documents.get("tokenizer_config.json", {}).get(key.removesuffix("_id")))
    return (subject.vocabulary or {}).get(text) if text is not None else None


def _text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None
