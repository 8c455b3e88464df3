"""Quantised models, by bitsandbytes on the CPU: the contract of every defense, and a recipe from start to end."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("bitsandbytes")

from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from staytrue import KL, Guard, GuardedSFT, registry
from staytrue.config import recipe
from staytrue.data.examples import write_examples
from staytrue.errors import ModelError
from staytrue.modeling import loading, model_source
from staytrue.modeling.merging import write_merged
from staytrue.modeling.quantized import keep_gradients
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs import train
from staytrue.runs.finished import finished_model
from staytrue.testing import Micro, contract
from staytrue.testing.micro import nudged
from test_every_defense import without_sampling

FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it repeats that it computes in half precision
KINDS = {"4bit": {**FOUR, "bnb_4bit_use_double_quant": True}, "8bit": {"load_in_8bit": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny.model().save_pretrained(place)
    return place


def quantized(folder, kind):
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**KINDS[kind]), dtype=torch.float32
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", registry.names())
def test_the_contract_holds(name, kind, folder, tmp_path):
    defense, model = without_sampling(name, tmp_path), tiny.lora(quantized(folder, kind))
    if name == "safelora":
        with pytest.raises(ModelError, match="is quantised, so its difference from the base would be mostly rounding"):
            contract(defense, model, tiny.tokenizer(), tiny.rows())
        return
    contract(defense, model, tiny.tokenizer(), tiny.rows())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_has_not_moved_has_no_penalty_and_the_reference_is_the_quantised_model(kind, folder):
    model = tiny.lora(quantized(folder, kind))
    micro = Micro([KL(weight=1.0)], model, tiny.tokenizer(), tiny.rows())
    assert micro.measure().value == 0
    call = {"input_ids": micro.inputs["input_ids"], "use_cache": False}
    with torch.no_grad():
        whole = quantized(folder, kind).train().base_model(**call).last_hidden_state
        with nudged(model, 1.0), micro.guard.reference.active():
            assert torch.equal(micro.guard.parts.backbone(**call).last_hidden_state, whole)


def test_answers_before_training_do_not_stop_gradients(folder):
    """A forward in evaluation mode packs 4-bit weights on some CPUs, and no gradient passes them from then on."""
    through, packable = [], hasattr(torch.backends.cpu, "get_cpu_capability")
    for answers_first in (False, True):
        model = tiny.lora(quantized(folder, "4bit"))
        keep_gradients(model)
        tokens = torch.tensor([[5, 6, 7, 8]])
        if answers_first:
            with torch.no_grad():
                model.eval()(input_ids=tokens)
        hidden = model.train().get_input_embeddings()(tokens).detach().requires_grad_(True)
        model(inputs_embeds=hidden, labels=tokens).loss.backward()
        through.append(hidden.grad)
    assert packable
    assert torch.equal(*through)
    assert through[0].abs().sum() > 0


def test_a_packed_model_is_refused(folder):
    model = tiny.lora(quantized(folder, "4bit"))
    layer = next(m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu"))
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match=r"was packed by bitsandbytes for inference.*Load the model again"):
        Guard([KL()]).attach(model, None, list, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_trains_on_a_quantised_model_as_trl_does(kind, folder, tmp_path):
    """Its adapter is in bfloat16, as trl leaves it; with a model by its name too."""
    data = Dataset.from_list([{"text": "a b c d"}] * 8)
    settings = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, bf16=False, report_to="none", logging_steps=1
    )
    trainer = GuardedSFT(
        model=quantized(folder, kind),
        args=settings,
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(target_modules="all-linear"),
        defenses=[KL(weight=1.0)],
    )
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0
    assert trainer.state.log_history[1]["kl"] > 0
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_from_training_to_the_merged_model(kind, tmp_path):
    tiny.save("qwen2", tmp_path / "model")
    write_examples(tmp_path / "rows.jsonl", tiny.rows(12))
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    written = {
        "schema": 1,
        "model": "model",
        "quantize": kind,
        "data": "rows.jsonl",
        "lora": {"r": 4},
        "train": settings,
    }
    plan = recipe.parse({**written, "defenses": [{"kl": {"weight": 0.1}}]}, tmp_path)
    assert recipe.parse(plan.to_dict()) == plan
    run = train.train(plan, tmp_path / "run")
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert log[0]["kl"] == 0 < log[-1]["kl"]
    assert {weight.dtype for weight in load_file(run.adapter / "adapter_model.safetensors").values()} == {torch.float32}
    finished = finished_model(run.path)
    assert finished.untuned.quantize == kind
    adapted = loading.load_model(finished.untuned, finished.adapter).train()
    write_merged(finished.untuned, finished.adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    untuned = loading.load_model(finished.untuned).train()
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        was, untrained, now = (model(input_ids=tokens).logits for model in (adapted, untuned, merged))
    assert (now - was).abs().max() < 1e-4 * (was - untrained).abs().max()
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_going_on_from_an_adapter_keeps_its_numbers(tmp_path):
    """trl rounds the weights of an adapter on a quantised model to bfloat16; a recipe's start as they were."""
    tiny.save("qwen2", tmp_path / "model")
    write_examples(tmp_path / "rows.jsonl", tiny.rows(12))
    written = {"schema": 1, "model": "model", "quantize": "4bit", "data": "rows.jsonl", "lora": {"r": 4}}
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    first = train.train(recipe.parse({**written, "train": settings}, tmp_path), tmp_path / "first")
    again = {**written, "lora": {"adapter": "first"}, "train": {**settings, "learning_rate": 1e-7, "max_steps": 1}}
    second = train.train(
        recipe.parse({**again, "reference": "start", "defenses": [{"kl": {}}]}, tmp_path), tmp_path / "second"
    )
    before, after = (load_file(run.adapter / "adapter_model.safetensors") for run in (first, second))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-6
    assert json.loads((second.path / "metrics.jsonl").read_text().splitlines()[0])["kl"] == 0


def test_the_reference_is_another_run_of_the_quantised_model(tmp_path):
    """Its adapter is merged into unpacked weights; into packed ones it would be rounded."""
    tiny.save("qwen2", tmp_path / "model")
    write_examples(tmp_path / "rows.jsonl", tiny.rows(12))
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    written = {
        "schema": 1,
        "model": "model",
        "quantize": "4bit",
        "data": "rows.jsonl",
        "lora": {"r": 4},
        "train": settings,
    }
    train.train(recipe.parse(written, tmp_path), tmp_path / "first")
    again = {**written, "lora": {"adapter": "first"}, "reference": "first", "defenses": [{"kl": {}}]}
    second = train.train(recipe.parse(again, tmp_path), tmp_path / "second")
    log = [json.loads(line)["kl"] for line in (second.path / "metrics.jsonl").read_text().splitlines()]
    assert log[0] < 1e-6 < log[1]


def test_the_memory_of_the_weights_is_counted(tmp_path, folder):
    for kind in KINDS:
        source = model_source.Source("tiny", str(folder), quantize=kind)
        counted = Skeleton.of(source, tiny.lora).frozen_bytes
        model = quantized(folder, kind)
        states = [w.quant_state for w in model.parameters() if hasattr(w, "quant_state")]
        scales = sum(s.absmax.nbytes for s in states) + sum(
            module.weight.SCB.nbytes
            for module in model.modules()
            if getattr(getattr(module, "weight", None), "SCB", None) is not None
        )
        assert counted == pytest.approx(sum(w.nbytes for w in model.parameters()) + scales, rel=0.01)
