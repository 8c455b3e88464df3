"""A script on two processes goes on from trl's own checkpoint with the weights and log of one that never stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig

from staytrue import registry
from test_every_defense import without_sampling

HERE = Path(__file__).parent
GIVEN = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.05, "optim": "adamw_torch",
         "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo",
         "save_total_limit": 9}  # fmt: skip
DROPOUT = {"r": 4, "lora_dropout": 0.3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def one_of_two(folder):
    """Train each case, train it again from the checkpoint of step 3, and compare; as one of the two processes."""
    from test_trainers import logged, trainer, weights  # from this folder, which is on this process's path

    PartialState(backend="gloo")
    for name, defenses in torch.load(folder / "cases", weights_only=False).items():
        place = folder / name
        whole = trainer(place, defenses, lora=LoraConfig(**DROPOUT), **GIVEN)
        whole.train()
        torch.manual_seed(99 + torch.distributed.get_rank())
        again = trainer(place, defenses, lora=LoraConfig(**DROPOUT), **GIVEN)
        again.train(resume_from_checkpoint=str(place / "out" / "checkpoint-3"))
        assert torch.equal(weights(whole), weights(again)), name
        for key in ("loss", "task_loss", name):
            assert logged(again, key) == logged(whole, key), (name, key)


@pytest.mark.parametrize("names", ["rehearse kl", pytest.param(" ".join(registry.names()), marks=pytest.mark.slow)])
def test_a_script_goes_on_with_each_defense(tmp_path, names):
    cases = {"none": []} | {name: [without_sampling(name, tmp_path)] for name in names.split()}
    torch.save(cases, tmp_path / "cases")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # all is asserted; a library's thread may abort the interpreter's own end
