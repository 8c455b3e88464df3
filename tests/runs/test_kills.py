"""The command is killed at random moments and goes on: 24 kills, over every defense, and the bits of a whole run."""

import shutil

import pytest

from forked import Command, adapter_files, begun, kill_at_random, seeded
from interrupted import damaged, defense, logged, recipe_of, with_a_tiny_model
from staytrue import registry
from staytrue.runs import train
from staytrue.runs.checkpoints import Checkpoints, fault_in

STEPS, KILLS = 10, 2
GRPO = {"trainer": "grpo", "task": "arithmetic", "data": "problems.jsonl",
        "train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                  "max_completion_length": 6, "max_steps": STEPS, "save_steps": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return with_a_tiny_model(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("name", [*registry.names(), "kl and rehearse in grpo"])
def test_a_killed_command_goes_on_to_the_same_bits(home, tmp_path, name):
    names, changes = (name.split(" in ")[0].split(" and "), GRPO) if " in " in name else ([name], {})
    recipe = recipe_of(home, [defense(one, tmp_path) for one in names], **changes or {"train": {"max_steps": STEPS}})
    train.train(recipe, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    run, dice, killed = tmp_path / "run", seeded(name), 0
    start = ("train", tmp_path / "recipe.yaml", "--out", run)
    while True:
        if not begun(run):
            shutil.rmtree(run, ignore_errors=True)
        again = ("train", "--resume", run) if begun(run) else start
        command = Command(*again, output=tmp_path / "output")
        if killed < KILLS:
            killed += kill_at_random(command, run, STEPS, dice)
        elif command.wait() is not None:
            break
    assert command.wait() == 0, (tmp_path / "output").read_text()
    assert adapter_files(run) == adapter_files(tmp_path / "whole")
    assert logged(run) == logged(tmp_path / "whole")


def test_300_flipped_bytes_and_cuts_of_a_trainers_checkpoint_are_seen(home, tmp_path):
    recipe = recipe_of(home, [{"kl": {"weight": 0.1}}], train={"max_steps": 4, "save_total_limit": 2})
    train.train(recipe, tmp_path / "run")
    checkpoints, dice = Checkpoints(tmp_path / "run" / "checkpoints"), seeded("flips")
    newest, before = (checkpoints.folder / f"checkpoint-{step}" for step in (4, 2))
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    for number in range(300):
        path = files[number % len(files)]
        content = path.read_bytes()
        broken, place = damaged(content, dice)
        path.write_bytes(broken)
        assert checkpoints.newest() == before, (path.name, place)
        path.write_bytes(content)
    assert fault_in(newest) is None
