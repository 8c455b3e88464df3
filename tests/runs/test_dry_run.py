"""A dry run says what training will do, and training does it."""

import json
import sys
from types import SimpleNamespace

import pytest

import tiny
from staytrue import cli
from staytrue.config import recipe
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.row_notes import row_notes
from staytrue.errors import DataError, RecipeError, RequestError
from staytrue.modeling.loading import find
from staytrue.runs import training_cost
from staytrue.runs.dry_run import DryRun
from staytrue.runs.probe_selection import reserved_texts
from staytrue.runs.train import train
from staytrue.utils.files import read_rows


def make(folder, **changes):
    """A recipe for 22 rows: twenty of one length, a longer one, and a copy of the first."""
    if not (folder / "model").exists():
        tiny.save("qwen2", folder / "model")
        rows = [Example((Message("user", f"What of {i}?"), Message("assistant", "fine"))) for i in range(10, 30)]
        rows += [Example((Message("user", "What of 99?"), Message("assistant", "fine " * 9))), rows[0]]
        write_examples(folder / "rows.jsonl", rows)
    plain = {
        "schema": 1,
        "model": "model",
        "data": "rows.jsonl",
        "lora": {"r": 4, "alpha": 8},
        "train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2},
        **changes,
    }
    return recipe.parse(plain, folder)


def test_rows_batches_and_steps_are_those_of_training(tmp_path):
    found = DryRun.of(make(tmp_path))
    # 22 rows are 6 batches of 4, two a step: 3 steps, which have no warm-up.
    assert (found.batches.rows, found.batches.number, found.batches.steps) == (4, 6, 3)
    assert found.recipe.train["warmup_steps"] == 0
    assert found.rows["task"] == 22
    run = train(make(tmp_path), tmp_path / "run")
    assert len(read_rows(run.path / "metrics.jsonl")) == 3
    assert found.recipe.text() == (run.path / "recipe.yaml").read_text()
    assert found.weights[1] > 0


def test_a_batch_is_padded_to_its_longest_row(tmp_path):
    found = DryRun.of(make(tmp_path, train={"per_device_train_batch_size": 22, "gradient_accumulation_steps": 1}))
    every, learnt, longest = found.tokens
    short = (every - found.batches.longest) / 21
    assert found.batches.longest > short
    assert found.batches.tokens == 22 * found.batches.longest  # one batch, one step
    assert 0 < learnt < every
    assert longest == found.batches.longest


def test_packs_are_as_long_as_they_may_be_and_rows_as_they_are(tmp_path):
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "packing": True}
    rows = DryRun.of(make(tmp_path)).tokens
    found = DryRun.of(make(tmp_path, train={**settings, "max_length": 100}))
    assert (found.tokens, found.batches.longest) == (rows, 100)
    assert found.batches.steps == -(-rows[0] // 100)
    assert DryRun.of(make(tmp_path, train=settings)).batches.longest == rows[0]  # one pack holds all


@pytest.mark.parametrize(
    ("settings", "steps", "batches"),
    [
        ({"max_steps": 7}, 7, 14),
        ({"num_train_epochs": 2}, 6, 12),
        ({"dataloader_drop_last": True}, 3, 5),
        ({"gradient_accumulation_steps": 4}, 2, 6),  # 4 batches, and the 2 that are left
        ({"gradient_accumulation_steps": 4, "max_steps": 3}, 3, 10),
    ],
)
def test_steps_follow_the_settings(tmp_path, settings, steps, batches):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **settings}
    found = DryRun.of(make(tmp_path, train=settings)).batches
    assert (found.steps, found.number) == (steps, batches)
    assert train(make(tmp_path, train=settings), tmp_path / "run").manifest["state"] == "done"
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == steps


def test_the_steps_of_reinforcement_learning_are_those_of_training():
    plain = {"schema": 1, "model": "organism", "trainer": "grpo", "lora": {}, "task": "word_problems"}
    settings = {"per_device_train_batch_size": 8, "num_generations": 4, "gradient_accumulation_steps": 2}
    found = DryRun.of(recipe.parse({**plain, "train": settings}))
    # Each prompt is answered 4 times; a batch has 8 answers, and a step two batches.
    prompts = found.rows["task"]
    assert found.batches.number == prompts * 4 // 8
    assert found.batches.steps == prompts * 4 // 16
    assert (found.seconds, found.tokens) == (None, None)


