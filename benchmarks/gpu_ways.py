"""The ways to make a training step on a device: the trainers as they are, and two loops that have none."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu_plan import Item
from benchmarks.published import Published
from benchmarks.shapes import SHAPES, SIDE_SHARE, SIDE_TOKENS, Shape, batch, model, move
from benchmarks.step import CACHED, VARIANTS
from staytrue.config.trainer_args import recomputing
from staytrue.defenses.anchor import Anchor
from staytrue.step import SOURCE_COLUMN
from staytrue.training.trainers import GuardedSFT


def size(item: Item) -> Shape:
    """The item's shape with its rows."""
    return replace(SHAPES[item.shape], rows=item.rows)


@dataclass
class Taken:
    """Seconds of each step, and memory in bytes: the peak, and what is there before a step."""

    seconds: list[float]
    peak: int
    resident: int


class Clock:
    """Stamps the end of each step; memory counts from the last step that only warms up."""

    def __init__(self, item: Item) -> None:
        self._item, self._stamps, self._resident = item, list[float](), 0
        self._cuda = item.device == "cuda"

    def tick(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._stamps.append(time.perf_counter())
        if len(self._stamps) == self._item.warm and self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._resident = torch.cuda.memory_allocated()

    def taken(self) -> Taken:
        stamps = self._stamps[self._item.warm - 1 :]
        seconds = [later - earlier for earlier, later in pairwise(stamps)]
        return Taken(seconds, torch.cuda.max_memory_allocated() if self._cuda else 0, self._resident)


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *args, **kwargs) -> None:
        self._clock.tick()


def trained(item: Item) -> Taken:
    """Through the trainer's own `train()`."""
    folder, clock = Path(tempfile.mkdtemp()), Clock(item)
    one = {name: column.tolist() for name, column in batch(size(item)).items() if name != "attention_mask"}
    rows = Dataset.from_dict({name: column * (item.warm + item.steps) for name, column in one.items()})
    arguments = {"args": _args(item, folder), "train_dataset": rows, "processing_class": _tokenizer()}
    if item.variant != "trl-sft":
        arguments["defenses"] = _defenses(item, folder)
    if item.variant == CACHED:  # every step has the same rows, so the first one stands for another run
        arguments["reference_cache"] = folder / "states"
    kind = SFTTrainer if item.variant == "trl-sft" else GuardedSFT
    # The adapter must start where its reference is; moved afterwards, as it is in all but the first step.
    trainer = kind(model=model(size(item), False, item.device, torch.bfloat16), **arguments)
    move(trainer.model)
    trainer.add_callback(_Ticks(clock))
    trainer.train()
    return clock.taken()


def _args(item: Item, folder: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        report_to="none",
        use_cpu=item.device == "cpu",
        bf16=True,
        per_device_train_batch_size=item.rows,
        gradient_accumulation_steps=1,
        max_steps=item.warm + item.steps,
        learning_rate=1e-4,
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{recomputing(SFTConfig): item.checkpointing},
    )


def _defenses(item: Item, folder: Path) -> list:
    anchored = item.variant in ("anchor", "all-and-anchor")
    other = {"anchor": "sft", "all-and-anchor": "all"}.get(item.variant, item.variant)
    return [*VARIANTS[other][1](size(item)), *([_anchor(folder)] if anchored else [])]


def _anchor(folder: Path) -> Anchor:
    """64 different questions, each with an answer; a row has the length that `flops` counts with."""
    file = folder / "anchors.jsonl"
    with file.open("w") as rows:
        for number in range(64):
            question = " ".join(f"w{4 + int(digit)}" for digit in f"{number:016b}")
            said = " ".join(["w4 w5"] * ((SIDE_TOKENS - 16) // 2))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
            rows.write(json.dumps({"messages": turns}) + "\n")
    return Anchor(file, share=SIDE_SHARE, answers="given")


def _tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(10)}, unk_token="w3"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", eos_token="w2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}w2 {% endif %}{% endfor %}"
    )
    return tokenizer


def published(item: Item) -> Taken:
    """The published way under KL: a second trained forward, a frozen copy, whole logits."""
    way = Published(model(size(item), device=item.device, dtype=torch.bfloat16), _batch(item))
    _checkpoint(item, way.model)
    return looped(item, way, mixed=True)


def liger(item: Item) -> Taken:
    """transformers' own loss under Liger's kernels, undefended."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2()
    adapted = model(size(item), device=item.device, dtype=torch.bfloat16).train()
    _checkpoint(item, adapted)
    rows, weights = _batch(item), [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def one() -> None:
        adapted(**rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return looped(item, one, mixed=True)


def _batch(item: Item) -> dict[str, torch.Tensor]:
    return {name: column.to(item.device) for name, column in batch(size(item)).items() if name != SOURCE_COLUMN}


def _checkpoint(item: Item, adapted) -> None:
    if item.checkpointing:
        adapted.enable_input_require_grads()
        base = adapted.get_base_model()
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable()


def looped(item: Item, one: Callable[[], None], mixed: bool = False) -> Taken:
    """Once and again without a trainer, in mixed precision as a trainer has it or as it is."""
    clock = Clock(item)
    for _ in range(item.warm + item.steps):
        with torch.autocast(item.device, torch.bfloat16, enabled=mixed):
            one()
        clock.tick()
    return clock.taken()
