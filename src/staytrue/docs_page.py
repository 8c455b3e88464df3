"""The documentation of every defense, from its docstrings: a list for the terminal and docs/defenses.md. No torch."""

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
    """List the fields of a defense, each with its meaning from the class's docstring."""
    meanings = registry.meanings(defense)
    hints = typing.get_type_hints(defense)
    rows = []
    for field in fields(defense):  # type: ignore[arg-type]
        default = "" if field.default is MISSING else _plain(field.default)
        rows.append(Entry(field.name, _kind(hints[field.name]), default, meanings.get(field.name, "")))
    return rows


def listing() -> str:
    """Describe every defense for a terminal: its first line, levers and cost, its fields and defaults."""
    lines = []
    for name in registry.names():
        kind = registry.find(name)
        lines += [f"{name}: {_about(name)[0]}", f"  levers: {', '.join(pulled(kind))}", f"  cost: {_cost(name)}"]
        lines += [f"  {e.name}: {e.default or '(must be given)'}   {e.meaning}" for e in entries(kind)]
    return "\n".join(lines)


def page() -> str:
    """Write the page of all defenses, as Markdown."""
    parts = [_HEAD]
    for name in registry.names():
        kind = registry.find(name)
        title, *rest = _about(name)
        rows = "\n".join(
            f"| `{e.name}` | {e.kind} | {f'`{e.default}`' if e.default else 'must be given'} | {_cell(e.meaning)} |"
            for e in entries(kind)
        )
        levers = ", ".join(f"`{lever}`" for lever in pulled(kind))
        parts.append(f"## `{name}`\n\n**{title}** Overrides {levers}.\n\n{_paragraphs(rest)}\n\n{_TABLE}{rows}\n")
    return "\n".join(parts)


_HEAD = """\
# Defenses

One file each in `src/staytrue/defenses/`; this page is made from their docstrings by `make docs`. A recipe lists them
as `- name: {field: value}`; in a script they are dataclasses, `staytrue.KL(weight=0.3)`. Losses are nats per token, and
a penalty is the mean over its own tokens in the whole optimizer step, so a weight means the same for every batch size,
accumulation and number of processes. Where the rows beside the batch (`anchor`, `rehearse`, `safegrad`) are so few that
only every fourth step has one, their penalty counts four times in that step, so its mean over the steps, too, does not
depend on the batch size; clipping of large gradients (`max_grad_norm`, 1 by default) can weaken it there.
With `on: interleaved` a penalty is the mean over the interleaved tokens of a step, in every step that has one, and
steps without one are not made up for. So its pull depends on the batch size where rows are few: at a share of 0.1 about
a third of the steps of 4 rows have an interleaved row, and each step of 40 rows has. The organism's figures for each
defense stand in [the log](log.md).
"""
_TABLE = "| field | is | default | meaning |\n| --- | --- | --- | --- |\n"


def _about(name: str) -> list[str]:
    return (inspect.getdoc(inspect.getmodule(registry.find(name))) or "").splitlines()


def _cost(name: str) -> str:
    """Return the cost paragraph of a defense's docstring, in one line."""
    cost = next((p for p in _paragraphs(_about(name)[1:]).split("\n\n") if p.startswith("Cost: ")), "Cost: ")
    return " ".join(cost.removeprefix("Cost: ").split())


def _paragraphs(lines: list[str]) -> str:
    """Return the docstring's own lines; each `Word:` that opens one begins a paragraph."""
    text = "\n".join(lines).strip()
    return re.sub(r"\n(?=(What|Cost|Paper|Source|Not done here)\b[^\n]*:)", "\n\n", text)


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
    """Format a default as a recipe writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
