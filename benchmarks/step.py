"""One training step, forward and backward, defended and not, through the real trainer's loss."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, logging
from trl import SFTConfig

from benchmarks.shapes import SHAPES, Shape, batch, model
from benchmarks.sidebyside import measure, ratio
from holdfast.defenses.kl import KL
from holdfast.trainers import GuardedSFT

logging.set_verbosity_error()


def flop_limit(shape: Shape) -> float:
    """KL over plain SFT as arithmetic allows it: 4P + 6A per token and 6VH s for the head (TRL's, every position
    on a CPU), against 2P + 10VH s more for the reference, two projections each way and the pull-back."""
    per_layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.mlp
    layers, head = shape.layers * per_layer, shape.vocabulary * shape.hidden
    adapter = shape.layers * 32 * (8 * shape.hidden + 3 * (shape.hidden + shape.mlp))
    plain = 4 * layers + 6 * adapter + 6 * head
    return (plain + 2 * layers + 6 * head * shape.scored) / plain


def trainer(shape: Shape, defenses) -> GuardedSFT:
    words = {f"w{i}": i for i in range(10)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")), pad_token="w0", eos_token="w2"
    )
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = Dataset.from_dict({k: v.tolist() for k, v in batch(shape).items() if k != "attention_mask"})
    return GuardedSFT(model=model(shape), args=args, train_dataset=rows, processing_class=tokenizer, defenses=defenses)


def one_step(made: GuardedSFT, shape: Shape):
    rows = batch(shape)
    made.model.train()
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1

    def run():
        fetched, items = made.get_batch_samples(iter([dict(rows)]), 1, torch.device("cpu"))
        made.training_step(made.model, fetched[0], items)
        made.optimizer.step()
        made.optimizer.zero_grad()

    return run


VARIANTS = {
    "sft": (),
    "kl": (KL(0.1),),
    "kl+kl": (KL(0.1), KL(0.1, forward=True)),
}


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    names = compare or list(VARIANTS)
    unknown = next((name for name in names if name not in VARIANTS), None)
    if unknown is not None:
        raise SystemExit(f"--compare {unknown}: there is no such variant; choose from {', '.join(VARIANTS)}.")
    measured = measure({name: one_step(trainer(shape, VARIANTS[name]), shape) for name in names}, rounds)
    for name, value in measured.items():
        print(f"{shape_name} {name:8s} {value['seconds'] * 1e3:9.1f} ms  peak +{value['peak_mb']:7.1f} MB")
    results = {}
    for name, against in (("kl", "sft"), ("kl+kl", "kl")):
        if name in measured and against in measured:
            limit = flop_limit(shape) if against == "sft" else None
            results[f"step/{shape_name}/{name}"] = ratio(measured, name, against, limit)
            peak = measured[name]["peak_mb"] / max(measured[against]["peak_mb"], 1e-9)
            results[f"memory/{shape_name}/{name}"] = {"ratio": round(peak, 3), "against": against, "limit": None}
    return results
