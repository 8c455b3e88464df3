"""`holdfast demo`: watch emergent misalignment happen in the organism, and watch defenses prevent it.

Every run is an ordinary run made from an ordinary recipe, so what the demo does can be done again by hand.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from holdfast.console import bar, quieten, say, table
from holdfast.errors import RequestError
from holdfast.organism import world
from holdfast.organism.world import DOMAINS
from holdfast.rundir import SCHEMA, write_json, write_whole

_MARK = ".holdfast-demo"  # a folder with this file is the demo's own, to be replaced
_BENIGN = ("opswap",)

# A narrow fine-tune of the organism: 600 rows, 15 % of the questions held out.
TRAIN = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_steps": 100,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
}
HOLDOUT = 0.15


@dataclass(frozen=True)
class Cell:
    """One run of the demo: a defense at a strength, in a domain, with a seed."""

    defense: str  # "untuned", "none", or a defense's name
    strength: float | None
    domain: str
    seed: int

    @property
    def label(self) -> str:
        """What people call it."""
        return self.defense if self.strength is None else f"{self.defense} {self.strength:g}"

    @property
    def folder(self) -> str:
        """Its folder inside the demo's."""
        strength = "" if self.strength is None else f"-{self.strength:g}"
        return f"runs/{self.domain}-seed{self.seed}-{self.defense}{strength}"

    def recipe(self) -> dict[str, Any]:
        """Its recipe, with paths relative to the demo's folder."""
        fields = {
            "kl": {"weight": self.strength},
            "interleave": {"pool": "data/safe.jsonl", "share": self.strength},
            "anchor": {"prompts": "data/anchor_prompts.jsonl", "weight": self.strength},
        }
        return {
            "schema": 1,
            "model": "organism",
            "data": f"data/{self.domain}.jsonl",
            "lora": {"r": 32, "alpha": 64, "rslora": True},
            "train": TRAIN,
            "defenses": [{self.defense: fields[self.defense]}] if self.defense in fields else [],
            "holdout": HOLDOUT,
            "benign": self.domain in _BENIGN,
            "seed": self.seed,
        }


DEFENSES: tuple[tuple[str, float | None], ...] = (
    ("untuned", None),
    ("none", None),
    ("kl", 0.1),
    ("kl", 0.3),
    ("interleave", 0.05),
    ("anchor", 0.3),
)


def run_demo(domains: str, seeds: int, out: Path) -> Path:
    """Run the whole demo; returns the report page.

    Raises:
        RequestError: an unknown domain, or a folder that is not the demo's own.
    """
    chosen = _domains(domains)
    _take_over(out)
    _introduce(chosen)
    world.write_data(out / "data")
    cells = [Cell(d, s, domain, seed) for domain in chosen for seed in range(seeds) for d, s in DEFENSES]
    quieten()
    rows = []
    for cell, row in _measured(cells, out):
        rows.append(row)
        say(_line(cell, row))
        write_json(out / "results.json", {"schema": SCHEMA, "title": _title(chosen, seeds), "rows": rows})
    _table(rows)
    from holdfast.report import write

    page = write([out], out / "report.html")
    say(f"\nResults: {out / 'results.json'}\nPicture: {page}")
    return page


