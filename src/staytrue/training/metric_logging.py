"""Which steps' entropy and top-1 anybody will see: those that end in a log line, and the last.

trl takes both at every step and averages them between two log lines. They cost one more look at every logit, so a
step that nobody will see goes without: a log line then tells of its own step, not of those before it. Losses,
penalties and whatever else is logged stay averages.
"""

from __future__ import annotations

from typing import Any


def will_be_seen(trainer: Any) -> bool:
    """Whether the optimizer step that is running ends in a log line, as transformers' DefaultFlowCallback decides."""
    args, state, number = trainer.args, trainer.state, trainer.state.global_step + 1
    if str(getattr(args.logging_strategy, "value", args.logging_strategy)) != "steps":
        return True  # an epoch's last step is not known beforehand
    first = number == 1 and args.logging_first_step
    return bool(first or number % max(int(state.logging_steps), 1) == 0 or number >= state.max_steps)


def forget_last(numbers: dict[str, list[float]], names: tuple[str, ...]) -> None:
    """Take a micro-batch's entry out of a trainer's lists; a name without any is not averaged, and not logged."""
    for name in names:
        if numbers.get(name):
            numbers[name].pop()
        if not numbers.get(name):
            numbers.pop(name, None)
