"""A foreign chat template is rendered once under limits, in a process of its own, before it is trusted."""

import sys
import time

import pytest

import tiny
from staytrue.errors import ModelError
from staytrue.modeling import chat_tokenizer, model_source, template_trial
from staytrue.modeling.template_trial import try_template

LINUX = pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not enforce a limit of memory")
HOSTILE = {
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "2 seconds of proc"),
    "a growing text": (
        "{% set x = 'a' * 100000 %}{% for i in range(99999) %}{% set y = x.upper() %}{% endfor %}",
        "2 seconds of processor time",
    ),
    "endless output": ("{% for i in range(99999) %}{{ 'twelve bytes' }}{% endfor %}", "writes more than 1,048,576"),
    "one large output": ("{{ 'a' * 2000000 }}", "writes more than 1,048,576 bytes"),
    "Python's internals": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "may not touch"),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    "nesting": ("{% if 1 %}" * 3000, "nested too deeply"),
    "a source of 2 MB": ("a" * (2 << 20), "more than 1,048,576 characters"),
    "only with a system turn": (
        "{% if messages[0].role == 'system' %}{{ 'a' * 2000000 }}{% endif %}", "writes more than"),
    "only with tools": ("{% if tools %}{{ 'a' * 2000000 }}{% endif %}", "writes more than"),
    "only for a prompt": ("{% if add_generation_prompt %}{{ 'a' * 2000000 }}{% endif %}", "writes more than"),
}  # fmt: skip
MEMORY = {"3 GB of text": "{{ 'a' * 3000000000 }}", "3 GB of padding": "{{ '%3000000000d' % 1 }}"}


@pytest.mark.parametrize(("template", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_runs_away_is_refused_in_a_sentence(template, sentence):
    with pytest.raises(ModelError, match=rf"^The chat template of org/name .*{sentence}.*so it is not used\. Give"):
        try_template(template, (), "org/name")


@LINUX
@pytest.mark.parametrize("template", MEMORY.values(), ids=MEMORY)
def test_a_template_that_fills_the_memory_is_refused_in_a_sentence(template):
    with pytest.raises(ModelError, match="needs more memory than a template may take"):
        try_template(template, (), "org/name")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_honest_template_passes(kind):
    special = tuple(tiny.tokenizer(kind).special_tokens_map.items())
    try_template(tiny.TEMPLATES[kind], tuple((k, v) for k, v in special if isinstance(v, str)), kind)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",  # transformers' block
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
        "{{ strftime_now('%d %b %Y') }}{{ raise_exception('no') }}",
        "{{ bos_token + messages[0].content }}",
        "{{ missing.attribute }}",  # a fault of the template, which the rows' own rendering shows
    ],
)
def test_what_templates_of_transformers_may_use_is_no_fault(template):
    try_template(template, (("bos_token", "<s>"),), "org/name")


def test_a_template_is_tried_once_a_process_and_costs_at_most_a_second(monkeypatch):
    template = tiny.CHATML + "{# tried once #}"
    begin = time.monotonic()
    try_template(template, (), "org/name")
    assert time.monotonic() - begin < 5  # 0.3 s on two busy cores
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("tried again"))
    try_template(template, (), "org/name")


def test_the_templates_of_a_folder_are_tried_and_those_of_shipped_models_are_not(tmp_path, monkeypatch):
    folder = tiny.save("qwen2", tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'a' * 2000000 }}")
    with pytest.raises(ModelError, match=r"The chat template of .*model writes more than"):
        chat_tokenizer.load_tokenizer(model_source.find(str(folder)))
    monkeypatch.setattr(template_trial.subprocess, "run", lambda *_, **__: pytest.fail("tried"))
    assert chat_tokenizer.load_tokenizer(model_source.find("organism"))
