"""`vector`, `score`: what some defenses need before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staytrue.commands.options import Json, stoppable, tell
from staytrue.errors import RequestError


def vector(
    model: Annotated[str, typer.Option(help="A model folder, a hub name, or organism.")],
    out: Annotated[Path, typer.Option(help="The vector file to write; must not exist.")],
    adapter: Annotated[Path | None, typer.Option(help="An adapter's folder.")] = None,
    positive: Annotated[list[str] | None, typer.Option(help="A system prompt for the trait; several times.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="Its opposite; as often as --positive.")] = None,
    questions: Annotated[Path | None, typer.Option(help='JSONL of {"question": ...} rows, in place of ours.')] = None,
    trait: Annotated[Path | None, typer.Option(help="YAML: name, positive, negative, questions.")] = None,
    no_filter: Annotated[bool, typer.Option("--no-filter", help="Keep every pair of answers, judged or not.")] = False,
    rollouts: Annotated[int, typer.Option(min=1, help="Answers to each question under each prompt.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled answers.")] = 0,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also try every layer and alpha, and recommend.")] = False,
    as_json: Json = False,
) -> None:
    """Extract the persona vector that `steer` trains with; without prompts that of an evil assistant."""
    from staytrue.modeling import loading
    from staytrue.persona_vectors import extract, traits

    source = loading.find(model)
    wanted = traits.chosen(source.is_organism, trait, positive or [], negative or [], questions)
    request = extract.Request(wanted, out, adapter, no_filter, rollouts, seed, sweep)

    def load() -> tuple[object, object]:
        from staytrue.utils.console import quieten

        quieten()
        tokenizer = loading.load_tokenizer(source)
        return loading.to_device(loading.load_model(source, adapter)), tokenizer

    with stoppable("nothing was written"):
        facts = extract.make(request, source, load, tell)
    if as_json:
        print(json.dumps({"vector": str(out), **facts}))
    else:
        extract.show(facts, out)


def score(
    model: Annotated[str, typer.Option(help="The aligned model: folder, hub name or organism.")],
    misaligned: Annotated[list[str], typer.Option(help="NAME=ADAPTER: a misaligned fine-tune of it; several.")],
    pool: Annotated[list[Path], typer.Option(help="Chat JSONL of safe rows; several.")],
    out: Annotated[Path, typer.Option(help="The scored pool to write; must not exist.")],
    leave_out: Annotated[list[str] | None, typer.Option(help="A NAME to leave out of the scores.")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="Where each pool comes from, in order.")] = None,
    licence: Annotated[list[str] | None, typer.Option(help="Each pool's licence, in order.")] = None,
    as_json: Json = False,
) -> None:
    """Score safe rows by how much harder misaligned models find them (for interleave's `by:`)."""
    from staytrue.utils.console import bar, quieten, say

    adapters = dict(_pair(text, "--misaligned") for text in misaligned)
    if len(adapters) < len(misaligned):
        raise RequestError("--misaligned: two adapters have one name; give each its own NAME=FOLDER.")
    if max(len(origin or []), len(licence or [])) > len(pool):
        raise RequestError("--origin and --licence are given once for each --pool, in the same order.")
    quieten()
    from staytrue.data_selection.score import Pool
    from staytrue.data_selection.score import score as run

    told = [*(origin or []), *[Pool.origin] * len(pool)], [*(licence or []), *[Pool.licence] * len(pool)]
    pools = [Pool(file, about, terms) for file, about, terms in zip(pool, *told, strict=False)]
    with stoppable("the same command goes on from what is scored"), bar("score", quiet=as_json) as progress:
        manifest = run(model, adapters, pools, out, leave_out=leave_out or [], progress=progress)
    if as_json:
        print(json.dumps(manifest))
    else:
        say(f"Scored {manifest['rows']} rows: {out}")


def _pair(text: str, option: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise RequestError(f"{option} {text}: write it as NAME=FOLDER.")
    return name, Path(folder)
