"""Which model is meant: the hash that identifies it, and a name that is in no cache."""

import pytest
from transformers.utils import hub

import tiny
from staytrue.errors import ModelError
from staytrue.modeling import model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.utils.files import sha256_of


def test_a_large_folder_is_hashed_once_in_a_process_and_again_when_a_file_changed(tmp_path, monkeypatch):
    folder, hashed = tiny.save("qwen2", tmp_path / "model"), []
    monkeypatch.setattr(model_source, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    source = model_source.find(str(folder))
    assert source.identity() == source.identity() == {"name": str(folder), "sha256": sha256_of(folder)}
    assert hashed == [folder]
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert source.identity()["sha256"] == sha256_of(folder)
    assert hashed == [folder, folder]


def test_a_model_that_is_not_in_the_cache_is_refused_at_once_where_the_hub_cannot_be_reached(monkeypatch):
    asked, find = [], hub.cached_file
    monkeypatch.setattr(hub, "cached_file", lambda place, name, **more: asked.append(name) or find(place, name, **more))
    with pytest.raises(ModelError, match="nowhere is no folder and not in the hub's cache, and the hub cannot be"):
        load_tokenizer(model_source.find("nowhere"))
    assert asked == ["config.json"]  # each further file would be tried for twenty seconds
