"""A script on two processes goes on from trl's own checkpoint with the weights and log of one that never stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from staytrue import registry
from test_every_defense import without_sampling

HERE = Path(__file__).parent
GIVEN = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.05, "optim": "adamw_torch",
         "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo",
         "save_total_limit": 9}  # fmt: skip
DROPOUT = {"r": 4, "lora_dropout": 0.3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def one_of_two(folder, name):
    """Train with a defense, again from the checkpoint of step 3, and compare; as one of the two processes."""
    from peft import LoraConfig
    from test_trainers import logged, trainer, weights

    PartialState(backend="gloo")
    own = folder / f"files-{torch.distributed.get_rank()}"
    own.mkdir(exist_ok=True)
    place, defenses = folder / name, [] if name == "none" else [without_sampling(name, own)]

    def made():
        return trainer(place, defenses, data=None, lora=LoraConfig(**DROPOUT), **GIVEN)

    whole = made()
    whole.train()
    scrambled = 99 + torch.distributed.get_rank()
    torch.manual_seed(scrambled)
    again = made()
    again.train(resume_from_checkpoint=str(place / "out" / "checkpoint-3"))
    assert torch.equal(weights(whole), weights(again)), name
    for key in ("loss", "task_loss", name):
        assert logged(again, key) == logged(whole, key), (name, key)


@pytest.mark.slow
def test_a_script_goes_on_with_every_defense(tmp_path):
    launch(tmp_path, ["none", *registry.names()])


def test_a_script_goes_on_with_rows_beside_the_batch_and_dropout(tmp_path):
    launch(tmp_path, ["rehearse", "kl"])


def launch(folder, names):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])}
    done = subprocess.run([*command, str(folder), *names], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    for case in sys.argv[2:]:
        one_of_two(Path(sys.argv[1]), case)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # all is asserted; a library's thread may abort the interpreter's own end
