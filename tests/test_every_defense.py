"""The contract: every file in `defenses/` passes it, found by folder, before its author writes a test."""

import dataclasses
import gc
import importlib.util
import inspect
import itertools
import typing
import weakref
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import tiny
from staytrue import docs_page, registry
from staytrue.config import recipe
from staytrue.data.examples import write_examples
from staytrue.defense import Defense, pulled
from staytrue.errors import ModelError
from staytrue.modeling.base_model import Untouched
from staytrue.testing import Micro, alike, cases, contract, together, trained, two_processes
from staytrue.testing.training import guarded_trainer
from staytrue.training.guard import Guard


def pytest_generate_tests(metafunc):
    """One test for each defense, each pair of two, and all of them; `--defense NAME` selects one."""
    every = registry.names()
    chosen = metafunc.config.getoption("--defense") or every
    for name in chosen:
        registry.find(name)  # refuses an unknown one
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", chosen)
    if "pair" in metafunc.fixturenames:
        pairs = [p for p in itertools.combinations_with_replacement(every, 2) if set(p) & set(chosen)]
        metafunc.parametrize("pair", pairs, ids="+".join)
    if "names" in metafunc.fixturenames:  # one launch of processes for all; -k with a defense's name leaves it out
        metafunc.parametrize("names", [chosen], ids=["all" if chosen == every else "chosen"])


def sample(name: str, folder: Path, kind: str = "qwen2") -> Defense:
    """A defense with its defaults; a file it needs is a few rows, or what `sample` in its own test file says."""
    test_file = Path(__file__).parent / "defenses" / f"test_{name}.py"
    if test_file.exists():
        spec = importlib.util.spec_from_file_location(f"sample_{name}", test_file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "sample"):
            fits = "kind" in inspect.signature(module.sample).parameters  # its file is for one kind of model
            return module.sample(folder, kind) if fits else module.sample(folder)
    cls = registry.find(name)
    hints = typing.get_type_hints(cls)
    needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    assert all(hints[field] is Path for field in needed), f"give tests/defenses/test_{name}.py a sample(folder)"
    for field in needed:
        write_examples(folder / f"{field}.jsonl", tiny.rows(12))
    return registry.make(name, {field: folder / f"{field}.jsonl" for field in needed})


def without_sampling(name: str, folder: Path, kind: str = "qwen2") -> Defense:
    """The same with the answers of its file, where another test has it sample them."""
    defense = sample(name, folder, kind)
    return dataclasses.replace(defense, answers="given") if getattr(defense, "answers", None) == "sampled" else defense


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_the_contract_holds(name, kind, tmp_path):
    defense = (sample if kind == "qwen2" else without_sampling)(name, tmp_path, kind)
    contract(defense, tiny.lora(tiny.model(kind)), tiny.tokenizer(kind), tiny.rows())


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_the_contract_holds_with_all_weights(name, kind, tmp_path):
    defense = without_sampling(name, tmp_path, kind)
    if name == "safelora":
        with pytest.raises(ModelError, match="projects the update of a LoRA adapter, and this training has none"):
            contract(defense, tiny.model(kind), tiny.tokenizer(kind), tiny.rows())
        return
    contract(defense, tiny.model(kind), tiny.tokenizer(kind), tiny.rows())


def test_two_defenses_take_one_step_together(pair, tmp_path):
    defenses = [without_sampling(name, tmp_path) for name in pair]
    if pair == ("inoculate", "inoculate"):  # the same prompt a second time is refused
        defenses[1] = dataclasses.replace(defenses[1], prompt="Be bad.")
    together(defenses, tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows())


def test_all_defenses_take_one_step_together_with_all_weights(tmp_path):
    defenses = [without_sampling(name, tmp_path) for name in registry.names() if name != "safelora"]
    together(defenses, tiny.model(), tiny.tokenizer(), tiny.rows())


def test_one_process_equals_two(names, tmp_path):
    model, tokenizer, rows = tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows()
    every = {case: [one] for name in names for case, one in cases(sample(name, tmp_path)).items()}
    if len(names) > 1:
        every["all together"] = [one for defenses in every.values() for one in defenses]
    for case, two in two_processes(every, model, tokenizer, rows).items():
        suspects = case if len(every[case]) == 1 else f"{case} ({', '.join(names)})"  # each passed by itself before
        alike(trained(every[case], model, tokenizer, rows), two, f"{suspects}: one process and two")


def test_one_process_equals_two_with_all_weights(names, tmp_path):
    model, tokenizer, rows = tiny.model(), tiny.tokenizer(), tiny.rows()
    alone = [name for name in names if name in ("kl", "safegrad", "l2init", "steer")]
    every = {name: [without_sampling(name, tmp_path)] for name in alone}
    for case, two in two_processes(every, model, tokenizer, rows).items() if every else ():
        alike(trained(every[case], model, tokenizer, rows), two, f"{case}: one process and two")


class CountTensors(TrainerCallback):
    """Counts the tensors that are left after each step."""

    def __init__(self):
        self.left = []

    def on_step_end(self, *arguments, **named):
        gc.collect()
        self.left.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))


def train_once(defense, folder):
    """Train six steps; the tensors after each, and what is left of the model and the guard."""
    model, guard, counter = tiny.lora(tiny.model()), Guard([defense]), CountTensors()
    examples = guard.curate(tiny.rows(48), Untouched(lambda: model, tiny.tokenizer()))
    trainer = guarded_trainer(guard, model, tiny.tokenizer(), examples, folder, max_steps=6, logging_steps=1)
    trainer.add_callback(counter)
    trainer.train()
    guard.detach()
    return counter.left, weakref.ref(model), weakref.ref(guard)


def test_no_step_leaves_its_states_in_memory_and_a_training_that_has_ended_is_freed(name, tmp_path):
    """A cycle through autograd's graph, such as a hook that knows its own tensor, is never freed."""
    left, model, guard = train_once(without_sampling(name, tmp_path), tmp_path)
    gc.collect()
    assert max(left[3:]) <= max(left[:3]), left
    assert model() is guard() is None


def test_with_every_other_defense_there_is_one_reference(name, tmp_path):
    others = [without_sampling(other, tmp_path) for other in registry.names() if other != name]
    micro = Micro([without_sampling(name, tmp_path), *others], tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(20))
    micro.penalty()
    sides = micro.forwards["trained"] - 1
    assert sides <= 1  # all side rows of all defenses share one forward
    assert micro.forwards["reference"] <= 1 + sides


def test_recipe_to_object_to_recipe_is_the_identity(name, tmp_path):
    defense = sample(name, tmp_path)
    plain = {"schema": 1, "model": "organism", "data": "d.jsonl", "lora": {}, "defenses": [registry.to_dict(defense)]}
    read = recipe.parse(plain)
    assert read.defenses == (defense,)
    assert recipe.parse(read.to_dict()) == read


def test_it_is_final_frozen_and_documented(name, tmp_path):
    kind = registry.find(name)
    assert kind.__mro__[1] is Defense, f"{name} inherits from another defense"
    assert kind.__dataclass_params__.frozen
    levers = pulled(kind)
    assert levers
    for field in dataclasses.fields(kind):
        assert f"    {field.name}: " in kind.__doc__, f"the field {field.name} of {name} is not described"
    doc = importlib.import_module(kind.__module__).__doc__
    for part in ("What:", "Cost:", "Not done here"):
        assert part in doc, f"the docstring of {name} does not say {part}"
    assert "weight" in vars(sample(name, tmp_path)) or "penalty" not in levers
    assert f"## `{name}`" in docs_page.page()
    assert all(entry.meaning for entry in docs_page.entries(kind))
