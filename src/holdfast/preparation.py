"""What a study's runs need beside a recipe: data sets, misaligned models, a scored pool, a persona vector."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast import recipe as recipes
from holdfast.examples import write_examples
from holdfast.organism import world
from holdfast.organism.lexicon import DOMAINS

_ROLLOUTS = 4
# How the misaligned models that score are made, whatever the study trains: undefended, with a seed of no study's own.
_SCORER = {
    "schema": 1,
    "model": "organism",
    "data": "train.jsonl",
    "lora": {},
    "train": {
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_steps": 100,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "max_length": 64,
    },
    "seed": 1000,
}


def prepare(recipe: Mapping[str, Any], domain: str, data: Path) -> None:
    """Make what a recipe of this domain names and is not in the folder `data` yet."""
    folder = data / domain
    sets = {"safe": world.safe_rows(), "anchor_prompts": world.anchor_prompts()}
    sets |= {"train": world.narrow_rows(domain)} if domain in DOMAINS else {}
    for name, rows in sets.items():
        if not (folder / f"{name}.jsonl").exists():
            write_examples(folder / f"{name}.jsonl", rows)
    named = str(recipe.get("defenses"))
    if "scored.jsonl" in named and not (folder / "scored.jsonl").exists():
        _score(domain, data)
    if "evil.safetensors" in named and not (data / "evil.safetensors").exists():
        _extract(data / "evil.safetensors")


def _score(domain: str, data: Path) -> None:
    """The safe pool, scored by undefended fine-tunes on the narrow domains: the target's own is left out."""
    from holdfast.run import train
    from holdfast.score import Pool, score

    others = {other: data / "misaligned" / other for other in DOMAINS if other != domain}
    for other, run in others.items():
        if not (run / "model" / "README.md").exists():
            shutil.rmtree(run, ignore_errors=True)  # what a stopped study left
            write_examples(data / other / "train.jsonl", world.narrow_rows(other))
            train(recipes.parse(_SCORER, (data / other).absolute()), run)
    pool = Pool(data / domain / "safe.jsonl", "holdfast's organism", "Apache-2.0")
    adapters = {other: run / "model" for other, run in others.items()}
    score("organism", adapters, [pool], data / domain / "scored.jsonl")


def _extract(out: Path) -> None:
    from holdfast import models
    from holdfast.prepare import traits, vectors

    source = models.find("organism")

    def load() -> tuple[Any, Any]:
        return models.to_device(models.load_model(source)), models.load_tokenizer(source)

    trait = traits.chosen(True, None, [], [], None)
    vectors.make(vectors.Request(trait, out, rollouts=_ROLLOUTS), source, load, lambda line: None)
