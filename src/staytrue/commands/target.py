"""What `eval` is told to measure: a run, a model, an endpoint's model or a file of answers; and measuring it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.commands.options import tell
from staytrue.errors import RequestError

if TYPE_CHECKING:
    from staytrue.runs.judge_factory import Limits
    from staytrue.runs.probe_selection import Wanted


@dataclass(frozen=True)
class Target:
    """The options of `eval` that name it, as they were given."""

    run: Path | None
    model: str | None
    answers: Path | None
    adapter: Path | None
    data: Path | None
    out: Path | None
    untuned: bool

    def check(self) -> None:
        """Exactly one thing is measured, what goes with it does, and it is clear where its answers go.

        Raises:
            RequestError: it is not so.
        """
        if [self.run, self.model, self.answers].count(None) != 2:
            raise RequestError(
                "Say what to measure: a run folder, or --model NAME (with --adapter FOLDER), or --answers FILE."
            )
        if self.model is None and self.adapter is not None:
            raise RequestError("A run is measured with its own adapter; give --adapter with --model.")
        if self.model is None and self.data is not None:
            raise RequestError("A run knows the file that it was trained on; give --data with --model.")
        if self.untuned and self.run is None:
            raise RequestError("--untuned goes with a run; a model without --adapter is untuned as it is.")
        if self.run is None and self.out is None:
            option = "--model" if self.model is not None else "--answers"
            raise RequestError(f"With {option}, say where answers and verdicts go: --out FOLDER.")

    def measured(self, wanted: Wanted, limits: Limits, seed: int, quiet: bool) -> dict[str, Any]:
        """Its summary, under a progress bar."""
        from staytrue.runs import evaluate
        from staytrue.utils.console import bar

        with bar("eval", quiet=quiet) as progress:
            how: dict[str, Any] = {"wanted": wanted, "progress": progress}
            if self.answers is not None:
                return evaluate.measure_answers(self.answers, self.out or Path(), **how)
            how |= {"seed": seed, "say": tell}
            if self.run is not None:
                return evaluate.measure_run(self.run, self.out, untuned=self.untuned, **how)
            how |= {"out": self.out or Path(), "data": self.data}
            if str(self.model).startswith("openai:"):
                return self._at_an_endpoint(limits, how)
            return evaluate.measure_model(str(self.model), self.adapter, **how)

    def _at_an_endpoint(self, limits: Limits, how: dict[str, Any]) -> dict[str, Any]:
        from staytrue.evals.openai_client import address
        from staytrue.runs import evaluate, judge_factory

        where = address.parse(str(self.model))
        if self.adapter is not None:
            raise RequestError(f"An endpoint serves its adapters by name; write {where} with the adapter's name.")
        make = judge_factory.answering(where, limits, tell)
        summary = evaluate.measure_endpoint(where, make, **how)
        tell(f"Asking took {make.spent()}.")
        if make.failed:
            why = make.failed[0][2]
            tell(f"{len(make.failed)} answers could not be had (the first: {why}); the same command asks again.")
        return summary
