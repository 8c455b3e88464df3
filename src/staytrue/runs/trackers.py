"""`placed` lets the trackers of a run write into its folder, and ends what they began.

TensorBoard writes to `RUN/tensorboard` and wandb to `RUN/wandb`. trackio keeps its own place, where its page compares
the runs of a project. A resumed run goes on in the same files and under the same name: TensorBoard drops the steps that
are made again; wandb and trackio show them twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from staytrue.errors import RecipeError
from staytrue.utils.run_dir import RunDir
from staytrue.utils.validation import in_one_line

FOLDER = "tensorboard"


@contextmanager
def placed(trainer: Any, run: RunDir, first: int | None) -> Iterator[None]:
    """Begin the trackers that the recipe names, and end them after training.

    Args:
        trainer: a guarded trainer.
        run: the run's folder, which has the resolved recipe.
        first: of a resumed run the first optimizer step that is made now.

    Raises:
        RecipeError: a tracker cannot begin, such as wandb without a login.
    """
    names, name = trainer.args.report_to, run.path.name
    if trainer.args.run_name is None:  # two runs may have folders of one name, so their id is added
        trainer.args.run_name = f"{name}-{run.manifest['id'][:6]}" if "id" in run.manifest else name
    if not trainer.is_world_process_zero():
        yield
        return
    facts = {
        "recipe": (run.path / "recipe.yaml").read_text(encoding="utf-8"),
        "rows": yaml.safe_dump({**run.manifest.get("rows", {}), **run.manifest.get("curated", {})}),
    }
    boards = _tensorboards(trainer, run, facts, first) if "tensorboard" in names else []
    begun = _wandb(trainer.args.run_name, run, facts) if "wandb" in names else None
    failed = True
    try:
        yield
        failed = False
    finally:
        for board in boards:
            board.close()
        if begun is not None:
            begun.finish(exit_code=int(failed))


def _tensorboards(trainer: Any, run: RunDir, facts: dict[str, str], first: int | None) -> list[Any]:
    """Give transformers' callback a writer in the run's folder; TENSORBOARD_LOGGING_DIR moves it elsewhere."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    boards = []
    for part in trainer.callback_handler.callbacks:
        if isinstance(part, TensorBoardCallback):
            part.tb_writer = SummaryWriter(part.logging_dir or str(run.path / FOLDER), purge_step=first)
            for name, text in facts.items():
                part.tb_writer.add_text(name, f"```\n{text}```")
            boards.append(part.tb_writer)
    return boards


def _wandb(name: str, run: RunDir, facts: dict[str, str]) -> Any:
    """Begin a run of wandb in the run's folder; None where the caller has begun one, which is used and not ended."""
    import wandb

    if wandb.run is not None:
        return None
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "huggingface"),
            name=name,
            dir=str(run.path),
            id=run.manifest.get("id"),
            resume="allow",
            config=facts,
        )
    except Exception as error:
        raise RecipeError(
            f"train.report_to: wandb cannot begin a run: {in_one_line(error).rstrip('.')}. Log in with `wandb login`, "
            "or set WANDB_MODE=offline in the environment, which keeps the numbers on this machine."
        ) from error
