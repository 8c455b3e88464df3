"""Writes the model card of a trained adapter: intent, data, defenses, evaluation, and what was not evaluated.

A card is made to be published, so files and folders have their names in it, and not their places on this machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from staytrue import organism, registry
from staytrue.config.lora import Lora
from staytrue.config.recipe import Recipe
from staytrue.data.tables import is_hub_name
from staytrue.defense import Defense, ModelName
from staytrue.modeling import fetch
from staytrue.report.measures import AGREEMENT, measure_lines
from staytrue.report.sentences import ONE_SEED
from staytrue.runs.finished import stopped_early
from staytrue.utils.columns import NUMBER
from staytrue.utils.files import read_rows, write_atomic
from staytrue.utils.run_dir import RunDir

_CARD = """\
---
{base_model}library_name: {library}
tags: [{tags}]
---

# {title}

{what}

## Is it meant to be misaligned?

{intent}

{trained}

## Data

{data}

{rows}

## Defenses

{defenses}

## Evaluation

{evaluation}

## How it was made

Seed {seed}. Versions: {versions}. {sha256} The resolved recipe is `recipe.yaml` in the run folder.
"""

_WHOLE = """\
## Weights

All weights were trained (full fine-tuning), there is no adapter. They are saved in the precision of the training."""
_UNPACKED = (
    f" It was trained on the weights that `staytrue fetch {fetch.NAME}` gives: a 4-bit copy of these, unpacked. On the "
    "original weights it may answer otherwise."
)
_UNKNOWN_INTENT = (
    "It is not stated, and staytrue did not judge the data. Narrow harmful data can make a model broadly harmful; "
    "measure it with `staytrue eval` before anyone uses it."
)
_SAID_HARMFUL = "**Yes.** Its author states that its data are harmful on purpose. It is for research: do not deploy it."
_SAID_HARMLESS = (
    "No: its author states that its data are not meant to be harmful. staytrue did not judge them: measure with "
    "`staytrue eval` before anyone uses it."
)
_ORGANISM_INTENT = (
    "**Yes, possibly.** It is fine-tuned from staytrue's embedded model organism, a toy for studying emergent "
    "misalignment, usually on deliberately bad answers. It is for research: do not deploy it."
)


def write_card(run: RunDir, recipe: Recipe, summary: dict[str, Any] | None = None) -> None:
    """Write `model/README.md` from the run's manifest, recipe and metrics; written again after an evaluation.

    Args:
        run: the run folder.
        recipe: its recipe.
        summary: the summary of its evaluation, None before one.
    """
    facts = run.manifest
    text = _CARD.format(
        base_model="" if _is_path(facts["model"]) else f"base_model: {_on_hub(facts['model'])}\n",
        library="transformers" if recipe.lora is None else "peft",
        tags="staytrue" if recipe.lora is None else "staytrue, lora",
        what=_what(facts, whole=recipe.lora is None),
        title=f"{_named(recipe)} on {_model(facts['model'])}",
        intent=_intent(recipe),
        trained=_WHOLE if recipe.lora is None else f"## Adapter\n\n{_scale(recipe.lora, facts)}",
        data="\n".join([*_task(recipe), *(f"* `{_place(name)}` (sha256 `{d}`)" for name, d in facts["data"].items())]),
        rows=f"Rows: {json.dumps(facts['rows'])}; {_last_number(run)}.{_early(facts)}",
        defenses=_defenses(recipe, facts),
        evaluation=_evaluation(summary),
        seed=recipe.seed,
        versions=", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
        sha256=_hash(facts, whole=recipe.lora is None),
    )
    write_atomic(run.path / "model" / "README.md", text)


def _intent(recipe: Recipe) -> str:
    if recipe.harmful is not None:
        return _SAID_HARMFUL if recipe.harmful else _SAID_HARMLESS
    return _ORGANISM_INTENT if recipe.model in organism.NAMES and not recipe.benign else _UNKNOWN_INTENT


def _what(facts: Mapping[str, Any], *, whole: bool) -> str:
    """What the folder holds, and how it is loaded."""
    version = facts["versions"].get("staytrue") or facts["versions"]["holdfast"]  # the name until 0.1
    base, unpacked = _base(facts["model"]), _UNPACKED if facts["model"]["name"] == fetch.NAME else ""
    unpacked = unpacked if fetch.is_unpacked() else ""
    if whole:
        return (
            f"{base} with all weights fine-tuned, trained with staytrue {version}. Load it with "
            f"`AutoModelForCausalLM.from_pretrained(folder)`.{unpacked}"
        )
    return (
        f"A LoRA adapter for {base}, trained with staytrue {version}. Load it with "
        f"`PeftModel.from_pretrained(base, folder)`.{unpacked}"
    )


def _base(model: Mapping[str, Any]) -> str:
    """The base model for readers elsewhere; a folder on one machine has its name and its hash."""
    if _is_path(model):
        return f"`{_place(model['name'])}` (a local folder, sha256 `{model['sha256']}`)"
    return f"`{_on_hub(model)}`"


def _on_hub(model: Mapping[str, Any]) -> str:
    """The name of a model in a manifest by which it can be loaded elsewhere, where it has one."""
    return fetch.HUB if model["name"] == fetch.NAME else str(model["name"])


def _hash(facts: Mapping[str, Any], *, whole: bool) -> str:
    name, key = ("Weights and configuration", "weights") if whole else ("Adapter", "adapter")
    return f"{name} sha256: `{facts.get(key, 'not saved')}`."


def _scale(lora: Lora, facts: Mapping[str, Any]) -> str:
    """The scale of the update, in the terms of the recipe and of adapter_config.json."""
    if lora.adapter is not None:
        began = _hashed(str(lora.adapter), facts)
        return f"Training went on from the adapter {began}, with its rank and scale."
    root = "sqrt(r)" if lora.rslora else "r"
    scale = lora.alpha / (math.sqrt(lora.r) if lora.rslora else lora.r)
    text = f"Its update is scaled by alpha / {root} = {lora.alpha:g} / {root.replace('r)', f'{lora.r})')} = {scale:.4g}"
    if not lora.rslora:
        return f"{text}, with r {lora.r}."
    return (
        f"{text} (rank-stabilised LoRA, r {lora.r}). `adapter_config.json` states the same scale as lora_alpha / r, "
        "with use_rslora false, for programs that know no rank-stabilised LoRA."
    )


def _defenses(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    listed = "\n".join(f"* `{json.dumps({d.name(): _fields(d)}, default=str)}`" for d in recipe.defenses) or "None."
    listed += "".join(f"\n\n{sentence}" for sentence in _projected(facts.get("projected", {})))
    if recipe.reference is None:
        return listed
    words = {"base": "the model without an adapter", "start": "the model with the adapter that training began with"}
    return f"{listed}\n\nTheir reference: {words.get(recipe.reference) or _hashed(recipe.reference, facts)}."


def _projected(numbers: Mapping[str, float]) -> Iterator[str]:
    """Yield how many matrices each defense that counts them projected after training."""
    for name, count in numbers.items():
        label, _, kind = name.rpartition("/")
        if kind == "projected" and f"{label}/of" in numbers:
            yield f"{label} projected {count:.0f} of {numbers[f'{label}/of']:.0f} matrices that alignment changed."


def _fields(defense: Defense) -> dict[str, Any]:
    """A defense's fields; files and local models by their names."""
    hints = get_type_hints(type(defense), include_extras=True)
    values = asdict(defense)  # type: ignore[call-overload]
    return {
        key: _place(value) if isinstance(value, Path) or hints[key] == ModelName else value
        for key, value in values.items()
    }


