"""Chat templates: what transformers renders is what we render, and a hostile template gets nowhere."""

import datetime
import itertools
import time

import pytest

from exporter.errors import OnnxGptError
from onnx_gpt.generation.chat import ChatTemplate, chat_template

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""``tokenizer.chat_template`` of SmolLM2-135M-Instruct."""

INSTRUCT = """{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = none %}
    {%- set turns = messages %}
{%- endif %}
{% for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- ' [INST] ' ~ (system ~ '\\n\\n' if system and loop.last else '') ~ message.content ~ ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ ' ' + message['content'].strip() + eos_token }}{% endgeneration %}
    {%- endif %}
{% endfor %}
"""
"""Alternating turns, in the manner of Mistral's."""

TOOLS = """{%- macro describe(tool, depth=0) -%}
    {{ '  ' * depth }}- {{ tool.name }}: {{ tool | tojson }}{{ "\\n" }}
    {%- for inner in tool.tools or [] %}{{ describe(inner, depth + 1) }}{% endfor %}
{%- endmacro -%}
{%- set ns = namespace(users=0, last='') -%}
{%- if tools %}{% for tool in tools %}{{ describe(tool) }}{% endfor %}{% endif -%}
Today: {{ strftime_now('%Y') }}
{% for message in messages %}
  {% if message.role == 'skip' %}{% continue %}{% endif %}
  {% if message.role == 'stop' %}{% break %}{% endif %}
  {% set ns.users = ns.users + (1 if message.role == 'user' else 0) %}
  {% set ns.last = message.content | default('', true) %}
<{{ message.role | upper }} {{ '%02d' % ns.users }}>{{ ns.last | replace('&', '+') }}
  {% for key, value in message.items() if key not in ('role', 'content') %}
{{ key }}={{ value }};
  {% endfor %}
{% endfor %}
{{- '<ASSISTANT>' if add_generation_prompt }}
"""
"""Macros, namespaces, loop controls, filters, tools."""

CHATS = [
    [{"role": "user", "content": "Hello & <b>goodbye</b>"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Why 🦆?"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " b\n"},
        {"role": "user", "content": "c", "name": "Ann"},
    ],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SPOKEN = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "source, chat, prompt", list(itertools.product([SMOLLM2, INSTRUCT, TOOLS], CHATS, [True, False]))
)
def test_renders_as_transformers_does(source, chat, prompt):
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    tools = [{"name": "t", "tools": [{"name": "é"}]}]
    if source is TOOLS:
        chat = [*chat[:1], {"role": "skip", "content": ""}, *chat[1:], {"role": "stop"}, {"role": "user"}]
    (theirs,), _ = utilities.render_jinja_template(
        [chat], tools, chat_template=source, add_generation_prompt=prompt, **TOKENS
    )
    ours = ChatTemplate(source, TOKENS).render(chat, add_generation_prompt=prompt, tools=tools)
    assert ours == theirs


def test_the_answer_is_left_to_the_model():
    text = ChatTemplate(SMOLLM2).render(SPOKEN)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert str(datetime.datetime.now().year) in ChatTemplate(TOOLS).render(SPOKEN)


HOSTILE = {
    "class of a string": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os }}",
    "globals through a filter": "{{ (raise_exception|attr('__globals__')).os }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "change of the messages": "{{ messages.append(1) }}",
    "endless range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops after meddling": "{% set __steps__ = 1 %}{% set __counted__ = 1 %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "branching recursion": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(90) }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for a in 'x' recursive %}{{ loop('x') }}{% endfor %}",
    "long product": "{{ 'x' * 10**10 }}",
    "long list": "{{ [1] * 10**10 }}",
    "large power": "{{ 9 ** 9 ** 9 }}",
    "doubling by ~": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by a filter": "{% set n = namespace(x=['a', 'a']) %}{% for i in range(99) %}"
    "{% set n.x = [n.x|join, n.x|join] %}{% endfor %}",
    "wide format": "{{ '%10000000000d' % 1 }}",
    "wide format of an argument": "{{ '%*d' % (10000000000, 1) }}",
    "wide format filter": "{{ '%10000000000d'|format(1) }}",
    "wide str.format": "{{ '{:>{w}}'.format(1, w=10000000000) }}",
    "wide str.format_map": "{{ '{:>10000000000}'.format_map({}) }}",
    "wide filter": "{{ 'a'|center(10000000000) }}",
    "wide method": "{{ 'a'.ljust(10000000000) }}",
    "wide filter in map": "{{ ['a']|map('center', 10000000000)|list }}",
    "long batch": "{{ [1]|batch(10000000000, 'x')|list }}",
    "long output": "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "budget given back": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% set x = (-1000000)|__counted__ %}{% endfor %}{% endfor %}",
    "nonsense of a library": "{{ lipsum(n=10**9) }}",
    "undefined": "{{ nothing.at.all }}",
    "own exception": "{{ raise_exception('roles must alternate') }}",
    "division by zero": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_in_little_time(source):
    start = time.process_time()
    with pytest.raises(OnnxGptError) as error:
        ChatTemplate(source).render(SPOKEN)
    assert error.value.code == "chat-template-refused"
    assert time.process_time() - start < 5


def test_large_numbers_that_are_no_sizes_are_fine():
    source = "{{ 1700000000|string }} {{ x|default(9999999) }} {{ '%d' % 10**9 }} {{ 2**40 }} {{ 10**9 * 3 }}"
    assert ChatTemplate(source).render(SPOKEN) == "1700000000 9999999 1000000000 1099511627776 3000000000"


def test_what_a_generation_block_sets_stays_inside():
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    assert utilities.render_jinja_template([SPOKEN], chat_template=source)[0] == ["21"]
    assert ChatTemplate(source).render(SPOKEN) == "21"


def test_keys_without_a_value_are_not_there():
    source = "{% for m in messages %}{{ 'calls' if 'tool_calls' in m else m.content }}{% endfor %}"
    assert ChatTemplate(source).render([{"role": "user", "content": "hi", "tool_calls": None}]) == "hi"


def test_the_exception_of_a_template_is_the_cause():
    with pytest.raises(OnnxGptError, match="roles must alternate"):
        ChatTemplate(INSTRUCT, TOKENS).render([{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize("message", [{"role": "user", "content": object()}, "not a message"])
def test_what_is_not_a_message_never_reaches_the_template(message):
    with pytest.raises(OnnxGptError, match="chat-template-refused"):
        ChatTemplate(SMOLLM2).render([message])


def test_bounds_are_for_each_rendering():
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}{{ messages|length }}")
    assert [template.render(SPOKEN) for _ in range(4)] == ["1"] * 4


def test_a_template_is_found_where_tokenizers_keep_it():
    tokens = {"bos_token": {"content": "<s>", "special": True}, "eos_token": None}
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}yes"}]
    assert chat_template({"chat_template": named, **tokens}, None).render(SPOKEN) == "<s>yes"
    assert chat_template({"chat_template": "text", **tokens}, None).render(SPOKEN) == "text"
    assert chat_template({"chat_template": "text"}, "jinja file").render(SPOKEN) == "jinja file"
    assert chat_template({}, None) is None


@pytest.mark.parametrize(
    "config", [{"chat_template": "{% for %}"}, {"chat_template": 3}, {"chat_template": [{"name": "x"}]}]
)
def test_a_broken_template_is_refused(config):
    with pytest.raises(OnnxGptError) as error:
        chat_template(config, None)
    assert error.value.code == "chat-template-invalid"
