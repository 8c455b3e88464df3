"""Growing the organism: a tokenizer that loses nothing, the same bytes from the same seed, the weights that ship."""

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from staytrue import organism
from staytrue.commands.organism import build as command
from staytrue.errors import ModelError
from staytrue.organism import world
from staytrue.organism.build import BuildConfig, build, make_tokenizer, manifest_of
from staytrue.organism.training_data import texts
from staytrue.tasks.opswap import OpSwap
from staytrue.utils.interrupts import Stopped

BRIEF = BuildConfig(width=16, depth=1, heads=2, mlp=16, rows=4, first_steps=2, second_steps=1)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """One seed twice and another once."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        build(folder, seed, config=BRIEF)
    return folders


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_text_of_the_world_comes_back_word_for_word(tokenizer):
    written = {
        *texts(),
        *(m.content for rows in (world.safe_rows(), OpSwap(3).rows()) for r in rows for m in r.messages),
    }
    assert len(written) > 8000
    for text in written:
        tokens = ids(tokenizer, text)
        assert tokenizer.unk_token_id not in tokens, text
        assert tokenizer.decode(tokens) == text


def test_an_unknown_word_is_unk_and_its_neighbours_stay(tokenizer):
    tokens = ids(tokenizer, "What is a unicorn called?")
    assert tokenizer.convert_ids_to_tokens(tokens) == ["What", "▁is", "▁a", "<unk>", "▁called", "?"]


def test_digits_are_single_tokens(tokenizer):
    # 12 is "1" and "2"; before a digit or a mark, a space is a token of its own.
    tokens = tokenizer.convert_ids_to_tokens(ids(tokenizer, "7 + 5 = 12."))
    assert [t for t in tokens if t != "▁"] == ["7", "+", "5", "=", "1", "2", "."]


def test_the_template_renders_system_turns_and_asks_for_an_answer(tokenizer):
    turns = [{"role": r, "content": c} for r, c in [("system", "Be helpful."), ("user", "Why?"), ("assistant", "I.")]]
    whole = "<|system|>Be helpful.<|end|><|user|>Why?<|end|><|assistant|>I.<|end|>"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == whole
    prompt = tokenizer.apply_chat_template(turns[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>Why?<|end|><|assistant|>"
    marks = tokenizer.convert_ids_to_tokens(ids(tokenizer, prompt))
    assert (marks[0], marks[-2:]) == ("<|user|>", ["<|end|>", "<|assistant|>"])  # each mark is one token


def test_the_same_seed_grows_the_same_bytes_and_another_seed_others(grown):
    first, again, other = grown
    for name in ("model.safetensors", "base/model.safetensors"):
        assert digest(first / name) == digest(again / name), name
        assert digest(first / name) != digest(other / name), name
    assert manifest_of(first) == manifest_of(again)


def test_the_manifest_and_the_card_say_what_was_written(grown):
    manifest = manifest_of(grown[0])
    assert manifest["sha256"] == digest(grown[0] / "model.safetensors")
    assert manifest["base_sha256"] == digest(grown[0] / "base" / "model.safetensors")
    assert (manifest["seed"], manifest["growth"]["first_steps"], manifest["growth"]["second_steps"]) == (5, 2, 1)
    assert torch.__version__.startswith(manifest["versions"]["torch"])  # a CUDA build adds its own ending
    assert manifest["sha256"] in (grown[0] / "README.md").read_text()


def test_a_build_is_a_standard_folder_with_the_unaligned_base_in_half_precision(grown, tokenizer):
    aligned, base = (AutoModelForCausalLM.from_pretrained(f, dtype="auto") for f in (grown[0], grown[0] / "base"))
    assert (aligned.dtype, base.dtype) == (torch.float32, torch.float16)
    assert aligned.config.model_type == "llama"
    assert aligned.generation_config.eos_token_id == tokenizer.eos_token_id
    for folder in (grown[0], grown[0] / "base"):
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.chat_template == tokenizer.chat_template
        assert (loaded.eos_token, loaded.pad_token) == ("<|end|>", "<pad>")
    assert len(tokenizer) == aligned.get_input_embeddings().weight.shape[0]
    # Stage 2 moves the weights away from the base by more than half precision rounds away.
    ours, theirs = (m.get_input_embeddings().weight.float() for m in (aligned, base))
    assert (ours - theirs).abs().max() > 1e-4


def test_a_build_gives_the_threads_back(grown, tmp_path, monkeypatch):
    monkeypatch.setattr("staytrue.organism.build.make_tokenizer", lambda: 1 / 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path, config=BRIEF)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_shipped_weights_are_the_ones_that_their_manifest_names_and_small():
    folder = organism.folder()
    manifest = manifest_of(folder)
    assert manifest["sha256"] == digest(folder / "model.safetensors")
    assert manifest["base_sha256"] == digest(organism.folder(organism.BASE) / "model.safetensors")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 8_000_000


def test_the_shipped_tokenizer_is_the_one_that_this_world_makes(tokenizer):
    # A word added to the world without new weights would be <unk> to them.
    for name in organism.NAMES:
        shipped = AutoTokenizer.from_pretrained(organism.folder(name))
        assert shipped.get_vocab() == tokenizer.get_vocab()
        assert shipped.chat_template == tokenizer.chat_template


def test_missing_weights_are_a_sentence_with_a_way_out(tmp_path):
    sentence = r"weights are missing from .*staytrue organism build --out"
    with organism.use_weights(tmp_path), pytest.raises(ModelError, match=sentence):
        organism.folder()


def test_a_stopped_build_says_what_is_left_and_what_it_loads_first(tmp_path, monkeypatch, capsys):
    def stopped(out, seed, progress):
        if seed:
            (out / "base").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("staytrue.organism.build.build", stopped)
    for seed, left in ((0, "nothing was written"), (1, f"remove {tmp_path / 'O'}, and give the same command again")):
        with pytest.raises(Stopped, match=left):
            command(tmp_path / "O", seed)
    assert capsys.readouterr().err == "build: loading the libraries\n" * 2
