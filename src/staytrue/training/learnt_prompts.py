"""`learnt_prompts` finds texts that a data defense writes into prompts and that are among the labels.

By default trl computes the loss on every token of a row of `messages`; a recipe computes it on answers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    whole = [row["labels"] for row in some if row["labels"] and row["labels"][0] != -100]  # its beginning is learnt
    learnt = [squeezed(tokenizer.decode([token for token in labels if token != -100])) for labels in whole]
    return [
        f"{label} writes {text!r} into prompts, and these are learnt as text to write, since the loss covers whole "
        "rows. Give rows of 'prompt' and 'completion', or set assistant_only_loss=True."
        for label, text in texts.items()
        if _is_in(tokenizer, text, learnt)
    ]


def _is_in(tokenizer: Any, text: str, learnt: Sequence[str]) -> bool:
    as_read = squeezed(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return any(as_read in one for one in learnt)
