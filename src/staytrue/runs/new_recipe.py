"""`NewRecipe` suggests a recipe for a model and data: it looks at the rows, their tokens and this machine's memory.

Not done here: finding a learning rate or a defense's weight by trial; both are starting points from the literature.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from staytrue import organism
from staytrue.config import recipe as recipes
from staytrue.config import trainer_args
from staytrue.data.examples import Example, read_examples
from staytrue.data.row_facts import RowFacts
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs import machine, training_cost
from staytrue.runs.commented_recipe import RecipeKey, commented
from staytrue.runs.dry_run import DryRun, reads_reference
from staytrue.runs.lora import adapted
from staytrue.runs.new_defenses import SuggestedDefenses
from staytrue.runs.new_memory import SuggestedMemory
from staytrue.runs.recipe_checks import prepare
from staytrue.runs.run_batches import Batches
from staytrue.runs.training_cost import Memory
from staytrue.utils.yaml12 import from_yaml

_FEWEST = 20  # questions of which some are reserved
_MOST_HELD = 200  # questions; more take time to answer and narrow the interval little
_ROUND = 64  # tokens
_ANSWER = 256  # tokens of a sampled answer of `anchor` at most
_MEASURED = 2_000  # rows of further files whose tokens are counted
_STEP_ROWS = 16  # of an optimizer step, as in arXiv 2508.06249
_FEW_STEPS = 20  # an epoch of fewer steps gets smaller ones


@dataclass(frozen=True)
class NewRecipe:
    """A model and files, for which a recipe is suggested.

    Attributes:
        model: as in a recipe, but relative to the working directory.
        data: file of rows, or a hub name.
        out: the recipe's file; paths in it are relative to its folder where they are inside.
        safe: file of safe conversations, for `interleave`.
        prompts: file of general prompts, for `anchor`.
        vector: file of a persona vector, for `steer`.
        split: of a data set with several; None is "train".
        columns: names of the data's own columns for messages, prompt, completion and system.
    """

    model: str
    data: Path
    out: Path
    safe: Path | None = None
    prompts: Path | None = None
    vector: Path | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def text(self, say: Callable[[str], None] = lambda line: None) -> tuple[str, DryRun]:
        """The recipe as YAML with comments, and what training by it would be.

        Args:
            say: called with each part of the work before it begins.

        Raises:
            RequestError: a file or the model cannot be used; the sentence names it.
        """
        folder, read = self.out.absolute().parent, self._read_as()
        plain = {"model": self._name(), "data": self._path(self.data), **read, "lora": {}}
        recipes.parse(plain, folder, "The recipe to write")  # refuses parts of rows that it does not know
        say(f"reading {self.data}")
        facts = RowFacts.of(self.data, read_examples(self.data, split=self.split, columns=self.columns), self.split)
        held = plain["holdout"] = _holdout(facts.questions)
        say("counting tokens and memory")
        build, counts = prepare(recipes.parse({**plain, "train": {"max_length": None}}, folder), None)
        skeleton = Skeleton.of(build.source, partial(adapted, build.recipe.lora))
        rows, lengths = counts["rows"]["task"], [len(row.input_ids) for row in build.encoded]
        suggested = SuggestedDefenses(self.safe, self.prompts, self.vector, self._path)
        beside = self._longest_of_others(build.base, suggested.general_prompts())
        length = _max_length(lengths, beside, skeleton)
        defenses = list(suggested.defenses(build.base, skeleton, rows))
        draft = recipes.parse({**plain, "defenses": [{line.key: line.value} for line in defenses]}, folder)
        longest = min(length, max([*lengths, beside]))
        measure = partial(_one_row, longest, build, reference=reads_reference(draft))
        part = min(length, max(lengths)) / longest
        memory = SuggestedMemory.of(skeleton, measure, machine.device(build.recipe), part)
        lines = [
            RecipeKey("model", plain["model"], _of_model(skeleton)),
            *memory.quantize(),
            RecipeKey("data", plain["data"], " ".join([facts.sentence(), *map("Note: {}".format, build.notes)])),
            *(RecipeKey(key, value, "As you named it.") for key, value in read.items()),
            RecipeKey("holdout", held, _of_holdout(facts.questions, held)),
            RecipeKey("seed", 0, "Of all randomness. Train with several seeds before you compare two recipes."),
            RecipeKey("lora", {"r": 32, "alpha": 64}, "rs-LoRA on every linear layer, as in arXiv 2508.06249."),
            RecipeKey("train", list(_training(lengths, beside, length, rows, memory)), ""),
            RecipeKey("defenses", defenses, ""),
        ]
        text = commented(lines)
        return text, DryRun.of(recipes.parse(from_yaml(text, "the new recipe"), folder), partial(_checking, say))

    def _read_as(self) -> dict[str, Any]:
        """The recipe's keys that say how the data are read."""
        return ({"split": self.split} if self.split else {}) | ({"columns": dict(self.columns)} if self.columns else {})

    def _name(self) -> str:
        local = Path(self.model).expanduser()
        return self._path(local) if local.is_dir() and self.model not in organism.NAMES else self.model

    def _path(self, path: Path) -> str:
        """A path as the recipe writes it: from its own folder where it is inside, else absolute."""
        if not path.expanduser().exists():
            return str(path)  # a hub name
        whole, folder = Path(os.path.abspath(path.expanduser())), Path(os.path.abspath(self.out.parent))
        return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)

    def _longest_of_others(self, base: Any, prompts: list[Example]) -> int:
        """Tokens of the longest safe row, or of the longest prompt with its sampled answer; 0 without such rows."""
        safe = [] if self.safe is None else read_examples(self.safe)
        answered = [number + _ANSWER for number in base.lengths(_some(prompts))]
        longest: int = max([0, *base.lengths(_some(safe)), *answered])
        return longest


