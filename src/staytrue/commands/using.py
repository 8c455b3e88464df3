"""The commands `chat` and `merge`, which use the model of a finished run."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from staytrue.commands.options import Seed, finite, stages, stoppable
from staytrue.errors import RequestError
from staytrue.utils.console import tell


def chat(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    system: Annotated[str, typer.Option(help="A system turn.")] = "",
    temperature: Annotated[
        float, typer.Option(min=0, callback=finite, help="0 takes the likeliest token each time.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 256,
    seed: Seed = 0,
) -> None:
    """Talk to a trained model and the untuned one side by side.

    Write a turn and press Enter; `/new` begins a new conversation, and Ctrl-D ends. Each model remembers its own
    answers.
    """
    from staytrue.runs.finished import finished_model, with_weights
    from staytrue.utils.console import bar, quieten, say, side_by_side

    finished = finished_model(run)
    source = finished.untuned
    say_stage = stages(f"chat {run.name}")
    say_stage("loading the libraries")
    quieten()
    from staytrue.modeling import loading
    from staytrue.modeling.chat_tokenizer import load_tokenizer
    from staytrue.runs.chat import Chat

    with stoppable("the conversation is over"):
        say_stage(f"loading {source.name}")
        tokenizer = load_tokenizer(source)
        model = loading.load_model(with_weights(source, finished.weights), finished.adapter)
        before = loading.to_device(loading.load_model(source)) if finished.weights else None
        talk = Chat(loading.to_device(model), tokenizer, system, temperature, max_new_tokens, seed, before)
        tell("Write a turn and press Enter; /new begins anew, Ctrl-D ends.")
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8
        for line in sys.stdin:
            text = line.strip()
            if text == "/new":
                talk.begin()
                tell("A new conversation.")
            elif text:
                with bar("answers") as progress:
                    untuned, trained = talk.reply(text, progress)
                side_by_side((f"{source.name}, untuned", untuned), (str(run), trained))
    say("")


def merge(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged model. It must not exist.")],
) -> None:
    """Merge a run's adapter into its model.

    Writes an ordinary model folder.
    """
    from staytrue.runs.finished import finished_model
    from staytrue.utils.console import quieten, say
    from staytrue.utils.files import refuse_existing

    refuse_existing(out)
    finished = finished_model(run)
    if finished.adapter is None:
        raise RequestError(
            f"{run} trained all weights, so there is no adapter to merge: {finished.place} is an ordinary model folder "
            "already. Copy it."
        )
    say_stage = stages(f"merge {run.name}")
    say_stage("loading the libraries")
    quieten()
    from staytrue.modeling.merging import write_merged

    with stoppable("nothing was written"):
        say_stage(f"merging the adapter into {finished.untuned.name}")
        write_merged(finished.untuned, finished.adapter, out)
    if finished.untuned.quantize is not None:
        say(
            f"The {finished.untuned.quantize} weights that {run} was trained on are unpacked: the merged model is what "
            "was trained, at the size of the model's own files."
        )
    say(f"Wrote {out}, an ordinary model folder. The adapter in {finished.adapter} is unchanged.")
