"""What is loaded beside the weights: a tokenizer whose chat template writes one date on every day."""

import pytest
from transformers.utils import hub

import tiny
from staytrue.errors import ModelError
from staytrue.modeling import loading
from staytrue.utils.files import sha256_of

USER = [{"role": "user", "content": "a"}]


def loaded(folder, template):
    tiny.save("qwen2", folder)
    (folder / "chat_template.jinja").write_text(template + tiny.CHATML)
    return loading.load_tokenizer(loading.find(str(folder)))


LLAMA = (
    '{%- if date_string is not defined and strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- endif %}{{ 'Today: ' + date_string + '\\n' }}"
)


@pytest.mark.parametrize("template", ["{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}", LLAMA])
def test_a_date_in_the_template_is_the_same_on_every_day(tmp_path, template):
    tokenizer = loaded(tmp_path, template)
    assert loading.dated(tokenizer)
    rendered = tokenizer.apply_chat_template(USER, tokenize=False)
    assert rendered == "Today: 26 Jul 2024\n<|im_start|>user\na<|im_end|>\n"


def test_a_template_without_a_date_is_left_as_it_is(tmp_path):
    tokenizer = loaded(tmp_path, "")
    assert not loading.dated(tokenizer)
    assert tokenizer.chat_template == tiny.CHATML


def test_a_large_folder_is_hashed_once_in_a_process_and_again_when_a_file_changed(tmp_path, monkeypatch):
    folder, hashed = tiny.save("qwen2", tmp_path / "model"), []
    monkeypatch.setattr(loading, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    source = loading.find(str(folder))
    assert source.identity() == source.identity() == {"name": str(folder), "sha256": sha256_of(folder)}
    assert hashed == [folder]
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert source.identity()["sha256"] == sha256_of(folder)
    assert hashed == [folder, folder]


def test_a_model_that_is_not_in_the_cache_is_refused_at_once_where_the_hub_cannot_be_reached(monkeypatch):
    asked, find = [], hub.cached_file
    monkeypatch.setattr(hub, "cached_file", lambda place, name, **more: asked.append(name) or find(place, name, **more))
    with pytest.raises(ModelError, match="nowhere is no folder and not in the hub's cache, and the hub cannot be"):
        loading.load_tokenizer(loading.find("nowhere"))
    assert asked == ["config.json"]  # each further file would be tried for twenty seconds
