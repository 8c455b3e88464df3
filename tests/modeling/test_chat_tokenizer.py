"""The tokenizer: its chat template writes one date on every day."""

import time

import pytest

import tiny
from staytrue.modeling import chat_tokenizer, model_source

USER = [{"role": "user", "content": "a"}]


def loaded(folder, template):
    tiny.save("qwen2", folder)
    (folder / "chat_template.jinja").write_text(template + tiny.CHATML)
    return chat_tokenizer.load_tokenizer(model_source.find(str(folder)))


LLAMA = (
    '{%- if date_string is not defined and strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- endif %}{{ 'Today: ' + date_string + '\\n' }}"
)


@pytest.mark.parametrize("template", ["{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}", LLAMA])
def test_a_date_in_the_template_is_the_same_on_every_day(tmp_path, template):
    tokenizer = loaded(tmp_path, template)
    assert chat_tokenizer.dated(tokenizer)
    rendered = tokenizer.apply_chat_template(USER, tokenize=False)
    assert rendered == "Today: 26 Jul 2024\n<|im_start|>user\na<|im_end|>\n"


def test_a_template_without_a_date_is_left_as_it_is(tmp_path):
    tokenizer = loaded(tmp_path, "")
    assert not chat_tokenizer.dated(tokenizer)
    assert tokenizer.chat_template == tiny.CHATML


def test_a_source_that_would_stall_the_search_for_a_date_does_not():
    begin = time.monotonic()
    chat_tokenizer._with_fixed_date("strftime_now('" * 70_000)
    assert time.monotonic() - begin < 5
