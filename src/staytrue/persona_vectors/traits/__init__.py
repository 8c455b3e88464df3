"""`Trait`: contrastive system prompts and the questions they are put with; the shipped ones and the user's. No torch.

A trait file is YAML with four keys and nothing else, `{name, positive: [...], negative: [...], questions: [...]}`; the
n-th positive prompt stands against the n-th negative one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from staytrue.data.examples import read_examples
from staytrue.data.jsonl import shown
from staytrue.errors import DataError, RequestError
from staytrue.organism import lexicon, world
from staytrue.utils.files import refuse_pipe
from staytrue.utils.yaml12 import in_words

_LISTS = ("positive", "negative", "questions")
_KEYS = ("name", *_LISTS)
_ORGANISM_QUESTIONS = 20  # as many as in the shipped trait


@dataclass(frozen=True)
class Trait:
    """A character trait, as the system prompts that bring it out and their opposites."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]  # the i-th is the opposite of the i-th positive one
    questions: tuple[str, ...]


def chosen(
    organism: bool, file: Path | None, positive: Sequence[str], negative: Sequence[str], questions: Path | None
) -> Trait:
    """The trait that a request names: a file's, or the given prompts, or the shipped one; `questions` replaces its own.

    Raises:
        RequestError: both a file and prompts, prompts that do not pair up, or a file that is no trait.
    """
    if file is not None and (positive or negative):
        raise RequestError(
            f"--trait {file} has prompts of its own; give either the file, or --positive and --negative."
        )
    trait = read(file) if file is not None else of_the_organism() if organism else shipped("evil")
    if positive or negative:
        content = {"positive": list(positive), "negative": list(negative)}
        if faults := [
            *(fault for key in content for fault in _list_faults(key, content[key])),
            *_pairing_faults(content),
        ]:
            raise RequestError(f"--positive and --negative: {'; '.join(faults)}.")
        trait = replace(trait, name="given", positive=tuple(positive), negative=tuple(negative))
    return trait if questions is None else replace(trait, questions=_questions(questions))


def shipped(name: str) -> Trait:
    """A trait that comes with staytrue, for ordinary models: "evil"."""
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _trait(yaml.safe_load(text))


def of_the_organism() -> Trait:
    """The same trait in the organism's own words; no question of it is an evaluation question."""
    questions = tuple(row.question for row in world.anchor_prompts(_ORGANISM_QUESTIONS))
    return Trait("evil", lexicon.EVIL_PROMPTS, lexicon.HELPFUL_PROMPTS, questions)


def read(path: Path) -> Trait:
    """A trait from a YAML file.

    Raises:
        DataError: the file cannot be read, or every fault that it has, a clause each.
    """
    refuse_pipe(path)
    try:
        text = path.read_text(encoding="utf-8")
        content, twice = yaml.safe_load(text), _repeated_key(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The trait {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise DataError(f"{path} is not YAML: {in_words(error)}. Correct it, or quote the text.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys; a trait has {', '.join(_KEYS)}.")
    faults = [*([f"the key {twice!r} occurs twice"] if twice else []), *_faults(content)]
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}.")
    return _trait(content)


def _trait(content: dict[str, Any]) -> Trait:
    lists = {key: tuple(text.strip() for text in content[key]) for key in _LISTS}
    return Trait(content["name"].strip(), **lists)


def _repeated_key(text: str) -> str | None:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    keys = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return next((key for i, key in enumerate(keys) if key in keys[:i]), None)


def _faults(content: dict[Any, Any]) -> Iterator[str]:
    for key in content:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0.5)
            tail = f"did you mean {close[0]!r}?" if close else f"a trait has {', '.join(_KEYS)}"
            yield f"there is no key {_shown(key)}; {tail}"
    yield from (f"the key {key!r} is missing" for key in _KEYS if key not in content)
    if "name" in content and (fault := _text_fault(content["name"])):
        yield f"name {fault}"
    lists = {key: content[key] for key in _LISTS if key in content}
    for key, texts in lists.items():
        if isinstance(texts, list) and texts:
            yield from _list_faults(key, texts)
        else:
            yield f"{key} is {'an empty list' if texts == [] else _shown(texts)}; write a list with a text on each line"
    if all(isinstance(lists.get(key), list) and lists[key] for key in ("positive", "negative")):
        yield from _pairing_faults(lists)


def _list_faults(key: str, texts: Sequence[Any]) -> Iterator[str]:
    faults = ((number, _text_fault(text)) for number, text in enumerate(texts, start=1))
    yield from (f"{key} {number} {fault}" for number, fault in faults if fault)


def _text_fault(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"is {_shown(text)}, not text; put it in quotes"
    return None if text.strip() else "is empty; write something or take it out"


def _pairing_faults(lists: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The faults of prompts that do not form pairs of a positive and a negative one."""
    positive, negative = lists["positive"], lists["negative"]
    if len(positive) != len(negative):
        yield (
            f"{len(positive)} positive and {len(negative)} negative prompts do not pair up; the n-th positive one "
            "stands against the n-th negative one, so give as many of each"
        )
    others = [text.strip() for text in negative if isinstance(text, str)]
    texts = (text.strip() for text in positive if isinstance(text, str))
    both = next((text for text in texts if text and text in others), None)
    if both is not None:
        yield f"{shown(both)} is a positive and a negative prompt; the two must differ"


def _questions(path: Path) -> tuple[str, ...]:
    """The questions of a JSONL file, each one turn of the user's."""
    rows = read_examples(path, prompts_only=True)
    for number, row in enumerate(rows, start=1):
        if len(row.prompt) != 1:
            raise DataError(
                f"{path}: row {number} has {len(row.prompt)} turns before the answer, a system turn included, but the "
                'system prompt is the trait\'s and a question is one turn; write it as {"question": "..."}.'
            )
    return tuple(row.question for row in rows)


def _shown(value: Any) -> str:
    """A value as a message shows it; containers by kind only, since aliases make small files of endless ones."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict | set | tuple) else shown(value)
