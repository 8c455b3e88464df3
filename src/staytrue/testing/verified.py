"""Contract check with `staytrue verify`: from the files of a short training alone, did the defense act?"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from staytrue.data.examples import Example
from staytrue.data.tokenize import encode_all
from staytrue.defense import Defense
from staytrue.modeling.base_model import Untouched
from staytrue.testing.training import guarded_trainer, mixed, with_beside_rows
from staytrue.training.callbacks import RunLog
from staytrue.training.evidence.recorder import EvidenceRecorder
from staytrue.training.guard import Guard
from staytrue.utils.run_dir import RunDir
from staytrue.verify.run_folder import findings


def verified(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Train three steps with a record of evidence, and let `staytrue verify` check it.

    It is what a run of this defense would write; a defense that it refuses could never be shown to act.
    """
    one, model = with_beside_rows(defense), deepcopy(model)
    guard = Guard([one])
    before = mixed([one], rows)
    examples = guard.curate(before, Untouched(lambda: model, tokenizer))
    encoded, _ = encode_all(tokenizer, examples, None)
    with TemporaryDirectory() as scratch:
        run = RunDir.create(Path(scratch) / "run", {})
        trainer = guarded_trainer(guard, model, tokenizer, examples, Path(scratch))
        recorder = EvidenceRecorder(trainer, run.path, encoded, tokenizer)
        trainer.add_callback(recorder)
        trainer.add_callback(RunLog(run.path / "metrics.jsonl"))
        trainer.train()
        recorder.trained()
        if guard.pulls("project"):
            run.save(projected=guard.project(trainer.model))
            recorder.projected()
        new = {row.messages for row in before}
        recorder.write(
            curated={"new": sum(row.messages not in new for row in examples), "added": len(examples) - len(before)}
        )
        guard.detach()
        for finding in findings(run.path, [one])[1:]:  # the first is about the files of a whole run
            assert not finding.faults, f"`staytrue verify` refuses {one.name()}: {'; '.join(finding.faults)}"
