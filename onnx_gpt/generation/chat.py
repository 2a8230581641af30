"""Chat templates: Jinja that came with a model, so a stranger's program, run in `onnx_gpt.generation.sandbox`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.errors import OnnxGptError, rejected
from onnx_gpt.generation.sandbox import MAX_SOURCE, Environment, require_short

Message = Mapping[str, Any]

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja.
        variables: what the template sees beside the messages (``bos_token`` and the like).

    Raises:
        OnnxGptError: ``chat-template-invalid``.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        self.variables = dict(variables or {})
        self._environment = Environment()
        try:
            if len(source) > MAX_SOURCE:
                raise ValueError(f"it has {len(source)} characters, more than {MAX_SOURCE}")
            self._template = self._environment.from_string(source)
        except (
            Exception
        ) as error:  # jinja2's, and Python's of the program that it makes: nested too deeply, say
            raise rejected(
                "chat-template-invalid",
                f"the chat template cannot be compiled: {error!s:.400}",
                "repair the model's chat_template, or take it out of its files",
            ) from error

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with ``role`` and ``content``, and what else the template reads.
            add_generation_prompt: end where the assistant begins to speak.
            variables: what else the template reads, such as ``tools``.

        Raises:
            OnnxGptError: ``chat-template-refused``: the template raised an exception, tried to leave the
                sandbox, or went beyond its bounds.
        """
        given = {"tools": None, "documents": None, **self.variables, **variables}
        pieces: list[str] = []
        size = 0
        self._environment.begin()
        try:
            # Rebuilt as plain JSON values, so that no object with methods of its own gets into the sandbox.
            # A key without a value is left out, as transformers does: templates ask whether it is there.
            held = [{k: v for k, v in dict(message).items() if v is not None} for message in messages]
            plain = json.loads(json.dumps(held))
            for piece in self._template.generate(
                messages=plain, add_generation_prompt=add_generation_prompt, **given
            ):
                size += len(piece)
                require_short(size)
                pieces.append(piece)
        except Exception as error:  # a template is a program: it can raise anything
            raise _refused(error) from error
        text = "".join(pieces)
        if any(_written_out(message.get("content"), text) for message in plain):
            raise rejected(
                "chat-template-refused",
                "the chat template takes text, and a message's content is a list of parts",
                'give text: {"role": "user", "content": "…"}',
            )
        return text


def chat_template(config: Mapping[str, Any], jinja: str | None) -> ChatTemplate | None:
    """The template of a tokenizer.

    Args:
        config: ``tokenizer_config.json``; its ``chat_template`` is text, or a list of named ones with a
            ``default``.
        jinja: ``chat_template.jinja``, which goes before.

    Raises:
        OnnxGptError: ``chat-template-invalid``.
    """
    source = config.get("chat_template") if jinja is None else jinja
    if isinstance(source, list):
        entries = [entry for entry in source if isinstance(entry, Mapping)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
        source = named.get("default")
        if source is None:
            raise rejected(
                "chat-template-invalid",
                f"of the chat templates ({', '.join(named)}) none is the default",
                "name one of them `default` in tokenizer_config.json",
            )
    if source is None:
        return None
    if not isinstance(source, str):
        raise rejected(
            "chat-template-invalid",
            "chat_template in tokenizer_config.json is neither text nor a list",
            "repair tokenizer_config.json",
        )
    tokens = {name: _token_text(config.get(name)) for name in SPECIAL_TOKENS}
    return ChatTemplate(source, {name: text for name, text in tokens.items() if text is not None})


def template_of(files: Mapping[str, bytes]) -> ChatTemplate | None:
    """The template in a tokenizer's files, by name; None where there is none.

    Raises:
        OnnxGptError: ``chat-template-invalid``.
    """
    config, jinja = json.loads(files.get("tokenizer_config.json", b"{}")), files.get("chat_template.jinja")
    return chat_template(config, None if jinja is None else jinja.decode("utf-8"))


def _written_out(content: Any, text: str) -> bool:
    """Whether a content that is no text stands in the result as Python writes it: the template expected text."""
    return bool(content) and isinstance(content, list | dict) and str(content) in text


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _refused(error: Exception) -> OnnxGptError:
    return rejected(
        "chat-template-refused",
        f"the chat template failed: {type(error).__name__}: {error}",
        "check the messages' roles and their order, or give a prompt without a chat",
    )
