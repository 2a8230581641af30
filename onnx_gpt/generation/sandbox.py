"""The Jinja that chat templates run in: a stranger's program, which may read what it is given and waste little.

The environment is the one that transformers gives templates (trim_blocks, lstrip_blocks, loop controls, ``tojson``,
``raise_exception``, ``strftime_now``, ``generation`` blocks). jinja2's sandbox keeps a template from the rest of
Python; it stops neither nested loops nor ``'x' * 10**10``. So a rendering has a budget of work: whatever loops, reads
a value or makes one pays for it, in characters, and no value may be longer than any conversation. What could grow by
one operation is measured before that operation; the filters and methods that cannot be measured are not there.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_WORK = 200_000_000
"""Characters that one rendering may read and make: a conversation of a million takes a tenth, a second a thousandth."""
STEP = 1_000
"""What a loop's turn, a macro's call and an operation cost beside that."""
ITEM = 20
"""And each value within another, which takes longer to sort than a character to copy."""
MAX_LENGTH = 4_000_000
"""Characters of a value, all that is in it counted, and of the result: beyond any context."""
MAX_BITS = 1 << 16
"""Of a whole number."""
MAX_SOURCE = 1 << 20
"""Characters of a template; the longest that we know has twenty thousand."""

UNBOUNDED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
"""jinja2's, which take time that grows with the square of a text, or make of one what nobody can foresee."""
SORTING_FILTERS = ("dictsort", "groupby", "sort")
SORTING = 8
"""Filters that take so many times as long for a value as others do."""
SIZED_FILTERS = ("batch", "center", "slice")
"""Filters whose result is as long as a number says."""
OWN_ARGUMENTS = (jinja2.runtime.Context, nodes.EvalContext, jinja2.Environment)
"""What jinja2 itself gives a filter as its first argument, where that asks for it."""
UNBOUNDED_METHODS = ("center", "encode", "expandtabs", "ljust", "maketrans", "rjust", "translate", "zfill")
"""Of a text: as long as a number or a table says, or no text any more."""


class Environment(ImmutableSandboxedEnvironment):
    """Compiles templates, and holds the budget of the rendering that is under way: one at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self.work_left = MAX_WORK
        self.finalize = self.seen
        for name in UNBOUNDED_FILTERS:
            del self.filters[name]
        self.filters = {name: self._measured(name, filter) for name, filter in self.filters.items()}
        self.tests = {name: self._measured(name, cast(Any, test)) for name, test in self.tests.items()}
        self.filters |= {"tojson": self._to_json, SEEN: self.seen, COUNTED: _counted}
        del self.globals["lipsum"]  # text without end
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def begin(self) -> None:
        """A new rendering has the whole budget."""
        self.work_left = MAX_WORK

    def spend(self, work: int) -> None:
        """Raise where the rendering has cost more than any conversation's."""
        self.work_left -= work
        if self.work_left < 0:
            raise SecurityError("it takes more work than any conversation is worth")

    def seen(self, value: Any) -> Any:
        """The value, once what reading it takes has been paid for; one that no conversation holds is refused."""
        if isinstance(value, str):
            require_short(len(value))
            self.spend(len(value))
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise SecurityError(f"a number of more than {MAX_BITS} bits")
        elif isinstance(value, list | tuple | dict):
            self.spend(ITEM * _items(value))
        return value

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        self.spend(STEP)
        for value in (left, right):
            self.seen(value)
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    require_short(len(value) * times)
        if operator == "**" and not (abs(left) <= 1_000_000 and abs(right) <= 64):
            raise SecurityError("a power beyond 1000000 ** 64")
        if operator == "%" and isinstance(left, str):
            _require_short_format(left, "%", (right,))
        return self.seen(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, function: Any, *arguments: Any, **named: Any) -> Any:
        self.spend(STEP)
        for argument in (*arguments, *named.values()):
            self.seen(argument)
        of = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps format
        if isinstance(of, str):
            arguments = _measured_method(self.seen(of), function.__name__, arguments, named)
        elif isinstance(of, int | float | bytes):
            raise SecurityError(f"a method of a {type(of).__name__}")
        return self.seen(super().call(context, function, *arguments, **named))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Guards().visit(super()._parse(source, name, filename))
        return parsed

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that pays for what goes in and comes out; jinja2's marks (``pass_context``) are kept."""

        @functools.wraps(function)
        def measured(*arguments: Any, **named: Any) -> Any:
            self.spend(STEP)
            if name in SORTING_FILTERS:
                self.spend((SORTING - 1) * ITEM * _items(list(arguments)))
            for argument in (*arguments, *named.values()):
                self.seen(argument)
                if name in SIZED_FILTERS and isinstance(argument, int):
                    require_short(argument)
            own = int(isinstance(arguments[0], OWN_ARGUMENTS))
            values = arguments[own:]
            if name in ("replace", "join", "indent", "format"):
                values = _measured_filter(name, values, named)
            return self.seen(function(*arguments[:own], *values, **named))

        return measured

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: jinja2's own escapes HTML."""
        for argument in (value, indent, separators):
            self.seen(argument)
        if isinstance(indent, int):
            require_short(indent)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return "".join(map(self.seen, encoder.iterencode(value)))


