"""Prerequisites of a study's runs: data sets, misaligned models, a scored pool, a persona vector."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from staytrue.config.recipe import Recipe
from staytrue.data.examples import write_examples
from staytrue.organism import world
from staytrue.organism.lexicon import DOMAINS
from staytrue.utils.workers import Job

_ROLLOUTS = 4
# The recipe of the misaligned models that score a pool: undefended, with a seed that no study uses.
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


def write_rows(domain: str, data: Path) -> None:
    """Write a domain's rows, a safe pool and general prompts into the domain's folder in `data`."""
    sets = {"safe": world.safe_rows(), "anchor_prompts": world.anchor_prompts()}
    sets |= {"train": world.narrow_rows(domain)} if domain in DOMAINS else {}
    for name, rows in sets.items():
        if not (data / domain / f"{name}.jsonl").exists():
            write_examples(data / domain / f"{name}.jsonl", rows)


def jobs(recipe: Recipe, domain: str, data: Path) -> list[Job]:
    """List the jobs that create the missing files of a recipe in the folder `data`; [] if none is missing."""
    named = {path.name for defense in recipe.defenses for path in vars(defense).values() if isinstance(path, Path)}
    needed = list[Job]()
    if "scored.jsonl" in named and not (data / domain / "scored.jsonl").exists():
        others = [other for other in DOMAINS if other != domain]
        missing = [other for other in others if not _misaligned(data, other).joinpath("README.md").exists()]
        needed += [Job(f"misaligned {other}", train_misaligned, (other, data)) for other in missing]
        needs = frozenset(job.name for job in needed)
        needed.append(Job(f"scored {domain}", score_pool, (domain, others, data), needs))
    if "evil.safetensors" in named and not (data / "evil.safetensors").exists():
        needed.append(Job("vector", extract_vector, (data / "evil.safetensors",)))
    return needed


def train_misaligned(domain: str, data: Path) -> None:
    """Train an undefended fine-tune on one narrow domain."""
    from staytrue.config import recipe as recipes
    from staytrue.runs.train import train

    write_rows(domain, data)
    run = _misaligned(data, domain).parent
    shutil.rmtree(run, ignore_errors=True)  # left by a stopped study
    train(recipes.parse(_SCORER, (data / domain).absolute()), run)


def score_pool(domain: str, others: list[str], data: Path) -> None:
    """Score the safe pool by undefended fine-tunes on the other narrow domains."""
    from staytrue.data_selection.ranking import manifest_path
    from staytrue.data_selection.score_pool import Pool, score

    scored = data / domain / "scored.jsonl"
    manifest_path(scored).unlink(missing_ok=True)  # left by a study that stopped between the two files
    pool = Pool(data / domain / "safe.jsonl", "staytrue's organism", "Apache-2.0")
    adapters = {other: _misaligned(data, other) for other in others}
    score("organism", adapters, [pool], scored)


def extract_vector(out: Path) -> None:
    """Extract the persona vector of the shipped evil trait."""
    from staytrue.modeling import loading, model_source
    from staytrue.modeling.chat_tokenizer import load_tokenizer
    from staytrue.persona_vectors import traits, vector_request

    source = model_source.find("organism")

    def load() -> tuple[Any, Any]:
        return loading.to_device(loading.load_model(source)), load_tokenizer(source)

    trait = traits.chosen(True, None, [], [], None)
    vector_request.make(vector_request.Request(trait, out, rollouts=_ROLLOUTS), source, load, lambda line: None)


def _misaligned(data: Path, domain: str) -> Path:
    return data / "misaligned" / domain / "model"