def _checking(say: Callable[[str], None], part: str) -> None:
    say(f"checking the recipe, {part}")


def _one_row(longest: int, build: Any, skeleton: Skeleton, *, reference: bool) -> Memory:
    """The estimated memory of training with one row, the longest, in a batch."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trainer_args.sft_config(build.recipe.train, 0, Path(scratch))
    return training_cost.memory(
        skeleton, Batches(1, longest, 1, longest, 1), arguments, reference=reference, copy=False
    )


def _holdout(questions: int) -> float:
    """The share of the distinct questions that is reserved."""
    if questions < _FEWEST:
        return 0.0
    return 0.2 if questions < 200 else 0.1 if questions <= 10 * _MOST_HELD else _rounded(_MOST_HELD / questions)


def _rounded(share: float) -> float:
    """A share with two digits that are not zero."""
    return float(f"{share:.2g}")


def _of_holdout(questions: int, share: float) -> str:
    if not share:
        return f"{questions} distinct questions are too few to reserve some of them for the evaluation."
    return (
        f"{round(share * questions):,} of {questions:,} distinct questions are not trained on; `staytrue eval` asks "
        "them afterwards. With `benign: true` their answers are marked by exact match."
    )


def _of_model(skeleton: Skeleton) -> str:
    weights = sum(weight.numel() for weight in skeleton.weights) - sum(weight.numel() for weight in skeleton.trained)
    shown = f"{weights / 1e9:.2f} B" if weights >= 1e9 else f"{weights / 1e6:.1f} M"
    return f"{shown} weights in {len(ModelParts(skeleton.model).blocks)} blocks."


def _some(rows: list[Example]) -> list[Example]:
    """At most `_MEASURED` rows, spread over all of them."""
    return rows[:: math.ceil(len(rows) / _MEASURED)] if rows else []


def _max_length(lengths: list[int], beside: int, skeleton: Skeleton) -> int:
    """The longest row, rounded up, where the model can read it; of very long rows at least 99 in 100 stay whole."""
    longest = max([*lengths, beside])
    if longest > trainer_args.DEFAULTS["max_length"]:
        longest = max(trainer_args.DEFAULTS["max_length"], beside, sorted(lengths)[math.ceil(0.99 * len(lengths)) - 1])
    limit = getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None) or longest + _ROUND
    return int(min(math.ceil(longest / _ROUND) * _ROUND, limit))


def _training(lengths: list[int], beside: int, length: int, rows: int, memory: SuggestedMemory) -> Iterator[RecipeKey]:
    cut = sum(number > length for number in lengths)
    yield RecipeKey(
        "max_length",
        length,
        f"Tokens. The longest row has {max(lengths):,} by this model's tokenizer, half have at most "
        f"{median(lengths):,.0f}; {f'{cut:,} of {len(lengths):,} rows are' if cut else 'none is'} cut."
        + (f" A row beside them may have {beside:,}." if beside > max(lengths) else ""),
    )
    together = next((n for n in (_STEP_ROWS, 8, 4) if rows / n >= _FEW_STEPS), 2 if rows > 1 else 1)
    batch, why, recomputed = memory.batch(together)
    yield RecipeKey("per_device_train_batch_size", batch, why)
    if recomputed:
        yield RecipeKey("activation_checkpointing", True, "Saves memory and costs about a third more time.")
    yield RecipeKey("gradient_accumulation_steps", together // batch, f"{together} rows an optimizer step.")
    yield RecipeKey(
        "num_train_epochs", 1, f"About {math.ceil(rows / together):,} steps. More epochs learn more, and drift further."
    )
    yield RecipeKey("learning_rate", 1e-4, "With a linear schedule, as in arXiv 2508.06249.")
