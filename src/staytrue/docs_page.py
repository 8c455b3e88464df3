"""What the defenses say of themselves: a listing for the terminal and the page `docs/defenses.md`. No torch."""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import MISSING, dataclass, fields

from staytrue import registry
from staytrue.defense import Defense, pulled


@dataclass(frozen=True)
class Entry:
    """One field of a defense: a key of the recipe."""

    name: str
    kind: str  # its type in words
    default: str  # "" when it must be given
    meaning: str


def entries(defense: type[Defense]) -> list[Entry]:
    """The fields of a defense with what its docstring says of each."""
    told = dict(_attributes(inspect.getdoc(defense) or ""))
    hints = typing.get_type_hints(defense)
    made = []
    for field in fields(defense):  # type: ignore[arg-type]
        default = "" if field.default is MISSING else _plain(field.default)
        made.append(Entry(field.name, _kind(hints[field.name]), default, told.get(field.name, "")))
    return made


def listing() -> str:
    """Every defense: its first line, lever and cost, its fields and defaults."""
    lines = []
    for name in registry.names():
        lines += [f"{name}: {_about(name)[0]}", *(f"  {line}" for line in _lever_and_cost(name))]
        lines += [f"  {e.name}: {e.default or '(must be given)'}   {e.meaning}" for e in entries(registry.find(name))]
    return "\n".join(lines)


def page() -> str:
    """The page of all defenses, as Markdown."""
    parts = [_HEAD]
    for name in registry.names():
        kind = registry.find(name)
        title, *rest = _about(name)
        rows = "\n".join(
            f"| `{e.name}` | {e.kind} | {f'`{e.default}`' if e.default else 'must be given'} | {_cell(e.meaning)} |"
            for e in entries(kind)
        )
        levers = ", ".join(f"`{lever}`" for lever in pulled(kind))
        parts.append(f"## `{name}`\n\n**{title}** Pulls {levers}.\n\n{_paragraphs(rest)}\n\n{_TABLE}{rows}\n")
    return "\n".join(parts)


_HEAD = """\
# Defenses

One file each in `src/staytrue/defenses/`; this page is made from their docstrings by `make docs`. A recipe lists them
as `- name: {field: value}`; in a script they are dataclasses, `staytrue.KL(weight=0.3)`. Losses are nats per token, and
a penalty is the mean over its own tokens in the whole optimizer step, so a weight means the same for every batch size,
accumulation and number of processes. The organism's figures for each stand in [the log](log.md).
"""
_TABLE = "| field | is | default | meaning |\n| --- | --- | --- | --- |\n"


def _about(name: str) -> list[str]:
    return (inspect.getdoc(inspect.getmodule(registry.find(name))) or "").splitlines()


def _lever_and_cost(name: str) -> list[str]:
    """The two sentences of a defense's docstring that say which lever it pulls and what it costs."""
    text = " ".join(_about(name))
    found = re.search(r"(Lever: .*?)\.? (Cost: .*?)\.(?= (?:Paper|Source|Not done|Differs|Where|The )|$)", text)
    return [found[1], found[2]] if found else []


def _paragraphs(lines: list[str]) -> str:
    """The docstring's own lines; each `Word:` that opens one begins a paragraph."""
    text = "\n".join(lines).strip()
    return re.sub(r"\n(?=(What|Lever|Cost|Paper|Source|Not done here)\b[^\n]*:)", "\n\n", text)


def _attributes(doc: str) -> list[tuple[str, str]]:
    """The `Attributes:` section as (name, meaning), continuation lines joined."""
    _, _, section = doc.partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return [(name, " ".join(meaning.split())) for name, meaning in found]


def _kind(hint: typing.Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(hint))
    arguments = [_kind(a) for a in typing.get_args(hint) if a is not type(None) and a is not ...]
    if arguments:
        return " or ".join(dict.fromkeys(arguments))
    return {"Path": "file", "str": "text", "float": "number", "int": "whole number", "bool": "true or false"}.get(
        getattr(hint, "__name__", str(hint)), str(hint)
    )


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _plain(value: object) -> str:
    """A default as a recipe writes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
