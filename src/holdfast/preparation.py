"""What a study's runs need beside a recipe: data sets, misaligned models, a scored pool, a persona vector."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast import recipe as recipes
from holdfast.examples import Example, write_examples
from holdfast.organism import world
from holdfast.organism.lexicon import DOMAINS

_SCORER_SEED = 1000  # of the misaligned models that score; no study's own
_ROLLOUTS = 4


def prepare(recipe: Mapping[str, Any], domain: str, data: Path) -> None:
    """Make what a recipe of this domain names and is not in the folder `data` yet."""
    folder = data / domain
    sets = {"train": _task(domain), "safe": world.safe_rows(), "anchor_prompts": world.anchor_prompts()}
    for name, rows in sets.items():
        if not (folder / f"{name}.jsonl").exists():
            write_examples(folder / f"{name}.jsonl", rows)
    named = str(recipe.get("defenses"))
    if "scored.jsonl" in named and not (folder / "scored.jsonl").exists():
        _score(recipe, domain, data)
    if "evil.safetensors" in named and not (data / "evil.safetensors").exists():
        _extract(data / "evil.safetensors")


def _task(domain: str) -> list[Example]:
    return world.opswap_rows() if domain == "opswap" else world.narrow_rows(domain)


def _score(recipe: Mapping[str, Any], domain: str, data: Path) -> None:
    """The safe pool, scored by undefended fine-tunes on the other domains: the target's own is left out."""
    from holdfast.run import train
    from holdfast.score import Pool, score

    others = {other: data / "misaligned" / other for other in DOMAINS if other != domain}
    for other, run in others.items():
        if not (run / "model" / "README.md").exists():
            shutil.rmtree(run, ignore_errors=True)  # what a stopped study left
            write_examples(data / other / "train.jsonl", _task(other))
            words = {**recipe, "defenses": [], "stop": None, "holdout": 0.0, "benign": False, "seed": _SCORER_SEED}
            train(recipes.parse(words, (data / other).absolute()), run)
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
