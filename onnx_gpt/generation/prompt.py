"""What a user may give as a prompt, and its token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from tokenizers import Tokenizer

from calibration.data.encoding import ids_of
from exporter.errors import OnnxGptError, rejected
from onnx_gpt.generation.chat import ChatTemplate, Message

Prompt = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or a conversation of messages with ``role`` and ``content``."""


def encode(prompt: Prompt, tokenizer: Tokenizer | None, chat: ChatTemplate | None) -> list[int]:
    """Token ids. Text gets the special tokens that the tokenizer adds; a conversation, those of its template.

    Raises:
        OnnxGptError: ``prompt-not-text``, ``tokenizer-missing``, ``chat-template-missing``, ``chat-template-refused``.
    """
    if len(prompt) and isinstance(prompt[0], Mapping):
        if chat is None:
            raise rejected(
                "chat-template-missing", "the bundle has no chat template", "give the prompt as text"
            )
        text, special = chat.render(cast(Sequence[Message], prompt)), False
    elif isinstance(prompt, str):
        text, special = prompt, True
    else:
        return [int(token) for token in cast(Sequence[int], prompt)]
    if tokenizer is None:
        raise tokenizer_missing()
    try:
        return ids_of(tokenizer, text, special=special, what="the prompt", remedy="restore tokenizer.json")
    except TypeError as error:  # half of a surrogate pair: what a shell makes of bytes that are no UTF-8
        raise rejected(
            "prompt-not-text", "the prompt holds bytes that are no UTF-8", "give it in UTF-8"
        ) from error


def require_known(tokens: Sequence[int], vocab_size: int | None) -> None:
    """Raise ``prompt-empty``, or ``token-out-of-range`` for an id that the model has no embedding for."""
    if not len(tokens):
        raise rejected("prompt-empty", "the prompt has no tokens", "give a prompt")
    wrong = [token for token in tokens if token < 0 or (vocab_size is not None and token >= vocab_size)]
    if wrong:
        raise rejected(
            "token-out-of-range",
            f"token {wrong[0]} is not one of the model's {vocab_size}",
            "use the tokenizer that the model was trained with",
        )


def require_fitting(tokenizer: Tokenizer | None, vocab_size: int | None) -> None:
    """Raise ``tokenizer-too-large`` for a tokenizer that is not the model's."""
    if tokenizer is not None and vocab_size is not None and tokenizer.get_vocab_size() > vocab_size:
        raise rejected(
            "tokenizer-too-large",
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens and the model {vocab_size}",
            "use the tokenizer that the model was trained with",
        )


def tokenizer_missing() -> OnnxGptError:
    return rejected(
        "tokenizer-missing",
        "the bundle has no tokenizer.json",
        "give the prompt as token ids, and no stop strings",
    )
