"""Entropy and top-1 are computed where a log line shows them, and cost nothing in between."""

import pytest
from transformers import TrainerCallback

from staytrue.defenses.kl import KL
from staytrue.modeling import fused_loss
from training import test_grpo
from training import test_trainers as test_seam

SHOWN = ("entropy", "mean_token_accuracy")


@pytest.fixture
def metered(monkeypatch):
    """Of every pass over the head, whether it took entropy and top-1."""
    taken, run = [], fused_loss._Tiled.run

    def spy(self, *arguments):
        taken.append(self.metrics)
        return run(self, *arguments)

    monkeypatch.setattr(fused_loss._Tiled, "run", spy)
    return taken


def lines(made, name):
    return {row["step"]: row[name] for row in made.state.log_history if name in row}


@pytest.mark.parametrize("defenses", [[], [KL()]], ids=["none", "kl"])
def test_only_steps_that_end_in_a_log_line_and_the_last_are_looked_at(defenses, tmp_path, metered):
    every = test_seam.trained(tmp_path, defenses, max_steps=5, learning_rate=0.1)
    assert metered == [True] * 5
    metered.clear()
    some = test_seam.trained(tmp_path, defenses, max_steps=5, learning_rate=0.1, logging_steps=2)
    assert metered == [False, True, False, True, True]
    assert test_seam.weights(some).equal(test_seam.weights(every))
    for name in SHOWN:
        all_steps, shown = lines(every, name), lines(some, name)
        assert {step: shown[step] for step in (2, 4, 5)} == {step: all_steps[step] for step in (2, 4, 5)}
    loss = lines(every, "loss")
    assert lines(some, "loss")[4] == pytest.approx((loss[3] + loss[4]) / 2, abs=1e-3)  # still an average


def test_every_micro_batch_of_such_a_step_counts(tmp_path, metered):
    how = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "learning_rate": 0.1}
    every = test_seam.trained(tmp_path, [KL()], **how)
    metered.clear()
    some = test_seam.trained(tmp_path, [KL()], logging_steps=2, **how)
    assert metered == [False] * 3 + [True] * 3
    for name in SHOWN:
        assert lines(some, name)[2] == lines(every, name)[2]


@pytest.mark.parametrize(
    ("changes", "looked_at"),
    [
        ({"logging_first_step": True, "logging_steps": 3}, [True, False, True, True]),
        ({"logging_steps": 0.5}, [False, True, False, True]),  # a share of all steps
        ({"logging_strategy": "epoch"}, [True] * 4),  # which step ends an epoch is not known beforehand
    ],
)
def test_it_follows_the_trainers_own_rhythm(changes, looked_at, tmp_path, metered):
    test_seam.trained(tmp_path, [], max_steps=4, **changes)
    assert metered == looked_at


def test_a_line_that_nobody_foresaw_goes_without(tmp_path):
    class Impatient(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_log = True

    made = test_seam.trainer(tmp_path, [], max_steps=3, logging_steps=2)
    made.add_callback(Impatient())
    made.train()
    assert sorted(lines(made, "loss")) == [1, 2, 3]
    assert sorted(lines(made, "entropy")) == [2, 3]


def test_trls_own_head_goes_on_as_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(test_seam.GuardedSFT, "_keeps_its_head", lambda self: "a test")
    every, some = (test_seam.trained(tmp_path, [], max_steps=2, logging_steps=n) for n in (1, 2))
    mean = sum(lines(every, "entropy").values()) / 2
    assert lines(some, "entropy")[2] == pytest.approx(mean, rel=1e-5)


def test_under_a_reward_entropy_is_a_curve_of_its_own(tmp_path, metered):
    made = test_grpo.trainer(tmp_path, [KL()], max_steps=2, logging_steps=2, learning_rate=0.1)
    metered.clear()
    made.train()
    assert metered == [True, True]
    assert list(lines(made, "entropy")) == [2]
