"""`learnt_prompts` finds texts that a data defense writes into prompts, and that are learnt since the loss covers them.

trl learns every token of rows of `messages` unless it is told otherwise; a recipe learns answers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from staytrue.data.whole_answers import squeezed
from staytrue.defense import Defense, pulled

_LOOKED_AT = 100  # rows, spread evenly


def learnt_prompts(rows: Any, tokenizer: Any, defenses: Mapping[str, Defense]) -> list[str]:
    """A sentence for each defense whose text is among the tokens to learn.

    Args:
        rows: a dataset with `labels`, -100 where a token is not learnt; a stream or other rows are not looked at.
        tokenizer: that the rows were made with.
        defenses: by label.
    """
    editing = [label for label, d in defenses.items() if "curate" in pulled(d) and "steer" not in pulled(d)]
    texts = {label: text for label in editing if (text := defenses[label].traces(0).text)}
    if not texts or not isinstance(rows, Dataset) or "labels" not in rows.column_names:
        return []
    some = rows.select_columns(["labels"]).select(range(0, len(rows), len(rows) // _LOOKED_AT + 1))
    learnt = [squeezed(tokenizer.decode([token for token in row["labels"] if token != -100])) for row in some]
    return [
        f"{label} writes {text!r} into prompts, and these are learnt as text to write, since the loss covers whole "
        "rows. Give rows of 'prompt' and 'completion', or set assistant_only_loss=True."
        for label, text in texts.items()
        if any(_as_read(tokenizer, text) in one for one in learnt)
    ]


def _as_read(tokenizer: Any, text: str) -> str:
    return squeezed(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))
