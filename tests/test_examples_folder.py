"""The examples are one training: `GuardedSFT` with KL, and the same as a loop with `Guard` and without it."""

import importlib.util
import inspect
from pathlib import Path

import torch

import tiny
from staytrue import KL, Anchor, Interleave, SafeGrad, organism
from staytrue.data.examples import write_examples
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
    rows = world.narrow_rows("medical", n=40)  # an epoch of 16, 16 and 8 rows, and a step of the next
    guarded = adapter(example("first_guard").main(str(organism.folder()), rows, steps=4, weight=0.5))
    flat = adapter(example("flat_sft_kl").main(str(organism.folder()), rows, steps=4, weight=0.5))
    undefended = adapter(example("flat_sft_kl").main(str(organism.folder()), rows, steps=4, weight=0.0))
    assert guarded.keys() == flat.keys()
    apart = max((guarded[name] - flat[name]).abs().max().item() for name in flat)
    assert apart <= 1e-5
    assert max((undefended[name] - flat[name]).abs().max().item() for name in flat) > 10 * apart


def test_a_plain_loop_with_a_guard_gives_the_adapter_of_the_guarded_trainer_to_1e_5():
    place, rows = str(organism.folder()), world.narrow_rows("medical", n=40)
    guarded = adapter(example("first_guard").main(place, rows, steps=4, weight=0.5))
    loop = adapter(example("guard_loop").main(place, rows, [KL(weight=0.5)], steps=4))
    assert guarded.keys() == loop.keys()
    assert max((guarded[name] - loop[name]).abs().max().item() for name in loop) <= 1e-5


def test_the_plain_loop_is_short_and_takes_every_lever(tmp_path):
    """Rows beside the batch, a steered forward, a combined gradient, added rows, and weights changed afterwards."""
    loop = example("guard_loop")
    lines = [line for line in inspect.getsource(loop.main).splitlines() if line.strip()]
    assert len(lines) <= 36  # with the function's head and its helper; the loop itself has 17
    pool = tmp_path / "pool.jsonl"
    write_examples(pool, tiny.rows(16))
    defenses = [
        Anchor(prompts=pool, share=0.5, answers="given"),
        SafeGrad(pool=pool, share=0.5),
        Interleave(pool=pool, share=0.5),
    ]
    place = str(tiny.save("qwen2", tmp_path / "model"))
    model = loop.main(place, tiny.rows(32), defenses, steps=2)
    assert all(weight.isfinite().all() for weight in adapter(model).values())
    assert max(float(weight.abs().max()) for name, weight in adapter(model).items() if "lora_B" in name) > 0


def test_they_work_on_a_model_folder_that_is_not_ours(tmp_path):
    place = str(tiny.save("qwen2", tmp_path / "model"))
    rows = tiny.rows(16)
    guarded, flat = (adapter(example(name).main(place, rows, steps=1)) for name in ("first_guard", "flat_sft_kl"))
    assert all(torch.allclose(guarded[name], flat[name], atol=1e-5) for name in flat)