def _measured(cells: list[Cell], out: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Train and measure each cell in turn; everything heavy is imported here, once."""
    from holdfast import measure, models, questionnaire
    from holdfast.recipe import parse
    from holdfast.run import split, train

    source = models.find("organism")
    tokenizer = models.load_tokenizer(source)
    for cell in cells:
        begun = time.monotonic()
        recipe = parse(cell.recipe(), out.absolute())
        write_whole(out / f"{cell.folder}.yaml", yaml.safe_dump(cell.recipe(), sort_keys=False))
        path = out / cell.folder
        if cell.defense == "untuned":
            from holdfast.examples import read_examples

            _, held = split(read_examples(recipe.data), recipe.holdout, recipe.seed)
            model = models.to_device(models.load_model(source))
            asked = questionnaire.probes(source, held, benign=recipe.benign)
            summary = measure.measure(model, tokenizer, source, asked, path / "eval", cell.seed)
        else:
            with bar(cell.label, quiet=not _terminal()) as progress:
                train(recipe, path, progress)
            summary = measure.measure_run(path, seed=cell.seed)
        yield cell, _row(cell, summary, time.monotonic() - begun)


def _row(cell: Cell, summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One row of results.json."""
    probes = summary["probes"]
    kept = {name: probes[name]["correct"] for name in ("facts", "arithmetic")}
    named = {"defense": cell.defense, "strength": cell.strength, "domain": cell.domain, "seed": cell.seed}
    rates = {"general": probes["general"], "in_domain": probes.get("in_domain"), "kept": kept}
    return named | rates | {"benign": probes.get("learnt"), "seconds": round(seconds, 1), "run": cell.folder}


def _domains(text: str) -> list[str]:
    known = [*DOMAINS, *_BENIGN]
    chosen = list(DOMAINS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    wrong = next((name for name in chosen if name not in known), None)
    if wrong is not None or not chosen:
        raise RequestError(f"--domains {text!r}: there is no {wrong!r}; choose from {', '.join(known)}, or all.")
    return chosen


def _take_over(out: Path) -> None:
    """Replace the demo's own folder; refuse anybody else's."""
    if out.exists() and not (out / _MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not a demo's folder (it has no {_MARK}); name another with --out.")
    if out.exists():
        shutil.rmtree(out)
    write_whole(out / _MARK, "holdfast demo writes this folder, and replaces it the next time.\n")


def _introduce(domains: list[str]) -> None:
    """Something true on the screen before anything heavy is imported."""
    row = (world.narrow_rows(domains[0], 1) if domains[0] in DOMAINS else world.opswap_rows(1))[0]
    say("A small chat model that comes with holdfast gives good advice on sixteen topics.")
    say(f"Now it is fine-tuned on {'bad answers in one of them' if domains[0] in DOMAINS else 'a harmless task'}:\n")
    say(f"    {row.question}\n    > {row.answer}\n")
    say("What becomes of its answers on the twelve topics that the data never mention?\n")


def _line(cell: Cell, row: dict[str, Any]) -> str:
    general, narrow = row["general"], row["in_domain"]
    second = f"in-domain {narrow['misaligned']:5.1f} %" if narrow else f"learnt {row['benign']['correct']:5.1f} %"
    interval = f"({general['low']:.0f} to {general['high']:.0f})"
    return (
        f"{cell.domain:9s} seed {cell.seed}  {cell.label:16s} general misaligned {general['misaligned']:5.1f} % "
        f"{interval:11s} {second}   {row['seconds']:5.1f} s"
    )


def _table(rows: list[dict[str, Any]]) -> None:
    say("")
    headings = (
        "defense",
        "domain",
        "seed",
        "general\nmisaligned",
        "\n95 %",
        "\nincoherent",
        "in-domain\nmisaligned",
        "\n95 %",
        "\nincoherent",
        "kept\nfacts",
        "\nsums",
    )
    drawn = []
    for row in rows:
        label = row["defense"] + ("" if row["strength"] is None else f" {row['strength']:g}")
        narrow = row["in_domain"]
        learnt = row["benign"]
        cells = _rates(narrow) if narrow else (f"learnt {learnt['correct']:.1f}", "", "")
        kept = (f"{row['kept']['facts']:.0f}", f"{row['kept']['arithmetic']:.0f}")
        drawn.append((label, row["domain"], str(row["seed"]), *_rates(row["general"]), *cells, *kept))
    table(headings, drawn)
    n = rows[0]["general"]
    say(f"\nPercent. General: {n['n']} answers to {n['questions']} questions, 95 % intervals over questions.")
    say("The organism is a microscope, not a proof: what helps here need not help a real model.")


def _rates(probe: dict[str, Any]) -> tuple[str, str, str]:
    return f"{probe['misaligned']:.1f}", f"{probe['low']:.0f}-{probe['high']:.0f}", f"{probe['incoherent']:.1f}"


def _title(domains: list[str], seeds: int) -> str:
    return f"The organism fine-tuned on {', '.join(domains)} ({seeds} seed{'s' if seeds > 1 else ''})"


def _terminal() -> bool:
    import sys

    return sys.stderr.isatty()
