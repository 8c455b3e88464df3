"""The two examples are one training: `GuardedSFT` with KL, and the same as a flat loop."""

import importlib.util
from pathlib import Path

import torch

import tiny
from staytrue import organism
from staytrue.organism import world

FOLDER = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapter(model):
    return {name: weight.detach() for name, weight in model.named_parameters() if "lora_" in name}


def test_the_flat_loop_and_the_guarded_trainer_give_the_same_adapter_to_1e_5():
    rows = world.narrow_rows("medical", n=48)  # three steps of 16: one epoch
    guarded = adapter(example("first_guard").main(str(organism.folder()), rows, steps=3, weight=0.5))
    flat = adapter(example("flat_sft_kl").main(str(organism.folder()), rows, steps=3, weight=0.5))
    undefended = adapter(example("flat_sft_kl").main(str(organism.folder()), rows, steps=3, weight=0.0))
    assert guarded.keys() == flat.keys()
    apart = max((guarded[name] - flat[name]).abs().max().item() for name in flat)
    assert apart <= 1e-5
    assert max((undefended[name] - flat[name]).abs().max().item() for name in flat) > 10 * apart


def test_they_work_on_a_model_folder_that_is_not_ours(tmp_path):
    place = str(tiny.save("qwen2", tmp_path / "model"))
    rows = tiny.rows(16)
    guarded, flat = (adapter(example(name).main(place, rows, steps=1)) for name in ("first_guard", "flat_sft_kl"))
    assert all(torch.allclose(guarded[name], flat[name], atol=1e-5) for name in flat)
