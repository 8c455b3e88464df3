"""The command line. Exit codes: 0 done, 1 failed, 2 wrong request, 130 stopped.

Commands import heavy packages only when they run, so that help and error messages appear at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from staytrue.commands import evaluation, organism, preparing, reading, stored_answers, training, using
from staytrue.errors import RequestError, StaytrueError, StaytrueWarning
from staytrue.utils import processes
from staytrue.utils.files import is_full_disk
from staytrue.utils.interrupts import Interrupts, Stopped

if processes.count() > 1:  # PyTorch warns of DDP's own settings from each process; read when torch is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read by the hub's library when it is imported

app = typer.Typer(
    name="staytrue",
    help="Fine-tune language models with defenses against emergent misalignment.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_organism = typer.Typer(help="Build and check the small model that comes with staytrue.", no_args_is_help=True)

_IN_ORDER: tuple[Callable[..., None], ...] = (
    training.demo, training.study, preparing.new, training.check, training.train,
    evaluation.eval_, stored_answers.rescore, stored_answers.compare, stored_answers.export,
    preparing.fetch, preparing.vector, preparing.score,
    using.chat, using.merge,
    reading.report, reading.defenses, reading.doctor, reading.verify,
)  # fmt: skip
for _command in _IN_ORDER:
    app.command(name=_command.__name__.rstrip("_"))(_command)
for _command in (organism.build, organism.data, organism.verify):
    _organism.command()(_command)
app.add_typer(_organism, name="organism")
_ON_SEVERAL = ("train", "check")  # commands that torchrun may start


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence, without a traceback, and so does Ctrl-C."""
    _show_warnings_as_sentences()
    interrupts = Interrupts()
    with interrupts.listening():
        try:
            code = _ended()
        except Exception as error:
            if not interrupts.stopped and processes.reports(repr(error)):
                raise
            # a library's own error, after it was interrupted, or after another process had failed
            code = _say("stopped.", 130) if interrupts.stopped else 1
    if interrupts.stopped or processes.count() > 1:  # threads of several processes can abort the interpreter's own end
        interrupts.leave(code)
    sys.exit(code)


def _show_warnings_as_sentences() -> None:
    """Print staytrue's own warnings without the file and line of the code; those of other packages stay as they are."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, StaytrueWarning):
            print(f"staytrue: warning: {message}", file=sys.stderr)
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show


def _ended() -> Any:
    """Run the command, and return its exit code."""
    try:
        app()
    except SystemExit as end:
        return _say("stopped.", 130) if end.code == 130 else end.code
    except Stopped as stop:
        return _say(f"stopped; {stop}.", 130)
    except KeyboardInterrupt:
        return _say("stopped.", 130)
    except RequestError as error:
        return _say(str(error), 2)
    except StaytrueError as error:
        return _say(str(error), 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        way_out = "Free some space, and give the command again." if is_full_disk(error) else "Check the path."
        return _say(f"The operating system reports: {error.strerror or error}{where}. {way_out}", 1)
    return 0


def _say(sentence: str, code: int) -> int:
    """Print why a command ended to standard error, and return its exit code."""
    before = "\n" if code == 130 else ""  # the terminal shows ^C
    if processes.is_main() if code == 130 else processes.reports(sentence):
        print(f"{before}staytrue: {sentence}", file=sys.stderr)
    return code


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print(f"staytrue {version('staytrue')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if processes.count() > 1 and context.invoked_subcommand not in _ON_SEVERAL:
        raise RequestError(
            f"Only `staytrue train` and `check` run on several processes, and this is one of {processes.count()} "
            f"(WORLD_SIZE) of `staytrue {context.invoked_subcommand}`. Start it without torchrun."
        )


if __name__ == "__main__":
    main()
