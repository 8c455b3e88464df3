"""Overhead of trainers over a bare loop, on the demo's run with the organism, where it is largest; one thread.

A hundred steps of 16 rows. `bare` and `bare-kl` use peft, AdamW and gradient clipping alone; the others are the
trainers of `staytrue train` and of trl, on the same rows.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.sidebyside import alternate, chosen, one_thread, ratio
from staytrue.config import recipe as recipes
from staytrue.config import trainer_args
from staytrue.data.tokenize import Encoded
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.runs import dataset
from staytrue.runs.trainer_setup import BUILDS
from staytrue.studies import prerequisites
from staytrue.studies.config import cells
from staytrue.studies.demo import preset
from staytrue.training.callbacks import RunLog
from staytrue.training.padded_batch import pad
from staytrue.utils.console import quieten

_DOMAIN, _WEIGHT = "medical", 0.1
COMPARED = [("sft", "bare"), ("trl-sft", "bare"), ("kl", "bare"), ("kl", "bare-kl"), ("kl-cached", "kl")]


class Job:
    """The demo's recipe, undefended and with KL, its rows, and a scratch folder."""

    def __init__(self, folder: Path, steps: int) -> None:
        prerequisites.write_rows(_DOMAIN, folder / "data")
        plain = {cell.label: cell.recipe() for cell in cells(preset([_DOMAIN], 1))}
        for one in plain.values():
            one["train"]["max_steps"] = steps
        self.recipes = {
            name: recipes.parse(plain[label], (folder / "data" / _DOMAIN).absolute())
            for name, label in (("sft", "none"), ("kl", f"kl {_WEIGHT}"), ("kl-cached", f"kl {_WEIGHT}"))
        }
        self.source = model_source.find("organism")
        self.tokenizer = load_tokenizer(self.source)
        self.rows, self.held = dataset.rows(self.recipes["sft"])
        self.folder, self.steps = folder, steps

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def plan(self, name: str):
        cache = self.folder / "states" if name == "kl-cached" else None
        return BUILDS["sft"](self.recipes[name], self.source, self.tokenizer, self.rows, self.held, cache)

    def encoded(self) -> list[Encoded]:
        return self.plan("sft").encoded

    def adapted(self):
        lora = LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear")
        return get_peft_model(loading.load_model(self.source), lora)


def bare(job: Job, kl: bool = False) -> float:
    """The bare loop; seconds."""
    rows, model, size = job.encoded(), job.adapted().train(), job.recipes["sft"].train["per_device_train_batch_size"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    begun = time.perf_counter()
    for step in range(job.steps):
        batch = [rows[i % len(rows)] for i in range(step * size, (step + 1) * size)]
        inputs, marks = pad(batch, job.tokenizer.pad_token_id, torch.device("cpu"))
        labels = torch.where(marks.scored.roll(1, dims=1), inputs["input_ids"], -100)
        output = model(**inputs, labels=labels)
        loss = output.loss + _WEIGHT * _divergence(model, inputs, marks.scored, output.logits) if kl else output.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - begun


def _divergence(model, inputs, scored, logits):
    with torch.no_grad(), model.disable_adapter():
        theirs = log_softmax(model(**inputs).logits[scored], -1)
    ours = log_softmax(logits[scored], -1)
    return (ours.exp() * (ours - theirs)).sum(-1).mean()


def ours(job: Job, name: str) -> float:
    """The trainer of `staytrue train`, with its metrics file; seconds."""
    folder = job.scratch()
    trainer = job.plan(name).trainer(folder)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunLog(folder / "metrics.jsonl"))
    return _trained(trainer)


def trls(job: Job) -> float:
    """trl's trainer on the same tokens with the same arguments; seconds."""
    from staytrue.runs.trl_inputs import token_rows
    from staytrue.step import SOURCE_COLUMN

    args: SFTConfig = trainer_args.sft_config(job.recipes["sft"].train, 0, job.scratch())
    rows = token_rows(job.encoded()).remove_columns(SOURCE_COLUMN)
    trainer = SFTTrainer(model=job.adapted(), args=args, train_dataset=rows, processing_class=job.tokenizer)
    trainer.remove_callback(PrinterCallback)
    return _trained(trainer)


def _trained(trainer) -> float:
    begun = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begun


VARIANTS = {
    "bare": bare,
    "bare-kl": partial(bare, kl=True),
    "sft": partial(ours, name="sft"),
    "kl": partial(ours, name="kl"),
    "kl-cached": partial(ours, name="kl-cached"),
    "trl-sft": trls,
}


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    quieten()
    names = chosen(compare, VARIANTS)
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        warm = Job(Path(folder), 2)
        for name in names:
            VARIANTS[name](warm)
        job = warm if shape_name == "tiny" else Job(Path(folder), 100)
        if "kl-cached" in names:
            VARIANTS["kl-cached"](job)  # fill the cache
        measured = alternate({name: partial(VARIANTS[name], job) for name in names}, rounds)
    for name, value in measured.items():
        print(f"overhead {name:13s} {value['seconds']:8.2f} s")
    return {
        f"overhead/{name}:{against}": ratio(measured, name, against)
        for name, against in COMPARED
        if name in measured and against in measured
    }
