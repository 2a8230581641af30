"""Chat templates: Jinja that came with a model, so a stranger's program, run in a sandbox with bounds.

The environment is the one that transformers gives templates (trim_blocks, lstrip_blocks, loop controls,
``tojson``, ``raise_exception``, ``strftime_now``, ``generation`` blocks). On top of it, loop turns and macro
calls are counted and no value may grow beyond a bound: the sandbox alone stops neither nested loops nor
``'x' * 10**10``. A bound on one operation's result comes after that operation, so this limits what a hostile
template can waste; it does not take it to nothing.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from exporter.errors import OnnxGptError, rejected

Message = Mapping[str, Any]

MAX_STEPS = 200_000
"""Loop turns and macro calls of one rendering."""
MAX_LENGTH = 4_000_000
"""Characters (or items) of a value, and of the result: beyond any context."""
STEPS = "__steps__"
SIZED_FILTERS = ("batch", "center", "indent", "slice", "wordwrap")
"""Filters whose result is as long as a number says."""
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
        try:
            self._template = _Environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise rejected(
                "chat-template-invalid",
                f"the chat template cannot be compiled: {error}",
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
        given = {"tools": None, "documents": None, **self.variables, **variables, STEPS: _Steps()}
        pieces: list[str] = []
        size = 0
        try:
            # Rebuilt as plain JSON values, so that no object with methods of its own gets into the sandbox.
            # A key without a value is left out, as transformers does: templates ask whether it is there.
            held = [{k: v for k, v in dict(message).items() if v is not None} for message in messages]
            plain = json.loads(json.dumps(held))
            for piece in self._template.generate(
                messages=plain, add_generation_prompt=add_generation_prompt, **given
            ):
                size += len(piece)
                _bound(size)
                pieces.append(piece)
        except Exception as error:  # a template is a program: it can raise anything
            raise _refused(error) from error
        return "".join(pieces)


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


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _refused(error: Exception) -> OnnxGptError:
    return rejected(
        "chat-template-refused",
        f"the chat template failed: {type(error).__name__}: {error}",
        "check the messages' roles and their order, or give a prompt without a chat",
    )


# The environment -------------------------------------------------------------------------------------


class _Steps:
    """Counts loop turns and macro calls; not an iterator, since the template can see it."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"more than {MAX_STEPS} loop turns and macro calls")


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, value: Any) -> Any:
    # From the parent, which a template cannot write: `{% set %}` goes to the context's own variables.
    context.parent[STEPS]()
    return value


def _bound(size: int) -> None:
    if size > MAX_LENGTH:
        raise SecurityError(f"a text of more than {MAX_LENGTH} characters")


def _bounded(value: Any) -> Any:
    if isinstance(value, Sized):
        _bound(len(value))
    return value


class _Guards(NodeTransformer):
    """Puts a counter into every loop and macro, and a bound on every concatenation."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2's visitor names methods so)
        return self._count(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._count(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Filter(node, "__bounded__", [], [], None, None, lineno=node.lineno)

    def _count(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        # A filter, since a template cannot put another in its place, as it could with a variable.
        count = nodes.Filter(nodes.Const(None), "__counted__", [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(count).set_lineno(node.lineno))
        return node


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: marks what training counts, and is its content otherwise."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self.filters = {name: _measured(name, filter) for name, filter in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.filters["__bounded__"] = _bounded
        self.filters["__counted__"] = _counted
        del self.globals["lipsum"]  # text without end
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Guards().visit(super()._parse(source, name, filename))
        return parsed

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, Sized) and isinstance(times, int):
                    _bound(len(value) * times)
        if operator == "**" and not (abs(left) <= 1_000_000 and abs(right) <= 64):
            raise SecurityError("a power beyond 1000000 ** 64")
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, function: Any, *arguments: Any, **named: Any) -> Any:
        of = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps format
        if isinstance(of, str):
            _check_sizes(arguments, named)
            if function.__name__ in ("format", "format_map"):
                _check_widths(of)
        return _bounded(super().call(context, function, *arguments, **named))


def _measured(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with bounds on what goes in and comes out; jinja2's marks (``pass_context``) are kept."""

    @functools.wraps(filter)
    def measured(*arguments: Any, **named: Any) -> Any:
        if name in SIZED_FILTERS:
            _check_sizes(arguments, named)
        if name == "format":
            _check_widths(str(arguments[0]))
        return _bounded(filter(*arguments, **named))

    return measured


def _check_sizes(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    for argument in (*arguments, *named.values()):
        if isinstance(argument, int):
            _bound(argument)


def _check_widths(format: str) -> None:
    """Refuse a format that pads to millions of characters, or to a width that it takes from an argument."""
    if re.search(r"\d{7}|%[-+ #0]*\*|\{[^{}]*\{", format):
        raise SecurityError("a format with an unbounded width")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: jinja2's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
