"""`staytrue chat` and `staytrue merge` on finished runs."""

import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

import tiny
from staytrue import cli
from staytrue.config import recipe
from staytrue.data.examples import Message, write_examples
from staytrue.errors import ModelError, RequestError, StaytrueError
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.merging import write_merged
from staytrue.runs import train
from staytrue.runs.chat import Chat

TRAIN = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}


def trained(folder, kind="qwen2", whole=False, **lora):
    """A finished run of a tiny model."""
    tiny.save(kind, folder / "model")
    write_examples(folder / "rows.jsonl", tiny.rows(12))
    written = {"schema": 1, "model": "model", "data": "rows.jsonl", "train": TRAIN}
    written["lora"] = "none" if whole else {"r": 4, **lora}
    return train.train(recipe.parse(written, folder), folder / "run")


@pytest.mark.parametrize("command", [["eval"], ["chat"], ["merge", "--out", "merged"]], ids=lambda command: command[0])
@pytest.mark.parametrize("lora", [{"r": 4}, "none"], ids=["adapter", "whole"])
def test_a_run_whose_trained_weights_are_gone_is_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys, command, lora
):
    run = trained(tmp_path, whole=lora == "none")
    shutil.rmtree(run.path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["staytrue", command[0], str(run.path), *command[1:]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "is missing, which the run trained. Restore it, or train again" in capsys.readouterr().err
    assert not (run.path / "eval").exists()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_merged_model_computes_what_model_and_adapter_do_in_plain_transformers(tmp_path, lora):
    run = trained(tmp_path, **lora)
    cli.app(["merge", str(run.path), "--out", str(tmp_path / "merged")], standalone_mode=False)
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    untuned = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    moved = logits(merged) - logits(untuned)
    adapted = PeftModel.from_pretrained(untuned, str(run.adapter))
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-4 * moved.abs().max()
    written, own = (AutoTokenizer.from_pretrained(str(tmp_path / name)) for name in ("merged", "model"))
    assert written.chat_template == own.chat_template
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged", "model", "rows.jsonl", "run"]  # no scratch is left


def test_a_merged_model_has_the_precision_of_the_models_own_files(tmp_path):
    folder = tiny.save("qwen2", tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(str(folder)).to(torch.bfloat16).save_pretrained(str(folder))
    adapter = tiny.lora(AutoModelForCausalLM.from_pretrained(str(folder)))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    write_merged(model_source.find(str(folder)), tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"), dtype="auto")
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            r"cannot be written to .*, where .* free: .*No space left",
        ),
        (
            ValueError("the generation config is invalid"),  # no full disk
            r"cannot write the model: the generation config is invalid\. Nothing",
        ),
    ],
    ids=["full", "refused"],
)
def test_a_fault_while_a_merged_model_is_written_is_a_sentence_and_nothing_is_kept(
    tmp_path, monkeypatch, fault, sentence
):
    def fail(*args, **named):
        raise fault

    folder = tiny.save("qwen2", tmp_path / "model")
    tiny.lora(AutoModelForCausalLM.from_pretrained(str(folder))).save_pretrained(str(tmp_path / "adapter"))
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(StaytrueError, match=sentence) as found:
        write_merged(model_source.find(str(folder)), tmp_path / "adapter", tmp_path / "merged")
    assert (f"written to {tmp_path}, where" in str(found.value)) is isinstance(fault, SafetensorError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


TIED = [
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens"]},
    {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
]


@pytest.mark.parametrize("changed", TIED, ids=str)
def test_a_head_that_shares_the_embeddings_weight_is_merged_apart_from_it(tmp_path, changed):
    settings = tiny.model("qwen2").config
    settings.tie_word_embeddings = True
    folder = tmp_path / "model"
    Qwen2ForCausalLM(settings).save_pretrained(str(folder))
    tiny.tokenizer("qwen2").save_pretrained(str(folder))
    lora = LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | changed)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(str(folder)), lora)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    untuned = AutoModelForCausalLM.from_pretrained(str(folder))
    write_merged(model_source.find(str(folder)), tmp_path / "adapter", tmp_path / "merged")
    ours = logits(AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged")))
    moved = (logits(adapted) - logits(untuned)).abs().max()
    assert (ours - logits(adapted)).abs().max() < 1e-4 * moved


def test_weights_that_are_not_finite_are_not_merged(tmp_path):
    run = trained(tmp_path)
    file = run.adapter / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(str(file)).items()}, str(file))
    with pytest.raises(ModelError, match=r"The adapter .*model cannot be merged: NaNs detected"):
        cli.app(["merge", str(run.path), "--out", str(tmp_path / "merged")], standalone_mode=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("command", [["chat"], ["merge", "--out", "merged"], ["eval"]], ids=lambda words: words[0])
def test_an_unfinished_run_and_a_changed_model_are_refused(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path)
    words = [command[0], str(run.path), *command[1:]]
    manifest = run.path / "manifest.json"
    done = manifest.read_text()
    manifest.write_text(done.replace('"state": "done"', '"state": "stopped"'))
    with pytest.raises(RequestError, match=r"is stopped, not done.*staytrue train --resume"):
        cli.app(words, standalone_mode=False)
    manifest.write_text(done)
    tiny.model("qwen2").to(torch.bfloat16).save_pretrained(str(tmp_path / "model"))
    with pytest.raises(RequestError, match=r"have changed since .* was trained"):
        cli.app(words, standalone_mode=False)
    assert not (tmp_path / "merged").exists()


def test_each_side_of_a_chat_answers_as_its_model_and_remembers_its_own_answers(tmp_path):
    run = trained(tmp_path)
    source = model_source.find(str(tmp_path / "model"))
    tokenizer = load_tokenizer(source)
    models = loading.load_model(source), loading.load_model(source, run.adapter)
    chat = Chat(loading.load_model(source, run.adapter), tokenizer, "be kind", temperature=0, max_new_tokens=5)
    histories = [[Message("system", "be kind")], [Message("system", "be kind")]]
    for text in ("question 1?", "and question 2?"):
        answers = chat.reply(text)
        for model, history, answer in zip(models, histories, answers, strict=True):
            history.append(Message("user", text))
            assert greedy(model, tokenizer, history) == answer
            history.append(Message("assistant", answer))
    assert histories[0] != histories[1]  # the adapter changes what is said
    chat.begin()
    assert chat.reply("question 1?") == (histories[0][2].content, histories[1][2].content)


def greedy(model, tokenizer, messages):
    turns = [message.to_dict() for message in messages]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, do_sample=False, max_new_tokens=5)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def test_the_command_reads_turns_until_the_end_of_its_input(tmp_path):
    run = trained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "staytrue.cli", "chat", str(run.path), "--max-new-tokens", "4"],
        input=b"question 1?\n\n/new\nquestion \xff?\n",  # the last is no UTF-8
        capture_output=True,
        check=True,
    )
    shown = done.stdout.decode()
    assert shown.count("untuned:") == 2
    assert shown.count(f"{run.path}:") == 2
    assert b"A new conversation." in done.stderr
    waits = [f"chat {run.path.name}: loading the libraries", f"chat {run.path.name}: loading {tmp_path / 'model'}"]
    assert done.stderr.decode().splitlines()[:2] == waits