SEEN, COUNTED = "__seen__", "__counted__"
"""Filters that the guards put into a template, which cannot put others in their place, as it could with variables."""


class _Guards(NodeTransformer):
    """Has loops and macros counted, and what is compared or written one after the other paid for."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2's visitor names methods so)
        return self._count(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._count(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_seen(part) for part in node.nodes]
        return _seen(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _seen(node.expr)
        for operand in node.ops:
            operand.expr = _seen(operand.expr)
        return node

    def _count(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        written = [part.data for part in node.find_all(nodes.TemplateData)]
        written += [part.value for part in node.find_all(nodes.Const) if isinstance(part.value, str)]
        self.generic_visit(node)
        cost = nodes.Const(STEP + sum(map(len, written)))
        node.body.insert(0, nodes.ExprStmt(_filtered(cost, COUNTED)).set_lineno(node.lineno))
        return node


def _seen(node: nodes.Expr) -> nodes.Filter:
    return _filtered(node, SEEN)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context  # which also keeps it from being folded
def _counted(context: jinja2.runtime.Context, cost: int) -> None:
    environment = context.environment
    assert isinstance(environment, Environment)
    environment.spend(max(cost, 0))  # a template may call it too


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: marks what training counts, and is its content otherwise."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# What one operation would make ---------------------------------------------------------------------------


def require_short(size: int) -> None:
    """Raise for so many characters, where they are more than any conversation has."""
    if size > MAX_LENGTH:
        raise SecurityError(f"a text of more than {MAX_LENGTH} characters")


def _items(value: Any) -> int:
    """Values within a value. Raises where they are longer than any conversation: one may be there many times."""
    items, size, waiting = 0, 0, [value]
    while waiting:
        one = waiting.pop()
        items += 1
        size += len(one) if isinstance(one, str | list | tuple | dict) else 1
        require_short(size)
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    return items


def _measured_method(
    text: str, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a text's method, which makes nothing too long of them."""
    if name in UNBOUNDED_METHODS:
        raise SecurityError(f"the method {name} of a text")
    if name == "replace" and len(arguments) > 1:
        _require_short_replacement(text, *arguments[:2])
    if name == "join" and arguments:
        return (_joinable(arguments[0], text),)
    if name in ("format", "format_map"):
        _require_short_format(text, "{", (*arguments, *named.values()))
    return arguments


def _measured_filter(name: str, values: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same of a filter: its value and arguments."""
    first, *others = values
    given = [*others, *named.values()]
    if name == "join":
        return (_joinable(first, next((one for one in given if isinstance(one, str)), "")), *others)
    text = str(first)
    if name == "replace" and len(given) > 1:
        _require_short_replacement(text, *given[:2])
    if name == "indent":
        wide = max((one if isinstance(one, int) else len(str(one)) for one in given), default=4)
        require_short(len(text) + wide * (1 + text.count("\n")))
    if name == "format":
        _require_short_format(text, "%", given)
    return values


def _require_short_replacement(text: str, old: object, new: object) -> None:
    require_short(len(text) + len(str(new)) * text.count(str(old)))


def _joinable(values: Any, separator: str) -> list[Any]:
    joined = list(values)
    require_short(len(separator) * len(joined))
    _items(joined)
    return joined


def _require_short_format(text: str, mark: str, arguments: Iterable[Any]) -> None:
    """Refuse widths of millions, or taken from an argument, and long values written many times."""
    if re.search(r"\d{7}|%[-+ #0]*\*|\{[^{}]*\{", text):
        raise SecurityError("a format with an unbounded width")
    longest = max((len(str(argument)) for argument in arguments), default=0)
    require_short(len(text) + longest * text.count(mark))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 100 or re.search(r"%[^%a-zA-Z]*\d", format):
        raise SecurityError("a format of times with a width, or without end")
    return datetime.datetime.now().strftime(format)
