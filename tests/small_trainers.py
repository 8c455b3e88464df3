"""Guarded trainers of a tiny model, ready to train: `sft` and `grpo`."""

import itertools

from datasets import Dataset
from peft import LoraConfig
from torch.autograd.graph import saved_tensors_hooks
from transformers import PrinterCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

import tiny
from staytrue.config.trainer_args import recomputing
from staytrue.training.trainers import GuardedGRPO, GuardedSFT

_SETTINGS = {
    "max_steps": 2,
    "learning_rate": 0.1,
    "optim": "sgd",  # a step is the gradient itself, so equal gradients are seen as equal weights
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "seed": 0,
}


def stored_once(*_, **__):
    """Hooks that give each tensor that autograd saves back once, as those of trl's `activation_offloading` do."""
    kept, numbers = {}, itertools.count()

    def pack(tensor):
        number = next(numbers)
        kept[number] = tensor.detach()
        return number

    return saved_tensors_hooks(pack, kept.pop)


def messages(n=16):
    """Rows as a script has them."""
    rows = tiny.rows(n)
    return Dataset.from_list([{"messages": [{"role": m.role, "content": m.content} for m in r.messages]} for r in rows])


def sft(
    folder,
    defenses=(),
    data=None,
    cls=GuardedSFT,
    kind="qwen2",
    tokenizer=None,
    model=None,
    more=None,
    whole=False,
    **changes,
):
    """A supervised trainer; `more` are arguments of the trainer, `changes` those of its config.

    `whole` trains all weights, without an adapter.
    """
    given = {"output_dir": str(folder / "out"), "per_device_train_batch_size": 4, recomputing(SFTConfig): False}
    made = cls(
        model=tiny.model(kind) if model is None else model,
        args=SFTConfig(**_SETTINGS | given | changes),
        train_dataset=messages() if data is None else data,
        processing_class=tokenizer or tiny.tokenizer(kind),
        peft_config=None if whole else LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        **({} if cls is SFTTrainer else {"defenses": list(defenses)}),
        **(more or {}),
    )
    made.remove_callback(PrinterCallback)
    return made


def length(completions, **_):
    """The number of characters of a completion."""
    return [float(len(c[0]["content"])) for c in completions]


def grpo(
    folder,
    defenses=(),
    data=None,
    cls=GuardedGRPO,
    kind="qwen2",
    tokenizer=None,
    reward=length,
    model=None,
    more=None,
    whole=False,
    **changes,
):
    """A trainer by reward; `more` are arguments of the trainer, `changes` those of its config.

    `whole` trains all weights, without an adapter.
    """
    given = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        recomputing(GRPOConfig): False,
    }
    rows = [{"prompt": [{"role": "user", "content": f"question {i}?"}]} for i in range(8)]
    made = cls(
        model=tiny.model(kind) if model is None else model,
        reward_funcs=reward,
        args=GRPOConfig(**_SETTINGS | given | changes),
        train_dataset=Dataset.from_list(rows) if data is None else data,
        processing_class=tokenizer or tiny.tokenizer(kind),
        peft_config=None if whole else LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        defenses=list(defenses),
        **(more or {}),
    )
    made.remove_callback(PrinterCallback)
    return made
