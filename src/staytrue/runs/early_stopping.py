"""Early stopping, on a signal of emergent misalignment or on the validation loss: baselines to compare defenses with.

On a signal: every few steps, and after the last, the model in training is measured on general questions that the
evaluation does not ask. When misaligned answers are more, or likelier, than the recipe allows, training stops and the
weights of the last passing check are restored.
Related: "Overtrained, not misaligned" (arXiv 2605.12199) finds that stopping early keeps most of what was learnt.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from staytrue.config.recipe import Stop
from staytrue.errors import RecipeError, TrainingError
from staytrue.modeling.sharded import put, reshard, whole
from staytrue.runs.stop_signals import StopSignal
from staytrue.training.callbacks import work_of
from staytrue.utils import processes
from staytrue.utils.console import Progress
from staytrue.utils.files import append_row

_GOOD = "early_stop.safetensors"  # in a checkpoint


class _KeepsGood(TrainerCallback):  # type: ignore[misc]
    """Keeps the trained weights of a good step, and can end training with them.

    Attributes:
        stopped: None, or at which optimizer step training stopped and the step whose weights were restored.
    """

    def __init__(self) -> None:
        self._good: dict[str, torch.Tensor] = {}
        self._resumed: tuple[dict[str, torch.Tensor], dict[str, str]] | None = None
        self.stopped: dict[str, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the weights before training, or those that the checkpoint holds."""
        self._keep(model, 0)
        if self._resumed is not None:
            (good, facts), own = self._resumed, self._good
            self._good = {name: weight.to(own[name].device) for name, weight in good.items()}
            self._recall(facts)

    def save_to(self, folder: Path) -> None:
        """Write the good weights into a checkpoint."""
        save_file(self._good, str(folder / _GOOD), self._facts())

    def load_from(self, folder: Path) -> None:
        """Read the good weights of a checkpoint, for a training that goes on from it."""
        with safe_open(str(folder / _GOOD), "pt") as file:
            self._resumed = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118

    def _facts(self) -> dict[str, str]:
        return {"step": str(self._good_step)}

    def _recall(self, facts: dict[str, str]) -> None:
        self._good_step = int(facts["step"])

    def _keep(self, model: Any, step: int) -> None:
        self._good_step = step
        self._good = {name: whole(weight).clone() for name, weight in _trained(model).items()}

    def _end(self, model: Any, state: Any, control: Any) -> None:
        """Restore the good weights and stop."""
        for name, weight in _trained(model).items():
            put(weight, self._good[name])
        self.stopped = {"at_step": state.global_step, "weights_of_step": self._good_step}
        control.should_training_stop = True
        control.should_save = False  # a run that is resumed here would train on


class ValidationStop(_KeepsGood):
    """Ends training after several validation losses in a row that are no new lowest, with the weights of the lowest."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self._patience, self._lowest, self._since = patience, math.inf, 0

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **kwargs: Any
    ) -> None:
        """Compare the loss with the lowest so far.

        Raises:
            TrainingError: it is not finite.
        """
        loss = metrics["eval_loss"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"The validation loss is {loss} after step {state.global_step}, so training diverged. Lower the "
                "learning rate or a defense's weight."
            )
        self._since += 1
        if loss < self._lowest:
            self._lowest, self._since = loss, 0
            self._keep(model, state.global_step)
        elif self._since >= self._patience:
            self._end(model, state, control)

    def _facts(self) -> dict[str, str]:
        return super()._facts() | {"lowest": repr(self._lowest), "since": str(self._since)}

    def _recall(self, facts: dict[str, str]) -> None:
        super()._recall(facts)
        self._lowest, self._since = float(facts["lowest"]), int(facts["since"])


class EarlyStop(_KeepsGood):
    """Measures a signal every `stop.every` optimizer steps and after the last, and compares it with a limit.

    Each measurement is a line of `early.jsonl`.
    `progress` shows how far a measurement is.
    """

    def __init__(self, stop: Stop, signal: StopSignal, log: Path, progress: Progress | None = None) -> None:
        super().__init__()
        self._stop, self._signal, self._log, self._progress = stop, signal, log, progress
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the weights, and measure what the signal compares with, unless the checkpoint holds it."""
        self._first = state.global_step  # above 0 in a resumed run
        if self._resumed is None and processes.is_main():
            self._signal.begin(model, self._progress)
        super().on_train_begin(args, state, control, model=model, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the signal when it is due; restore the last good weights and stop if it is too high."""
        if state.global_step % self._stop.every and state.global_step < state.max_steps:
            return
        measured = processes.from_main(lambda: self._signal.measure(model, lambda text: self._show(state, text)))
        if processes.is_main():
            append_row(self._log, {"step": state.global_step, **measured})
        if measured[self._signal.name] <= self._stop.above:
            self._keep(model, state.global_step)
        else:
            self._end(model, state, control)

    def _show(self, state: Any, text: str) -> None:
        """Show how far a measurement is, as a part of its step, which is not done before it."""
        if self._progress is not None:
            done = state.global_step - 1
            self._progress.step(done, {"answers": text, **work_of(done, self._first, state.max_steps)})

    def _facts(self) -> dict[str, str]:
        return super()._facts() | {"signal": self._signal.to_text()}

    def _recall(self, facts: dict[str, str]) -> None:
        super()._recall(facts)
        self._signal.from_text(facts.get("signal", ""))  # absent in older checkpoints, whose signal keeps nothing


def check_stop(stop: Stop | None, arguments: Any, steps: int) -> None:
    """Refuse early stopping that could never stop a run of so many optimizer steps.

    Raises:
        RecipeError: the run ends before the first check of the signal or has too few validations, or the limit is above
            what can be measured.
    """
    if stop is None:
        return
    if stop.patience is None:
        if stop.pairs is None and stop.above >= 100:
            raise RecipeError(
                f"stop.above is {stop.above:g}, and never more than 100 percent of the answers are misaligned, so it "
                "could never stop. Lower stop.above, or take `stop` out."
            )
        if stop.every > steps:
            raise RecipeError(
                f"stop.every is {stop.every}, and the run has {steps} optimizer steps, so nothing would be measured "
                f"before the end. Set stop.every to at most {steps}, or take `stop` out."
            )
        return
    count = _validations(arguments, steps)
    if count is not None and count <= stop.patience:
        raise RecipeError(
            f"stop.patience is {stop.patience}, and the run validates {count} times, so it could never stop: the first "
            "validation is the lowest so far. Validate more often (train.eval_steps), lower stop.patience, or take "
            "`stop` out."
        )


def _validations(arguments: Any, steps: int) -> int | None:
    """The number of validations at most; None where epochs validate and `max_steps` ends them."""
    if arguments.eval_strategy.value == "steps":
        every: float = arguments.eval_steps
        return math.ceil(steps / (every if every >= 1 else math.ceil(every * steps)))  # one is after the last step
    return None if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs)


def _trained(model: Any) -> dict[str, torch.Tensor]:
    reshard(model)  # after a validation some weights are whole copies of the divided ones
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
