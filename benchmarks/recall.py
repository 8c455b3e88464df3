"""Which of a pool's best rows two rounds of scoring keep: the organism's safe pool, with three real scorers."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.select import SHARE, few_drawn
from staytrue.data.examples import read_examples
from staytrue.data.tokenize import encode_all
from staytrue.data_selection.perplexity import Losses, losses, scores
from staytrue.data_selection.two_rounds import TwoRounds, in_two_rounds
from staytrue.modeling import loading
from staytrue.studies.prerequisites import train_misaligned, write_rows

_DOMAIN, _SCORERS = "medical", ("code", "legal", "security")  # the demo's


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    found = _read_whole(Path(tempfile.mkdtemp()))

    def read(names: Sequence[str], which: Sequence[int]) -> list[Losses]:
        return [replace(found[i], misaligned={name: found[i].misaligned[name] for name in names}) for i in which]

    results = {}
    for first in _SCORERS:
        order = [first, *(name for name in _SCORERS if name != first)]
        with few_drawn():
            told = in_two_rounds(read, order, len(found), SHARE)
        kept = _kept(found, told, read([first], range(len(found))))
        print(f"{first} first: {100 * kept:.0f} % of the best {told.k} of {len(found)} rows kept")
        results[f"recall/organism/{first}"] = {"ratio": round(kept, 3), "against": "one round", "limit": None}
    return results


def _kept(found: list[Losses], told: TwoRounds, first: list[Losses]) -> float:
    rows = range(len(found))
    went_on = sorted(rows, key=lambda i: -scores(first[i])["gap"])[: told.best]
    best = sorted(rows, key=lambda i: -scores(found[i])["gap"])[: told.k]
    return len(set(best) & set(went_on)) / told.k


def _read_whole(data: Path) -> list[Losses]:
    """The distinct rows of the pool under the aligned model and undefended fine-tunes on three other domains."""
    write_rows(_DOMAIN, data)
    for name in _SCORERS:
        train_misaligned(name, data)
    source = loading.find("organism")
    rows = list({row.messages: row for row in read_examples(data / _DOMAIN / "safe.jsonl")}.values())
    encoded, _ = encode_all(loading.load_tokenizer(source), rows, None)
    folders = {name: data / "misaligned" / name / "model" for name in _SCORERS}
    loaded = loading.with_adapters(loading.load_model(source), folders)
    keys = {name: name for name in ("aligned", *_SCORERS)}
    return losses(loaded, _SCORERS, rows, encoded, models=keys, cache=data / "cache.jsonl", pad_id=0)
