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
GIVEN = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05, "optim": "adamw_torch",
         "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo",
         "save_total_limit": 9}  # fmt: skip
DROPOUT = {"r": 4, "lora_dropout": 0.3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


GRPO = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 4,
        "ddp_backend": "gloo", "save_total_limit": 9}  # fmt: skip


def one_of_two(folder, kind):
    """Train each case, train it again from a checkpoint, and compare; as one of the two processes.

    With SFT an epoch is three steps, and a training goes on within the first one and at its end, past it.
    """
    from importlib import import_module

    tests = import_module({"sft": "test_trainers", "grpo": "test_grpo"}[kind])  # from this folder
    settings = {"lora": LoraConfig(**DROPOUT), **GIVEN} if kind == "sft" else GRPO
    PartialState(backend="gloo")
    for name, defenses in torch.load(folder / "cases", weights_only=False).items():
        place = folder / name
        whole = tests.trainer(place, defenses, **settings)
        whole.train()
        for step in (2, 3) if kind == "sft" else (3,):
            torch.manual_seed(99 + torch.distributed.get_rank())
            again = tests.trainer(place, defenses, **settings)
            again.train(resume_from_checkpoint=str(place / "out" / f"checkpoint-{step}"))
            assert torch.equal(tests.weights(whole), tests.weights(again)), (name, step)
            for key in ("loss", "task_loss", name):
                assert tests.logged(again, key) == tests.logged(whole, key), (name, step, key)


ALL = pytest.param("sft", " ".join(registry.names()), marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "names"), [("sft", "rehearse kl"), ("grpo", "rehearse kl"), ALL])
def test_a_script_goes_on_with_each_defense(tmp_path, kind, names):
    cases = {"none": []} | {name: [without_sampling(name, tmp_path)] for name in names.split()}
    torch.save(cases, tmp_path / "cases")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])}
    done = subprocess.run([*command, str(tmp_path), kind], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]), sys.argv[2])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # all is asserted; a library's thread may abort the interpreter's own end
