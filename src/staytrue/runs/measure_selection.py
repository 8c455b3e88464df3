"""Which measures without a judge an evaluation takes, and why one cannot be taken of a model.

`pairs` and `drift` need the untuned model: the same weights with the adapter switched off. `leak` needs the training
rows and the untuned model's own answers besides. All three are taken by default where no judge is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import Address
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.answer_pairs import Pair
from staytrue.evals.results.measures import DRIFT, LEAK, PAIRS, is_measure, stored_name
from staytrue.runs.eval_request import EvalRequest

_LEAST = 20  # training rows; the words of fewer say little about their topic


def measures_of(request: EvalRequest, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the names of the measures that a request asks for: those named, or all that fit if no judge is named.

    Args:
        request: the request.
        say: called with a sentence for each measure that is left out by default.

    Raises:
        RequestError: a named measure cannot be taken of this model, there are no such pairs, or two would be stored
            under one name.
        DataError: a file of pairs has faults.
    """
    named = list(dict.fromkeys(name for name in request.probes if is_measure(name)))
    _refuse_one_place(named)
    for name in named:
        if why := _obstacle(name, request):
            raise RequestError(f"--probes {name}: {why}")
        if name.startswith(PAIRS):
            pairs_of(name, request.is_organism)
    no_default = request.probes or request.judge is not None or request.is_organism or not request.has_untuned
    if no_default or isinstance(request.model, Address):
        return named
    obstacles = {name: _obstacle(name, request) for name in (PAIRS, DRIFT, LEAK)}
    for name, why in obstacles.items():
        if why:
            say(f"{name} is left out: {why}")
    return [name for name, why in obstacles.items() if not why]


def pairs_of(name: str, organism: bool) -> tuple[Pair, ...]:
    """Return the pairs of a measure: `pairs`, `pairs:DOMAIN`, or `pairs:FILE.jsonl`.

    Raises:
        RequestError: there are no such pairs.
        DataError: the file has faults.
    """
    if name == f"{PAIRS}:":
        raise RequestError(
            f"--probes {name} names no pairs after the colon; write {PAIRS}, {PAIRS}:DOMAIN or {PAIRS}:FILE.jsonl."
        )
    which = name.partition(":")[2] or "general"
    if which.endswith(".jsonl"):
        if Path(which).stem in answer_pairs.DOMAINS:
            raise RequestError(
                f"--probes {name}: {Path(which).stem!r} is one of our own sets of pairs; rename the file."
            )
        return answer_pairs.read(Path(which))
    if Path(which).suffix or Path(which).exists():
        raise RequestError(f"--probes {name}: pairs are read from JSON lines; give a file whose name ends in .jsonl.")
    if which == answer_pairs.EARLY_STOPPING:
        raise RequestError(
            f"--probes {name}: these pairs are kept for `stop:`; evaluate by `pairs` or pairs of your own."
        )
    if not organism:
        return answer_pairs.shipped(which)
    from staytrue.organism import lexicon, world

    if which not in ("general", *lexicon.DOMAINS):
        raise RequestError(f"--probes {name}: the organism has pairs for general, {', '.join(lexicon.DOMAINS)} only.")
    return world.pairs(which)


def _refuse_one_place(named: Sequence[str]) -> None:
    """Refuse measures that would be stored under one name, where the second would replace the first."""
    places: dict[str, str] = {}
    for name in named:
        other = places.setdefault(stored_name(name), name)
        if other != name:
            raise RequestError(
                f"--probes {other},{name}: both are stored as {stored_name(name)}. Name one of them, or rename a file."
            )


def _obstacle(name: str, request: EvalRequest) -> str:
    """The reason why a measure cannot be taken of a request's model, and the way out; "" if it can."""
    if isinstance(request.model, Address):
        return "the model is behind an endpoint, which gives no likelihood of a text; name a folder or a hub name."
    if name.startswith(PAIRS):
        return ""
    if not request.has_untuned and not request.untuned:
        return "the untuned model is not known; evaluate a run, or name the model with its --adapter."
    if name == LEAK and len(request.topic) < _LEAST:
        if request.topic:
            return (
                f"it needs {_LEAST} training rows, and there are {len(request.topic)}; {PAIRS} and {DRIFT} need none."
            )
        return (
            f"it needs {_LEAST} training rows, and none is known; evaluate a run whose data file has not changed, or "
            "name the model by --model and --adapter and its rows by --data."
        )
    if name == LEAK and not _has_words(request):
        return (
            "it compares words, and too few of them recur in the training answers, as in scripts without blanks "
            f"between words (Chinese, Japanese, Thai) and in answers of a few words; {PAIRS} and {DRIFT} need no words."
        )
    return ""


def _has_words(request: EvalRequest) -> bool:
    from staytrue.evals.measures.leak import has_words

    return has_words([row.answer for row in request.topic])
