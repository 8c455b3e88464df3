"""`EncodingReport` counts what happened to the rows of a data set on their way into tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodingReport:
    """The counts of a data set's rows that were cut, dropped or changed when they became tokens.

    Attributes:
        rows: number of rows.
        truncated: rows that were cut at the maximum length.
        dropped: rows that were left out because no answer token remained.
        restored: answers of which the chat template leaves out a part, mostly reasoning, and which are learnt whole.
        other_prompt: rows with an answer that follows another text than the generation prompt.
        unseen: rows with a system, user or tool turn that the chat template leaves out.
        other_tokens: rows whose last answer follows other tokens than those of its prompt, among those compared.
        compared: rows whose tokens were compared with those of their prompt: the first ones.
        answers: answers that are learnt.
        endless: answers among them without a token after them that ends generation.
    """

    rows: int
    truncated: int
    dropped: int
    restored: int = 0
    other_prompt: int = 0
    unseen: int = 0
    other_tokens: int = 0
    compared: int = 0
    answers: int = 0
    endless: int = 0

    def notes(self) -> list[str]:
        """A sentence for everything that a user would not expect."""
        counts = {
            "{n} of {rows} rows are longer than max_length and were cut": self.truncated,
            "{n} of {rows} rows were left out: no token of an answer is within max_length": self.dropped,
            "The chat template leaves out a part of {n} answers, such as reasoning; they are learnt whole, as the rows "
            "have them, but at inference a prompt does not show what the template leaves out of earlier turns": (
                self.restored
            ),
            "In {n} of {rows} rows an answer follows another text than the chat template's generation prompt, which "
            "may open a block for reasoning; so the model is used in another context than it is trained in": (
                self.other_prompt
            ),
            "In {n} of the first {compared} rows, which alone were compared, the tokens before the last answer are "
            "others than those of the prompt at inference, since the tokenizer joins them": self.other_tokens,
            "The chat template leaves out a system, user or tool turn of {n} of {rows} rows": self.unseen,
            "The chat template writes no token that ends generation after {n} of {answers} answers, so the model does "
            "not learn to stop there": self.endless,
        }
        return [f"{line.format(n=n, **vars(self))}." for line, n in counts.items() if n]
