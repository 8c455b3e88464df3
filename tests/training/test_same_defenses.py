"""A script's training goes on from a checkpoint only with the defenses, the seed and the model that it began with."""

import json
import warnings
from dataclasses import replace

import pytest
from trl import SFTTrainer

import tiny
from small_trainers import grpo, sft
from staytrue.data.examples import write_examples
from staytrue.defense import Defense
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.errors import RecipeError

_SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


@pytest.fixture
def pool(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    return tmp_path / "pool.jsonl"


def began(folder, defenses, make=sft, **changes):
    """A training that was stopped after two steps."""
    make(folder, defenses, **_SAVED | {"max_steps": 2} | changes).train()


def goes_on(folder, defenses, make=sft, **changes):
    made = make(folder, defenses, **_SAVED | changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not hold which defenses")
        made.train(resume_from_checkpoint=True)
    return made


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        ([KL(1.0)], [], "trained with kl, and now with no defense"),
        ([], [KL(1.0)], "trained with no defense, and now with kl"),
        ([KL(1.0)], [KL(1.0), LDIFS(1.0)], "trained with kl, and now with kl, ldifs"),
        ([KL(1.0), LDIFS(1.0)], [LDIFS(1.0), KL(1.0)], "trained with kl, ldifs, and now with ldifs, kl"),
        ([KL(1.0)], [KL(0.5)], "trained with kl weight=1.0, and now it is 0.5"),
        ([KL(1.0)], [KL(1.0, tokens="all")], "trained with kl tokens='scored', and now it is 'all'"),
        ([KL(1.0), KL(0.5)], [KL(1.0), KL(0.25)], r"trained with kl\.2 weight=0\.5, and now it is 0\.25"),
    ],
)
def test_other_defenses_are_refused(tmp_path, before, now, sentence):
    began(tmp_path, before)
    made = sft(tmp_path, now, **_SAVED)
    with pytest.raises(RecipeError, match=f"^The checkpoint was {sentence}, so it would go on as another training"):
        made.train(resume_from_checkpoint=True)


def test_grpo_is_refused_as_well_and_goes_on_with_the_same(tmp_path):
    began(tmp_path, [KL(1.0)], make=grpo)
    with pytest.raises(RecipeError, match=r"trained with kl weight=1.0, and now it is 0.5"):
        goes_on(tmp_path, [KL(0.5)], make=grpo)
    assert goes_on(tmp_path, [KL(1.0)], make=grpo).state.global_step == 3


@pytest.mark.parametrize("whole", [False, True])
def test_the_same_defenses_go_on(tmp_path, whole):
    began(tmp_path, [KL(1.0)], whole=whole)
    assert goes_on(tmp_path, [KL(1.0)], whole=whole).state.global_step == 3


def test_a_file_may_move_and_its_content_may_not_change(tmp_path, pool):
    anchor = Anchor(pool, share=0.5, answers="given")
    began(tmp_path, [anchor])
    moved = pool.rename(tmp_path / "moved.jsonl")
    goes_on(tmp_path, [replace(anchor, prompts=moved)])
    write_examples(moved, tiny.rows(11))
    with pytest.raises(RecipeError, match=r"trained with anchor prompts='a file with the hash \w{12}', and now"):
        goes_on(tmp_path, [replace(anchor, prompts=moved)])


def test_another_seed_is_refused(tmp_path):
    began(tmp_path, [KL(1.0)])
    with pytest.raises(RecipeError, match="trained with seed=0, and now it is 1"):
        goes_on(tmp_path, [KL(1.0)], seed=1)


def test_another_reference_is_refused(tmp_path):
    began(tmp_path, [KL(1.0)])
    goes_on(tmp_path, [KL(1.0)], more={"reference": "base"})  # of a fresh adapter the same as no choice
    with pytest.raises(RecipeError, match="trained with reference='base', and now it is 'start'"):
        goes_on(tmp_path, [KL(1.0)], more={"reference": "start"})


@pytest.mark.parametrize("whole", [False, True])
def test_a_trainer_of_another_model_is_refused(tmp_path, whole):
    began(tmp_path, [KL(1.0)], whole=whole)
    with pytest.raises(RecipeError, match="not the one that the checkpoint's training began with"):
        goes_on(tmp_path, [KL(1.0)], whole=whole, model=tiny.model(seed=1))


def test_all_weights_go_on_from_the_model_before_training_and_not_from_the_checkpoints(tmp_path):
    began(tmp_path, [KL(1.0)], whole=True)
    trained = type(tiny.model()).from_pretrained(tmp_path / "out" / "checkpoint-2")
    with pytest.raises(RecipeError, match="Make the trainer with the model before training"):
        goes_on(tmp_path, [KL(1.0)], whole=True, model=trained)


@pytest.mark.parametrize("by", ["trl", "an older version"])
def test_a_checkpoint_without_defenses_in_it_is_warned_of_and_goes_on(tmp_path, by):
    if by == "trl":
        began(tmp_path, [], cls=SFTTrainer)
    else:
        began(tmp_path, [KL(1.0)])
        for file in (tmp_path / "out").glob("checkpoint-*/trainer_state.json"):
            state = json.loads(file.read_text())
            state["stateful_callbacks"]["staytrue"] = {
                "task_rows": state["stateful_callbacks"]["staytrue"]["task_rows"]
            }
            file.write_text(json.dumps(state))
    made = sft(tmp_path, [KL(1.0)], **_SAVED)
    with pytest.warns(UserWarning, match="does not hold which defenses it was trained with.*goes on with kl"):
        made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 3


def test_trl_goes_on_from_a_defended_checkpoint(tmp_path):
    began(tmp_path, [KL(1.0)])
    made = sft(tmp_path, cls=SFTTrainer, **_SAVED)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 3


def test_a_defense_of_ones_own_is_compared_by_what_it_has(tmp_path):
    class Own(Defense):
        weight = 1.0

        def __init__(self, strength):
            self.strength = strength

        def penalty(self, step):
            span = step.span()
            return self.strength * step.mean(step.divergence(span), span)

    began(tmp_path, [Own(1.0)])
    with pytest.raises(RecipeError, match=r"trained with own strength=1.0, and now it is 2.0"):
        goes_on(tmp_path, [Own(2.0)])
    assert goes_on(tmp_path, [Own(1.0)]).state.global_step == 3