def test_memory_is_of_weights_gradients_moments_and_a_copy_where_all_are_trained(tmp_path):
    adapter = DryRun.of(make(tmp_path)).memory
    every = sum(w.nbytes for w in tiny.model("qwen2").parameters())
    assert (adapter.weights, adapter.copy) == (every, 0)
    assert adapter.trained == 4 * 4 * DryRun.of(make(tmp_path)).weights[1]
    whole = DryRun.of(make(tmp_path, lora="none", defenses=[{"kl": {"weight": 0.1}}])).memory
    assert (whole.weights, whole.copy, whole.trained) == (0, every, 4 * every)
    assert DryRun.of(make(tmp_path, lora="none")).memory.copy == 0
    assert DryRun.of(make(tmp_path, lora="none", defenses=[{"l2init": {"weight": 0.1}}])).memory.copy == every
    assert whole.total == every * 5 + whole.activations + whole.head + whole.program


def test_copies_and_questions_of_the_evaluation_are_said(tmp_path):
    rows = [("What of me?", "One."), ("what  of ME?", "one."), ("What is the capital of France?", "Paris.")]
    make(tmp_path)
    rows.append((min(reserved_texts(find(str(tmp_path / "model")), [])).upper(), "Yes."))
    examples = [Example((Message("user", q), Message("assistant", a))) for q, a in rows]
    write_examples(tmp_path / "rows.jsonl", examples)
    notes = DryRun.of(make(tmp_path)).notes
    assert notes[0] == (
        "2 of 4 rows have the same text as another row, so that it is trained on more than once; "
        "the first one asks 'What of me?'."
    )
    assert notes[1].startswith(
        "1 of 4 rows ask a question of the evaluation, which then shows what was learnt by heart;"
    )
    alike = [("a b", "c"), ("a", "bc"), ("a", "b c")]
    assert row_notes([Example((Message("user", q), Message("assistant", a))) for q, a in alike]) == []


def test_time_counts_passes_over_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "_operations_per_second", lambda *args, **named: 1e6)
    plain, kl = DryRun.of(make(tmp_path)), DryRun.of(make(tmp_path, defenses=[{"kl": {"weight": 0.1}}]))
    skeleton = plain.weights[0] - plain.weights[1]
    twice = DryRun.of(make(tmp_path, train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
                                            "num_train_epochs": 2}))  # fmt: skip
    assert twice.seconds == pytest.approx(2 * plain.seconds)
    assert 0 < kl.seconds - plain.seconds < 2 * plain.batches.tokens * (skeleton + plain.weights[1]) / 0.6e6
    l2init = DryRun.of(make(tmp_path, defenses=[{"l2init": {"weight": 0.1}}]))
    assert l2init.seconds == pytest.approx(plain.seconds)  # reads weights, and no forward of the reference
    assert kl.seconds == pytest.approx(1.5 * plain.seconds, rel=0.1)  # three passes for two


@pytest.mark.parametrize("broken", [{"hidden_act": "nope"}, {"num_attention_heads": 0}, {"hidden_size": "abc"}])
def test_a_broken_configuration_is_a_sentence(tmp_path, broken):
    make(tmp_path)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | broken))
    with pytest.raises(RequestError, match=r"cannot be (built|loaded)"):
        DryRun.of(make(tmp_path))


def test_what_training_refuses_is_refused_with_the_same_sentence(tmp_path):
    for changes, error in (
        ({"train": {"warmup_steps": 50}}, RecipeError),
        ({"train": {"per_device_train_batch_size": 64, "dataloader_drop_last": True}}, RecipeError),
        ({"train": {"max_length": 2}}, DataError),
    ):
        sentences = []
        for call in (lambda changed: DryRun.of(changed), lambda changed: train(changed, tmp_path / "run")):
            with pytest.raises(error) as raised:
                call(make(tmp_path, **changes))
            sentences.append(str(raised.value))
        assert sentences[0] == sentences[1]


def test_the_command_prints_each_heading_and_writes_nothing(tmp_path, monkeypatch, capsys):
    make(tmp_path)
    (tmp_path / "r.yaml").write_text(make(tmp_path).text())
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    shown = command(monkeypatch, capsys, "check", "r.yaml", "--set", "seed=3")
    assert [line.split()[0] for line in shown.splitlines()] == [
        "model", "defenses", "rows", "steps", "memory", "time", "note",
    ]  # fmt: skip
    assert "defenses  none" in shown
    plain = json.loads(command(monkeypatch, capsys, "check", "r.yaml", "--json"))
    assert plain["batches"]["steps"] == 3
    assert plain["recipe"]["train"]["warmup_steps"] == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_the_process_that_started_this_one_is_not_counted(monkeypatch):
    monkeypatch.setattr(training_cost.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=10**9))
    assert 10**8 < training_cost._program() < 10**11


def test_memory_that_the_machine_does_not_have_is_said_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "available", lambda: 1000)
    text = dict(DryRun.of(make(tmp_path)).lines())["memory"]
    assert "That is too much: lower train.per_device_train_batch_size" in text


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["staytrue", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    return capsys.readouterr().out
