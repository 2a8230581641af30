"""The vocabulary in a GGUF header, checked: tokens, their kinds, and the ids that mean something."""

from __future__ import annotations

import dataclasses
from typing import Final

from exporter.errors import rejected, unsupported
from exporter.gguf_format.reader import Header

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_IDS: Final = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_READ = frozenset(_IDS.values()) | {
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "merges",
    "model",
    "pre",
    "scores",
    "token_type",
    "tokens",
}
_INERT = frozenset(
    {
        *(f"{role}_token_id" for role in ("cls", "mask", "seperator", "prefix", "suffix", "middle")),
        *(f"fim_{role}_token_id" for role in ("pre", "suf", "mid", "pad", "rep", "sep")),
        "add_sep_token",
        "precompiled_charsmap",
        "remove_extra_whitespaces",
        "token_type_count",
    }
)
"""Keys of other kinds of tokenizer, and ids that no text is encoded with."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and what the file says of them.

    Attributes:
        model: ``gpt2`` or ``llama``: llama.cpp's word for byte-level BPE and for SentencePiece.
        tokens: as stored.
        kinds: of each token, `NORMAL` … `BYTE`.
        ids: of special tokens, by ``bos``, ``eos``, ``unk``, ``pad``, ``eot``, ``eom``; only those that the
            file names.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    ids: dict[str, int]

    def token(self, role: str) -> str | None:
        return self.tokens[self.ids[role]] if role in self.ids else None


def vocabulary_of(header: Header, vocab_size: int) -> Vocabulary | None:
    """The vocabulary; None where the file has no tokenizer (``no_vocab`` or nothing at all).

    Args:
        vocab_size: rows of the embedding table.

    Raises:
        OnnxGptError: ``tokenizer-too-large`` (exit 4) where there are more tokens than rows, ``gguf-invalid``
            where tokens repeat or ids point nowhere, ``gguf-key-unsupported`` (exit 3) for keys that are not
            known.
    """
    model = header.text("tokenizer.ggml.model", "no_vocab")
    if model in ("no_vocab", "none"):
        return None
    _refuse_unknown_keys(header)
    tokens = header.strings("tokenizer.ggml.tokens")
    if len(tokens) > vocab_size:
        raise rejected(
            "tokenizer-too-large",
            f"{header.path.name}: the tokenizer has {len(tokens)} tokens and the model {vocab_size}",
            "use the tokenizer that the model was trained with",
        )
    if len(set(tokens)) != len(tokens):
        raise header.invalid("the tokenizer has the same token twice")
    kinds = [NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in header.metadata:
        kinds = header.numbers("tokenizer.ggml.token_type").tolist()
    if len(kinds) != len(tokens):
        raise header.invalid(f"the tokenizer has {len(tokens)} tokens and {len(kinds)} token types")
    ids = {}
    for role, name in _IDS.items():
        key = f"tokenizer.ggml.{name}"
        if key in header.metadata:
            ids[role] = header.integer(key)
            if ids[role] >= len(tokens):
                raise header.invalid(f"{key} is {ids[role]}, beyond the {len(tokens)} tokens")
    return Vocabulary(model, tokens, kinds, ids)


def _refuse_unknown_keys(header: Header) -> None:
    prefix = "tokenizer.ggml."
    unknown = [
        key
        for key in header.metadata
        if key.startswith(prefix) and key.removeprefix(prefix) not in _READ | _INERT
    ]
    if unknown:
        raise unsupported(
            "gguf-key-unsupported",
            f"{header.path.name}: the tokenizer has features that are not implemented",
            "use a model without them",
            tuple(unknown),
        )
