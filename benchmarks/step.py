"""One training step with backward and AdamW: defended and not, through the real trainers, and the published way."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, logging
from trl import SFTConfig, SFTTrainer

from benchmarks.published import Published
from benchmarks.shapes import SHAPES, Shape, batch, flops, model, move
from benchmarks.sidebyside import measure, ratio
from staytrue.config.trainer_args import recomputing
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.steer import Steer
from staytrue.training.trainers import GuardedSFT

logging.set_verbosity_error()


class _TheirHead(GuardedSFT):
    """Keeps trl's own head, so that what our head is worth can be seen."""

    def _keeps_its_head(self) -> str:
        return "for comparison"


def _steer(shape: Shape) -> Steer:
    place = Path(tempfile.mkdtemp()) / "vector.safetensors"
    save_file({"vectors": torch.randn(shape.layers, shape.hidden)}, str(place))
    return Steer(place, layer=shape.layers // 2, alpha=1.0)


VARIANTS: dict[str, tuple[type, Callable[[Shape], list]]] = {
    "sft": (GuardedSFT, lambda shape: []),
    "trl-sft": (SFTTrainer, lambda shape: []),
    "kl": (GuardedSFT, lambda shape: [KL(0.1)]),
    "sft-bf16": (GuardedSFT, lambda shape: []),
    "kl-bf16": (GuardedSFT, lambda shape: [KL(0.1)]),
    "kl-trl-head": (_TheirHead, lambda shape: [KL(0.1)]),
    "ldifs": (GuardedSFT, lambda shape: [LDIFS(1.0)]),
    "steer": (GuardedSFT, lambda shape: [_steer(shape)]),
    "all": (GuardedSFT, lambda shape: [KL(0.1), LDIFS(1.0), _steer(shape)]),
    "kl-cached": (GuardedSFT, lambda shape: [KL(0.1)]),
    "sft-20": (GuardedSFT, lambda shape: []),
    "kl-rows": (GuardedSFT, lambda shape: [KL(0.1, on="interleaved")]),
    "trl-sft-whole": (SFTTrainer, lambda shape: []),
    "sft-whole": (GuardedSFT, lambda shape: []),
    "kl-whole": (GuardedSFT, lambda shape: [KL(0.1)]),
    "l2init-whole": (GuardedSFT, lambda shape: [L2Init(0.01)]),
}
CACHED = "kl-cached"  # the rows are known from another run, which the first step stands for
BFLOAT16 = ("sft-bf16", "kl-bf16")  # weights in bfloat16: `dtype` in a recipe
WHOLE = ("trl-sft-whole", "sft-whole", "kl-whole", "l2init-whole")  # no adapter: all weights are trained
TWENTY_ROWS = ("sft-20", "kl-rows")  # of which one is interleaved: 5 %
PUBLISHED = "published"  # no trainer
COMPARED = [  # variant, against what, which limit
    ("kl", "sft"), ("ldifs", "sft"), ("steer", "sft"), ("all", "kl"), ("kl", "trl-sft"), ("sft", "trl-sft"),
    ("published", "kl"), ("kl-trl-head", "kl"), ("kl-rows", "sft-20"), ("kl-cached", "sft"),
    ("sft-bf16", "sft"), ("kl-bf16", "kl"), ("sft-whole", "trl-sft-whole"), ("kl-whole", "trl-sft-whole"),
    ("kl-whole", "kl"), ("l2init-whole", "trl-sft-whole"),
]  # fmt: skip


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    known = [*VARIANTS, PUBLISHED]
    names = compare or known
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise SystemExit(f"--compare {unknown}: there is no such variant; choose from {', '.join(known)}.")
    measured = measure({name: one_step(name, shape) for name in names}, rounds)
    for name, value in measured.items():
        print(f"{shape_name} {name:12s} {value['seconds'] * 1e3:9.1f} ms  peak +{value['peak_mb']:7.1f} MB")
    results = {}
    for name, against in COMPARED:
        if name in measured and against in measured:
            limit = round(flops(shape, name) / flops(shape, against), 3)
            results[f"step/{shape_name}/{name}:{against}"] = ratio(measured, name, against, limit)
            peak = measured[name]["peak_mb"] / max(measured[against]["peak_mb"], 1e-9)
            row = {"ratio": round(peak, 3), "against": against, "limit": None}
            results[f"memory/{shape_name}/{name}:{against}"] = row
    return results


def one_step(name: str, shape: Shape) -> Callable[[], None]:
    """A step as a function without arguments."""
    if name == PUBLISHED:
        return Published(model(shape), batch(shape))
    if name in TWENTY_ROWS:
        shape = replace(shape, rows=20, interleaved=1)
    rows, sft = batch(shape), trainer(name, shape)
    sft.model.train()
    sft.create_optimizer()
    sft.current_gradient_accumulation_steps = 1

    def run() -> None:
        fetched, items = sft.get_batch_samples(iter([dict(rows)]), 1, torch.device("cpu"))
        sft.training_step(sft.model, fetched[0], items)
        sft.callback_handler.on_pre_optimizer_step(sft.args, sft.state, sft.control)  # as the trainer's own loop does
        sft.optimizer.step()
        sft.optimizer.zero_grad()

    return run


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of ten words, which the rows do not need."""
    vocabulary = {f"w{i}": i for i in range(10)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w3")), pad_token="w0", eos_token="w2"
    )


def arguments(**more) -> SFTConfig:
    """Settings of a trainer that reads rows of tokens as they are, on the CPU, where memory is read."""
    return SFTConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{recomputing(SFTConfig): False, **more},
    )


def trainer(name: str, shape: Shape):
    tokenizer, args = words(), arguments()
    rows = Dataset.from_dict({k: v.tolist() for k, v in batch(shape).items() if k != "attention_mask"})
    kind, defenses = VARIANTS[name]
    options = {"defenses": defenses(shape)} if issubclass(kind, GuardedSFT) else {}
    options |= {"reference_cache": Path(tempfile.mkdtemp())} if name == CACHED else {}
    # The adapter must start where its reference is; moved afterwards, as it is in all but the first step.
    dtype = torch.bfloat16 if name in BFLOAT16 else torch.float32
    weights = model(shape, moved=False, dtype=dtype, adapter=name not in WHOLE)
    sft = kind(model=weights, args=args, train_dataset=rows, processing_class=tokenizer, **options)
    move(sft.model)
    return sft
