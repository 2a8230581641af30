"""What a hostile template could waste: time by long operations, memory by one operation, a compiler by nesting."""

from __future__ import annotations

import time
from typing import Any

import pytest

from exporter.errors import OnnxGptError
from onnx_gpt.generation.chat import ChatTemplate
from onnx_gpt.report import peak_rss_bytes

SPOKEN = [{"role": "user", "content": "hi"}]
LONG = "{% set s = 'a' * 3999999 %}"
LOOP = "{% for i in range(99999) %}"
DOUBLED = "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"

REFUSED = {
    "long operations in a loop": LONG + LOOP + "{% set t = s|upper %}{% endfor %}",
    "long methods in a loop": LONG + LOOP + "{% set t = s.upper() %}{% endfor %}",
    "long searches in a loop": LONG + LOOP + "{% if 'ab' in s %}x{% endif %}{% endfor %}",
    "sorting in a loop": "{% set s = range(99999)|list %}" + LOOP + "{% set t = s|sort %}{% endfor %}",
    "a block written often": "{% set x %}" + LOOP + "y" * 9999 + "{% endfor %}{% endset %}",
    "a macro's output": "{% macro m() %}" + LOOP + "{{ 'x' * 30000 }}{% endfor %}{% endmacro %}{{ m()|length }}",
    "squares": "{% set n = namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a list of itself twice, written": DOUBLED + "{{ n.x }}",
    "a list of itself twice, joined on": DOUBLED + "{{ 'a' ~ n.x }}",
    "a list of itself twice, compared": DOUBLED + "{% set y = n.x %}" + DOUBLED + "{{ n.x == y }}",
    "a list of itself twice, as JSON": DOUBLED + "{{ n.x|tojson }}",
    "replaced by more": "{{ ('a' * 3999999).replace('a', 'b' * 999) }}",
    "replaced by more, filter": "{{ ('a' * 3999999)|replace('a', 'b' * 999) }}",
    "joined by more": "{{ ('x' * 99999).join(range(99999)|map('string')) }}",
    "joined by more, filter": "{{ range(99999)|join('x' * 99999) }}",
    "indented by more": "{{ ('a\n' * 99999)|indent(99999) }}",
    "indented JSON": "{{ [[1]]|tojson(indent=10**9) }}",
    "formatted often": "{% set s = 'x' * 3999999 %}{{ ('{0}' * 999).format(s) }}",
    "formatted often by %": "{% set s = 'x' * 3999999 %}{{ ('%s' * 999) % ([s] * 999)|list }}",
    "bytes": "{{ 'a'.encode() }}",
    "a number's method": "{{ (5).to_bytes(10**9, 'big') }}",
    "wide times": "{{ strftime_now('%999999999Y') }}",
    "half a character in a name": "{{ nothing['\\ud800'].x }}",
}  # fmt: skip


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED.keys())
def test_a_template_wastes_little_before_it_is_refused(source: str) -> None:
    before, start = peak_rss_bytes(), time.process_time()
    with pytest.raises(OnnxGptError, match="chat-template-refused"):
        ChatTemplate(source).render(SPOKEN)
    assert time.process_time() - start < 20
    assert peak_rss_bytes() < before + (600 << 20)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "{% if true %}" * 120 + "{% endif %}" * 120,
        "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
        "a" * (2 << 20),
        "{{ 'a'|striptags }}",
    ],
    ids=["loops", "conditions", "parentheses", "length", "filter"],
)
def test_what_python_could_not_compile_is_no_template(source: str) -> None:
    with pytest.raises(OnnxGptError, match="chat-template-invalid"):
        ChatTemplate(source)


def test_every_rendering_has_the_whole_budget() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}x")
    assert [template.render(SPOKEN) for _ in range(3)] == ["x"] * 3


def test_a_conversation_of_a_million_characters_is_none_too_many() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' and messages|length > loop.index %}"
        "{{ '<' ~ m.role ~ '>' + m.content|trim + '\n' }}{% endif %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 200}] * 1000
    assert len(ChatTemplate(source).render(messages)) > 900_000


PARTS: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_parts_of_a_message_are_for_templates_that_know_them() -> None:
    """Others would write Python's spelling of a list into the prompt."""
    with pytest.raises(OnnxGptError, match="list of parts"):
        ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").render(PARTS)
    knows = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert ChatTemplate(knows).render(PARTS) == "hi"
