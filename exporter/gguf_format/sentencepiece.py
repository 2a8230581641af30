"""SentencePiece's BPE (Kudo & Richardson 2018) as the tokenizers library spells it."""

from __future__ import annotations

import dataclasses
from typing import Any

from exporter.gguf_format.reader import Header
from exporter.gguf_format.vocabulary import CONTROL, UNKNOWN, Vocabulary

SPACE = "▁"
"""What stands for a space, U+2581."""

MAX_MERGED = 128
"""Characters of a token that may be merged from others. SentencePiece makes 16 by default."""


def sentencepiece(header: Header, vocabulary: Vocabulary) -> dict[str, Any]:
    """Normalizer, model and decoder of ``tokenizer.json``.

    The file lists no merges: any two neighbours that together are a token merge, those with the best score
    first.

    Raises:
        OnnxGptError: ``gguf-invalid`` where the scores do not fit the tokens.
    """
    tokens = vocabulary.tokens
    scores = _scores(header, vocabulary)
    unknown = vocabulary.token("unk") or next(
        (t for t, kind in zip(tokens, vocabulary.kinds, strict=True) if kind == UNKNOWN), None
    )
    prefix = header.flag("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _implied_merges(tokens, scores),
        },
    }


def _scores(header: Header, vocabulary: Vocabulary) -> list[float]:
    if is_gemma(header):  # whose scores do not follow the order of its merges; the order of its tokens does
        return [-float(i) for i in range(len(vocabulary.tokens))]
    scores: list[float] = header.numbers("tokenizer.ggml.scores").tolist()
    if len(scores) != len(vocabulary.tokens):
        raise header.invalid(f"the tokenizer has {len(vocabulary.tokens)} tokens and {len(scores)} scores")
    return scores


def is_gemma(header: Header) -> bool:
    return header.text("general.architecture").startswith("gemma")


def gemma_spelling(header: Header, vocabulary: Vocabulary) -> Vocabulary:
    """Gemma's runs of spaces are stored as spaces, and looked up after spaces have become ▁."""
    tokens = [
        SPACE * len(token) if kind != CONTROL and token and not token.strip(" ") else token
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]
    if len(set(tokens)) != len(tokens):
        raise header.invalid("the tokenizer has the same run of spaces twice")
    return dataclasses.replace(vocabulary, tokens=tokens)


def _implied_merges(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """Every way to make a token of two others: better scores first, then longer left parts."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        if len(token) > MAX_MERGED:
            continue
        ways = [
            (ids[token[:at]], ids[token[at:]])
            for at in range(1, len(token))
            if token[:at] in ids and token[at:] in ids
        ]
        merges += [(score, tokens[left], tokens[right]) for left, right in sorted(ways)]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in merges]
