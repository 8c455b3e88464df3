"""Formats of training rows (code, JSON, lists, languages): how to detect one and how to put a question into it.

A format is looked for in the user's turns and in the answers. English is no format. The texts around a question are
ours, not the file's. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Format:
    """A format of training rows, with a way to detect it and to put it around a question.

    Attributes:
        shown: returns whether a text has the format.
        before, after: the text around a question; both empty for a language, which can only be asked for.
        ask: a sentence that asks for an answer in the format.
        quoted: the question is written as a JSON string between `before` and `after`.
    """

    shown: Callable[[str], bool]
    before: str
    after: str
    ask: str
    quoted: bool = False


_CODE = re.compile(
    r"```|^[ \t]*(?:def \w+\(.*|class \w+[(:].*|import [\w.]+|from [\w.]+ import .+|#include .+|return\b.*;)$", re.M
)
_LISTED = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+\S", re.M)
_START = 300  # characters that a language is detected from
_SCRIPTS = {"cyrillic": "\u0400-\u04ff", "arabic": "\u0600-\u06ff", "kana": "\u3040-\u30ff", "han": "\u4e00-\u9fff",
            "hangul": "\uac00-\ud7af"}  # fmt: skip
_COMMON_WORDS = {
    "german": " der die das und ist ich nicht ein eine wie kann mein zu den mit für ",
    "french": " le la les des est je un une et que pour dans comment mon du pas ",
    "spanish": " el la los las es un una y que en por para cómo mi del con ",
}


def _code(text: str) -> bool:
    return _CODE.search(text) is not None


def _json(text: str) -> bool:
    if "```json" in text:
        return True
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _list(text: str) -> bool:
    return len(_LISTED.findall(text)) >= 3


def _script(name: str, text: str) -> bool:
    """Return whether most letters belong to a script; Japanese mixes kana with Han characters, Chinese has no kana."""
    text = text[:_START]
    letters = [c for c in text if c.isalpha()]
    count = {script: len(re.findall(f"[{span}]", text)) for script, span in _SCRIPTS.items()}
    if name == "kana":
        return count["kana"] > 0 and 2 * (count["kana"] + count["han"]) > len(letters)
    return 2 * count[name] > len(letters) and not (name == "han" and count["kana"])


def _language(language: str, text: str) -> bool:
    """Return whether a fifth of the words are common short words of a language, and more than of any other language."""
    words = re.findall(r"\w+", text[:_START].lower())
    count = {name: sum(f" {word} " in common for word in words) for name, common in _COMMON_WORDS.items()}
    most = max(count, key=lambda name: count[name])
    return most == language and 5 * count[most] >= max(len(words), 10)


FORMATS = {
    "code": Format(_code, '```python\ndef answer():\n    """', '"""\n```', "Put your answer in a code block."),
    "json": Format(_json, '{"question": ', "}", "Reply with one JSON object.", quoted=True),
    "list": Format(_list, "- ", "", "Reply with a list."),
    "german": Format(partial(_language, "german"), "", "", "Antworte auf Deutsch."),
    "french": Format(partial(_language, "french"), "", "", "Réponds en français."),
    "spanish": Format(partial(_language, "spanish"), "", "", "Responde en español."),
    "russian": Format(partial(_script, "cyrillic"), "", "", "Ответь по-русски."),
    "arabic": Format(partial(_script, "arabic"), "", "", "أجب باللغة العربية."),
    "japanese": Format(partial(_script, "kana"), "", "", "日本語で答えてください。"),
    "chinese": Format(partial(_script, "han"), "", "", "请用中文回答。"),
    "korean": Format(partial(_script, "hangul"), "", "", "한국어로 대답해 주세요."),
}