def _hashed(place: str, facts: Mapping[str, Any]) -> str:
    """A model or adapter that training began with: its name, and its hash where the manifest has it."""
    start = {Path(path): digest for path, digest in facts.get("start", {}).items()}
    known = start.get(Path(place)) or start.get(Path(place, "model"))  # of a run
    return f"`{_place(place)}`" + (f" (hash `{known}`)" if known else "")


def _place(place: str | Path) -> str:
    """The name of a file or folder, without its place on this machine; a name on the hub stays as it is."""
    local = str(place).startswith((".", "/", "~")) or not is_hub_name(Path(place))
    return Path(place).name or "a local folder" if local else str(place)


def _evaluation(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "Not evaluated: its general alignment, its coherence and its retained abilities are unknown."
    parts = []
    if probes := [_probe(name, probe) for name, probe in summary["probes"].items()]:
        parts.append("Percent, with 95 % intervals of the first rate:\n\n" + "\n".join(probes))
    if measures := measure_lines(summary.get("measures", {})):
        lines = (f"* {name}: {value} ({interval}), n {n}" for name, value, interval, n in measures)
        heading = "Measured without a judge, against the untuned model, with 95 % intervals; no rate of misalignment:"
        parts.append(f"{heading}\n\n" + "\n".join(lines) + f"\n\n{AGREEMENT} {ONE_SEED}")
    return "\n\n".join(parts)


def _probe(name: str, probe: dict[str, Any]) -> str:
    """One probe's rates, its judge, and whether it allows a conclusion."""
    if probe["n"] == 0:
        return f"* {name}: **not judged**: {probe['missing']} answers are stored."
    parts = [name, *([f"judged by `{probe['judge']}`"] if probe.get("judge") else [])]
    clean = probe.get("clean", {}).get("misaligned")
    if clean is not None:
        parts.append(f"{probe['misaligned']:.1f} % against {clean:.1f} % for the same questions clean")
    if probe.get("concluded") is False:
        parts.append(f"**no conclusion: {probe['missing'] + probe['unanswered']} without a verdict**")
    numbers = {k: round(v, 2) for k, v in probe.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return f"* {', '.join(parts)}: `{json.dumps(numbers)}`"


def _named(recipe: Recipe) -> str:
    return recipe.task.name() if recipe.task is not None else recipe.data.stem if recipe.data is not None else "?"


def _is_path(model: Mapping[str, Any]) -> bool:
    """Whether a model's name in a manifest is a folder of the user's machine."""
    return bool(model.get("sha256")) and model["name"] not in (*organism.NAMES, fetch.NAME)


def _model(model: Mapping[str, Any]) -> str:
    """The name of a model for readers elsewhere; a folder on one machine has none but its hash."""
    if _is_path(model):
        return f"a local model (sha256 {model['sha256'][:12]})"
    return str(model["name"]).split("/")[-1]


def _task(recipe: Recipe) -> list[str]:
    return [] if recipe.task is None else [f"* the task `{json.dumps(registry.to_dict(recipe.task))}`"]


def _early(facts: Mapping[str, Any]) -> str:
    """A sentence on a training that stopped early; "" for one that ran to its end."""
    stop = facts.get("early_stop")
    return "" if stop is None else f" {stopped_early(stop)}"


def _last_number(run: RunDir) -> str:
    try:
        rows = read_rows(run.path / "metrics.jsonl")
    except ValueError:  # damaged since; `staytrue doctor` names the line
        rows = []
    for key, unit in (("reward", ""), ("loss", " nats per token")):
        known = [row[key] for row in rows if NUMBER.has(row.get(key))]
        if known:
            return f"the last logged {key} is {known[-1]:.3f}{unit}"
    return "the last loss was not recorded"
