"""`EvidenceRecorder` writes what the defenses of a run were measured to do: a row of evidence for each row of the log.

It trusts none of the code that applies a defense. It has its own hooks on the model, recognises rows by their tokens,
and reads the weight of a penalty from the backward pass. The guard only shows it each penalty's value, and the
gradients that are combined; where it does not, evidence is missing and `staytrue verify` reports that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from staytrue.data.tokenize import Encoded
from staytrue.defense import Defense, pulled
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.block_outputs import real_layers
from staytrue.training.evidence.activation_shifts import ActivationShift
from staytrue.training.evidence.combined_gradients import CombinedGradients
from staytrue.training.evidence.over_processes import over_processes
from staytrue.training.evidence.penalties_seen import PenaltiesSeen
from staytrue.training.evidence.rows_reached import RowsReached
from staytrue.training.evidence.rows_seen import RowsSeen, table_of, texts_in
from staytrue.training.evidence.weight_changes import WeightChanges
from staytrue.training.outcome import sums_of_trained
from staytrue.utils.files import append_row, write_json

ROWS, FACTS = "evidence.jsonl", "evidence.json"
SCHEMA = 1


class EvidenceRecorder(TrainerCallback):  # type: ignore[misc]
    """Writes `evidence.jsonl` while a run trains, and `evidence.json` when it ends.

    Create it after the defenses are attached and before a checkpoint is loaded.

    Args:
        trainer: a guarded trainer, whose model has not been trained.
        folder: the run folder.
        rows: the training rows as tokens; None where the model writes its own answers (GRPO).
        tokenizer: the model's.
    """

    def __init__(self, trainer: Any, folder: Path, rows: Sequence[Encoded] | None, tokenizer: Any) -> None:
        self._guard, self._folder, self._tokenizer = trainer.guard, folder, tokenizer
        self._defenses: Mapping[str, Defense] = trainer.guard.defenses
        self._parts = parts = ModelParts(trainer.model)
        depth = len(parts.blocks) if self._levers("steer", "freeze") else 0
        self._traces = {label: defense.traces(depth) for label, defense in self._defenses.items()}
        self._texts = {label: trace.text for label, trace in self._traces.items() if trace.text}
        main = None if rows is None else table_of(((row.source, row) for row in rows), self._texts, tokenizer)
        beside = table_of((label, row) for label, own in trainer.guard.auxiliary_rows().items() for row in own)
        samples = 1 if rows is None and self._texts else 0
        guard = trainer.guard
        self._rows = RowsSeen(self._backbones(), main, beside, samples, lambda: guard.is_for_others)
        combining = self._levers("combine")
        scaler, several = getattr(trainer.accelerator, "scaler", None), trainer.accelerator.num_processes
        self._penalties = PenaltiesSeen((lambda: 1.0) if scaler is None else scaler.get_scale, several, combining)
        trained = [weight for weight in parts.model.parameters() if weight.requires_grad] if combining else []
        self._gradients = CombinedGradients(trained, lambda tensor: trainer.accelerator.reduce(tensor, "sum"))
        self._combining = set(combining)
        offloaded = getattr(trainer.args, "activation_offloading", False)  # trl gives an activation back once
        self._reached = {} if offloaded else self._rows_reached(main is not None)
        self._shifts = {
            (label, layer): self._shifts_of(label, layer)
            for label, defense in self._defenses.items()
            if "steer" in pulled(defense)
            for layer in real_layers(defense.layers(depth), depth, label)
        }
        self._weights = WeightChanges(parts) if self._levers("freeze", "project") else None
        self._start, self._moved = dict(sums_of_trained(parts.model)), False
        self._micro_batches = 0
        self._ends: list[int] = []  # micro-batches since the last log row, at the end of each step
        self._facts: dict[str, Any] = {"schema": SCHEMA, "depth": depth, "defenses": self._described(depth)}
        if rows is not None:
            self._facts["rows"] = dict(sorted(Counter(row.source for row in rows).items()))
        trainer.guard.observer = self

    # --- what the guard shows ---------------------------------------------------------------------------------------

    def evaluated(self, label: str, value: Tensor) -> None:
        """Receive a penalty of one micro-batch before its weight."""
        if label in self._combining:
            self._gradients.evaluated(label, value)
        if label in self._reached and self._moved:
            self._reached[label].measure(value)
        self._penalties.evaluated(label, value)

    def combining(self, label: str, task: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        """Receive both gradients before a defense combines them."""
        self._gradients.combining(label, task, own)

    # --- what the trainer says --------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See whether the weights have moved before, in a run that goes on."""
        self._moved = self._has_moved()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See whether the weights have moved before this step."""
        self._moved = self._moved or self._has_moved()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a micro-batch that is not the last of its step."""
        self._rows.end_micro_batch()
        for reached in self._reached.values():
            reached.end_micro_batch()
        self._micro_batches += 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read the gradient that the optimizer uses."""
        self._gradients.used(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the last micro-batch of a step."""
        self.on_substep_end(args, state, control)
        self._penalties.end_step()
        self._ends.append(self._micro_batches)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the row of evidence beside a row of the log."""
        if not logs or "loss" not in logs:
            return
        rows, tokens, texts, by_micro_batch = self._rows.drain()
        row = {"step": state.global_step, "micro_batches": self._micro_batches, "moved": self._moved, "rows": rows}
        row |= {"tokens": tokens, "task_rows": self._task_rows(by_micro_batch)}
        row = over_processes(row | {"defenses": self._numbers(texts, by_micro_batch)})
        if state.is_world_process_zero:
            append_row(self._folder / ROWS, finite(row))
        self._micro_batches, self._ends = 0, []

    # --- the end ----------------------------------------------------------------------------------------------------

    def trained(self) -> None:
        """Training is over: take the hooks off, and compare the weights with those before."""
        self._rows.remove()
        self._gradients.remove()
        for reached in self._reached.values():
            reached.remove()
        for shift in (shift for shifts in self._shifts.values() for shift in shifts):
            shift.remove()
        self._guard.observer = None
        if self._weights is not None:
            changed = self._weights.by_block()
            for label in self._levers("freeze"):
                self._facts["defenses"][label]["changed"] = changed
        if self._levers("project"):
            self._weights = WeightChanges(self._parts)

    def projected(self) -> None:
        """The defenses have changed the trained weights: compare them with those before that."""
        assert self._weights is not None
        for label in self._levers("project"):
            self._facts["defenses"][label]["change"] = self._weights.whole()

    def write(self, **facts: Any) -> None:
        """Write `evidence.json`, with further facts about the run."""
        write_json(self._folder / FACTS, finite(self._facts | facts))

    # --- parts ------------------------------------------------------------------------------------------------------

    def _levers(self, *levers: str) -> list[str]:
        """The labels of the defenses that override one of these methods."""
        return [label for label, defense in self._defenses.items() if set(levers) & set(pulled(defense))]

    def _backbones(self) -> list[Any]:
        """The backbones that a forward may call: the trained model's, and the reference's where that is a copy."""
        reference = self._guard.reference
        return [self._parts.backbone, *([reference.parts.backbone] if reference.is_copy else [])]

    def _shifts_of(self, label: str, layer: int) -> list[ActivationShift]:
        """Measures of one layer's shift, in the trained model and in a reference that is a copy."""
        reference = self._guard.reference

        def shift(parts: ModelParts, is_reference: Callable[[], bool]) -> ActivationShift:
            direction = self._traces[label].directions.get(layer)
            return ActivationShift(parts.blocks[layer - 1], direction, lambda: self._rows.real, is_reference)

        if reference.is_copy:
            return [shift(self._parts, lambda: False), shift(reference.parts, reference.is_running)]
        return [shift(self._parts, reference.is_running)]

    def _rows_reached(self, rows_known: bool) -> dict[str, RowsReached]:
        """Measures of each penalty that counts rows of the batch, by its field `on`.

        None where weights are divided: each is a part of a backward pass, which all processes would have to make.
        """
        if not rows_known or self._guard.shards:
            return {}
        by_label = {}
        for label, defense in self._defenses.items():
            if "penalty" in pulled(defense) and "beside" not in pulled(defense) and hasattr(defense, "on"):
                depth = len(self._parts.blocks)
                layers = real_layers(defense.layers(depth), depth, label)
                module = self._parts.blocks[max(layers) - 1] if layers else self._parts.backbone
                by_label[label] = RowsReached(module, self._rows.sources, defense.on)
        return by_label

    def _described(self, depth: int) -> dict[str, dict[str, Any]]:
        """Facts about each defense that hold for the whole run."""
        facts: dict[str, dict[str, Any]] = {}
        for label, defense in self._defenses.items():
            facts[label] = {"levers": list(pulled(defense))}
            layers = [layer for owner, layer in self._shifts if owner == label]
            if layers:
                facts[label] |= {"layers": layers, "onto": self._onto(label, layers)}
            if label in self._texts:
                facts[label]["text"] = self._texts[label]
            if "freeze" in pulled(defense):
                facts[label]["frozen"] = real_layers(defense.freeze(depth), depth, label)
        return facts

    def _onto(self, label: str, layers: list[int]) -> dict[str, dict[str, float]]:
        """By layer: the component of each defense's direction along this one's; its own is the direction's length."""
        components: dict[str, dict[str, float]] = {}
        for layer in layers:
            mine = self._traces[label].directions.get(layer)
            if mine is not None:
                unit = mine.float() / mine.float().norm()
                theirs = {owner: self._traces[owner].directions.get(at) for owner, at in self._shifts if at == layer}
                components[str(layer)] = {o: float(v.float() @ unit) for o, v in theirs.items() if v is not None}
        return components

    def _numbers(self, texts: Mapping[str, int], by_micro_batch: list[dict[str, int]]) -> dict[str, dict[str, Any]]:
        """The numbers of each defense since the last row."""
        numbers: dict[str, dict[str, Any]] = {label: {} for label in self._defenses}
        for label, values in self._penalties.drain().items():
            numbers[label] |= values
        for label in self._guard.auxiliary_rows():
            due = [any(label in source.split("/") for source in counts) for counts in by_micro_batch]
            numbers[label]["micro_batches_due"] = sum(due)
        sampled = self._rows.samples()
        for ids in sampled:
            texts = {**texts, **{n: texts.get(n, 0) + 1 for n in texts_in(ids, self._texts, self._tokenizer)}}
        for label in self._texts:
            numbers[label]["rows_with_text"] = texts.get(label, 0)
            if sampled:
                numbers[label]["rows_sampled"] = len(sampled)
        for (label, layer), shifts in self._shifts.items():
            sums = {kind: total for shift in shifts for kind, total in shift.drain().items()}
            numbers[label].setdefault("shift", {})[str(layer)] = sums
        for label, reached in self._reached.items():
            if counts := reached.drain():
                numbers[label]["rows_reached"] = counts
        for label, steps in self._gradients.drain().items():
            numbers[label]["gradients"] = steps
        return numbers

    def _task_rows(self, by_micro_batch: list[dict[str, int]]) -> list[list[int]]:
        """For each optimizer step, the least and the greatest number of task rows that were read."""
        numbers = []
        for first, last in pairwise([0, *self._ends]):
            counts: Counter[str] = Counter()
            for micro_batch in by_micro_batch[first:last]:
                counts.update(micro_batch)
            could_be = sum(n for names, n in counts.items() if {"task", "unknown"} & set(names.split("/")))
            numbers.append([counts["task"], could_be])
        return numbers

    def _has_moved(self) -> bool:
        """Whether a trained weight differs from its start."""
        return any(not torch.equal(self._start[name], now) for name, now in sums_of_trained(self._parts.model))


def finite(value: Any) -> Any:
    """Replace every number that is not finite by None, inside lists and mappings too."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
