"""`staytrue verify` says yes of every honest run, and no of every mutant and of an edited copy."""

import dataclasses
import json
import re
import shutil
import sys

import datasets
import pytest

import mutants
import small_trainers
import tiny
from interrupted import Stopping, defense
from staytrue import cli, registry
from staytrue.config import recipe as recipes
from staytrue.config import trainer_args
from staytrue.data.examples import write_examples
from staytrue.defense import Defense, pulled
from staytrue.defenses.freeze import Freeze
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.interleave import Interleave
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.defenses.safegrad import SafeGrad
from staytrue.defenses.safelora import SafeLoRA
from staytrue.defenses.steer import Steer
from staytrue.errors import RequestError, StaytrueError
from staytrue.modeling.architecture import ModelParts
from staytrue.runs import train
from staytrue.runs.eval_request import EvalRequest, for_run
from staytrue.step import Activations, Step
from staytrue.training import defense_fit
from staytrue.training.guard import Guard
from staytrue.training.hooks import BackboneHooks
from staytrue.training.micro_batch import MicroBatch
from staytrue.training.row_schedule import AuxiliaryRows, EvenSampler
from staytrue.training.separate_gradients import SeparateGradients
from staytrue.utils.files import read_rows, sha256_of
from staytrue.verify.run_folder import findings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, rows, and a pool of other rows."""
    folder = tmp_path_factory.mktemp("home")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    write_examples(folder / "rows.jsonl", tiny.rows(24))
    problems = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(6)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return folder


def test_rows_that_were_read_only_before_the_weights_moved_are_no_fault(home, tmp_path):
    """Of three steps of 8 rows the first one reads an anchor row, and the log has one row, after the second."""
    few = {"max_steps": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "logging_steps": 2}
    anchor = dataclasses.replace(defense("anchor", tmp_path), share=0.0625)
    for weight in (0.3, 0.0):
        run = tmp_path / f"run{weight}"
        train.train(recipe_of(home, [dataclasses.replace(anchor, weight=weight)], train=few), run)
        assert (faults(run) == {}) is (weight > 0)


def recipe_of(home, defenses=(), **changes):
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 2,
                "learning_rate": 1e-2, "warmup_steps": 0}  # fmt: skip
    plain = {"schema": 1, "model": str(home / "model"), "data": "rows.jsonl", "lora": {"r": 4, "alpha": 8}, "seed": 3}
    plain |= {"train": settings | changes.pop("train", {}), **changes}
    return recipes.parse(plain, home).model_copy(update={"defenses": tuple(defenses)})


def faults(run, defenses=None):
    return {f.what: f.faults for f in findings(run, defenses) if f.faults}


@pytest.mark.parametrize("name", registry.names())
def test_every_defense_is_seen_to_act(home, tmp_path, name):
    train.train(recipe_of(home, [defense(name, tmp_path)]), tmp_path / "run")
    assert faults(tmp_path / "run") == {}
    assert [f.what for f in findings(tmp_path / "run")] == ["files", "loss", name]


def seen(home, folder, defenses, **changes):
    """Train, and return what verify finds wrong."""
    train.train(recipe_of(home, defenses, **changes), folder / "run")
    return faults(folder / "run")


def several(folder):
    return [defense(name, folder) for name in ("kl", "ldifs", "interleave", "rehearse", "inoculate", "steer", "freeze")]


def test_defenses_together_are_seen_to_act(home, tmp_path):
    assert seen(home, tmp_path, several(tmp_path)) == {}


@pytest.mark.parametrize("train", [{"logging_steps": 3, "save_steps": 3}, {"activation_checkpointing": True},
                                   {"padding_free": True}, {"packing": True},
                                   {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1, "max_steps": -1,
                                    "num_train_epochs": 2},
                                   {"learning_rate": 1e-9, "max_steps": 1}])  # fmt: skip
def test_settings_of_the_trainer_change_nothing(home, tmp_path, train):
    assert seen(home, tmp_path, [*several(tmp_path), defense("safegrad", tmp_path)], train=train) == {}


def test_activations_that_are_stored_elsewhere_change_nothing(home, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_args, "_check_gpu", lambda key: None)
    monkeypatch.setattr("trl.trainer.sft_trainer.get_act_offloading_ctx_manager", small_trainers.stored_once)
    assert seen(home, tmp_path, several(tmp_path), train={"activation_offloading": True}) == {}


@pytest.mark.parametrize("fields", [{"mode": "ablate"}, {"mode": "ablate", "alpha": 0.5}, {"at": "answer"},
                                    {"layer": -1}, {"alpha": -2.0}])  # fmt: skip
def test_every_steering_is_seen(home, tmp_path, fields):
    one = dataclasses.replace(defense("steer", tmp_path), **fields)
    assert seen(home, tmp_path, [one]) == {}


def test_two_vectors_at_one_layer_are_seen(home, tmp_path):
    one = defense("steer", tmp_path)
    assert seen(home, tmp_path, [one, dataclasses.replace(one, alpha=0.25)]) == {}


@pytest.mark.parametrize("fields", [{"share_of": "tokens"}, {"share": 0.1}])
def test_every_share_is_seen(home, tmp_path, fields):
    assert seen(home, tmp_path, [dataclasses.replace(defense("interleave", tmp_path), **fields)]) == {}


@pytest.mark.parametrize("on", ["all", "task", "interleaved"])
@pytest.mark.parametrize("name", ["kl", "ldifs", "constrained_sft"])
def test_the_rows_that_a_penalty_counts_are_seen(home, tmp_path, name, on):
    defenses = [dataclasses.replace(defense(name, tmp_path), on=on), defense("interleave", tmp_path)]
    assert seen(home, tmp_path, defenses, train={"per_device_train_batch_size": 4}) == {}
    reached = {}
    for row in read_rows(tmp_path / "run" / "evidence.jsonl"):
        for source, (hit, count) in row["defenses"][name].get("rows_reached", {}).items():
            reached[source] = [a + b for a, b in zip(reached.get(source, (0, 0)), (hit, count), strict=True)]
    assert {source for source, (hit, _) in reached.items() if hit} == ({"task", "interleaved"} if on == "all" else {on})
    assert all(hit in (0, count) for hit, count in reached.values())


ONE_ROW_A_STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 12}


@pytest.mark.parametrize("train", [{"save_steps": 12}, {"logging_steps": 3, "save_steps": 12}], ids=str)
@pytest.mark.parametrize(("name", "on"), [("kl", "interleaved"), ("ldifs", "interleaved"), ("constrained_sft", "task")])
def test_a_penalty_without_a_token_in_most_steps_is_seen_and_is_null_there(home, tmp_path, name, on, train):
    defenses = [dataclasses.replace(defense(name, tmp_path), on=on), defense("interleave", tmp_path)]
    assert seen(home, tmp_path, defenses, train={**ONE_ROW_A_STEP, **train}) == {}
    log, evidence = read_rows(tmp_path / "run/metrics.jsonl"), read_rows(tmp_path / "run/evidence.jsonl")
    assert [row[name] is not None for row in log] == [on in row["rows"] for row in evidence]
    assert any(row[name] is None for row in log) or "logging_steps" in train


def shown_for(run):
    return {finding.what: finding.shows for finding in findings(run)}


def test_steps_without_a_row_of_a_defense_do_not_count_as_its_own(home, tmp_path):
    """Of 12 steps of a row, every fourth has a row of safegrad; of 12 steps with 3 of them a row is interleaved."""
    defenses = [dataclasses.replace(defense("kl", tmp_path), on="interleaved"), defense("interleave", tmp_path)]
    assert seen(home, tmp_path, defenses, train={**ONE_ROW_A_STEP, "save_steps": 12}) == {}
    read = sum("interleaved" in row["rows"] for row in read_rows(tmp_path / "run/evidence.jsonl"))
    assert 0 < read < 12
    assert f"in the gradient of 12 micro-batches, not 0 in {read} of 12 steps; its" in shown_for(tmp_path / "run")["kl"]
    few = recipe_of(home, [defense("safegrad", tmp_path)], train={**ONE_ROW_A_STEP, "save_steps": 12})
    train.train(few, tmp_path / "few")
    read = sum("safegrad" in row["rows"] for row in read_rows(tmp_path / "few/evidence.jsonl"))
    assert 0 < read < 12
    assert f"gradient was above 0 and combined in {read} of 12 steps" in shown_for(tmp_path / "few")["safegrad"]


def test_rows_that_could_be_of_two_defenses_are_shown_as_such(home, tmp_path):
    safe, rehearsed = defense("safegrad", tmp_path), defense("rehearse", tmp_path)
    train.train(recipe_of(home, [safe, dataclasses.replace(rehearsed, pool=safe.pool)]), tmp_path / "run")
    assert re.search(
        r"; 0 of its rows and [1-9]\d* that could be of another .* were", shown_for(tmp_path / "run")["rehearse"]
    )


def test_a_number_that_is_missing_where_rows_were_read_is_refused_and_a_run_of_an_older_version_is_not(home, tmp_path):
    defenses = [dataclasses.replace(defense("kl", tmp_path), on="interleaved"), defense("interleave", tmp_path)]
    assert seen(home, tmp_path, defenses, train={**ONE_ROW_A_STEP, "save_steps": 12}) == {}
    rewrite(tmp_path / "run", lambda row: row | {"kl": row["kl"] or 0.0})  # as version 0.1 logged it
    sealed(tmp_path / "run")
    assert faults(tmp_path / "run") == {}
    rewrite(tmp_path / "run", lambda row: row | {"kl": None})
    sealed(tmp_path / "run")
    assert "its number is missing in metrics.jsonl" in faults(tmp_path / "run")["kl"][0]


@pytest.mark.parametrize("name", ["kl", "interleave", "rehearse", "steer", "safegrad", "freeze"])
def test_a_resumed_run_is_seen(home, tmp_path, name):
    recipe = recipe_of(home, [defense(name, tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "run", Stopping(5))
    assert "files" in faults(tmp_path / "run")
    train.resume(tmp_path / "run")
    assert faults(tmp_path / "run") == {}


GRPO = {"trainer": "grpo", "task": "arithmetic", "data": "problems.jsonl",
        "train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                  "max_completion_length": 6, "max_steps": 4, "save_steps": 2, "beta": 0.0}}  # fmt: skip


def test_reinforcement_learning_is_seen(home, tmp_path):
    defenses = [defense(name, tmp_path) for name in ("kl", "rehearse", "inoculate", "steer")]
    assert seen(home, tmp_path, defenses, **GRPO) == {}
    # One batch of completions is looked at in each of four steps.
    assert re.fullmatch(
        r"its text stood in (\d+) rows .*, of \1 that were looked at", shown_for(tmp_path / "run")["inoculate"]
    )


def test_a_mean_over_fewer_steps_than_have_tokens_is_refused(home, tmp_path):
    # Two steps a row; in the first row one of them is 0, because the weights had not moved, and it counts all the same.
    assert seen(home, tmp_path, [defense("kl", tmp_path)], train={"logging_steps": 2}) == {}
    log = read_rows(tmp_path / "run/metrics.jsonl")
    assert log[0]["kl"] > 0
    rewrite(tmp_path / "run", lambda row: row | ({"kl": 2 * row["kl"]} if row["step"] == log[0]["step"] else {}))
    sealed(tmp_path / "run")
    assert "metrics.jsonl has" in faults(tmp_path / "run")["kl"][0]


def test_a_missing_number_of_answers_that_the_model_wrote_is_refused(home, tmp_path):
    assert seen(home, tmp_path, [defense("kl", tmp_path), defense("rehearse", tmp_path)], **GRPO) == {}
    rewrite(tmp_path / "run", lambda row: row | {"kl": None})
    sealed(tmp_path / "run")
    assert "its number is missing in metrics.jsonl" in faults(tmp_path / "run")["kl"][0]


def test_a_run_of_the_organism_is_seen(tmp_path):
    plain = {"schema": 1, "model": "organism", "task": "arithmetic", "lora": {"r": 4}, "train": {"max_steps": 3}}
    defenses = (KL(), Inoculate(), L2Init(), Freeze())
    train.train(recipes.parse(plain, tmp_path).model_copy(update={"defenses": defenses}), tmp_path / "run")
    assert faults(tmp_path / "run") == {}


@dataclasses.dataclass(frozen=True)
class Tilt(Defense):
    """A user's own: it moves one layer, and holds the last states to the reference's."""

    weight: float = 0.2

    def layers(self, depth):
        return (depth,)

    def steer(self, hidden, layer, marks):
        return hidden * 1.01

    def penalty(self, step):
        span = step.span()
        drift = (step.policy.final - step.reference.final)[span.mask]
        return step.mean(drift.square().sum(-1), span)


def test_a_defense_of_a_users_own_is_seen(home, tmp_path):
    train.train(recipe_of(home, [Tilt()]), tmp_path / "run")
    assert faults(tmp_path / "run", [Tilt()]) == {}
    assert "its weight in the gradient is 0.2" in faults(tmp_path / "run", [Tilt(weight=0.3)])["tilt"][0]


# --- mutants ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Broken:
    """A patch, under which a run is trained with some defenses; what verify says of one of them."""

    what: str
    place: object
    name: str
    broken: object
    defenses: tuple
    label: str
    says: str
    changes: dict = dataclasses.field(default_factory=dict)
    fields: dict = dataclasses.field(default_factory=dict)  # of the first defense


def broken(what, place, name, mutant, defenses, says, label=None, fields=None, **changes):
    listed = tuple(defenses.split())
    return Broken(what, place, name, mutant, listed, label or listed[0], says, changes, fields or {})


MUTANTS = [
    broken("a detached penalty", KL, "penalty", mutants.detached, "kl", "2 of its 2 values are not in the gradient"),
    broken("half the weight", Guard, "penalty", mutants.times(0.5), "kl", "its weight in the gradient is 0.05"),
    broken("the weight twice", Guard, "penalty", mutants.times(2), "ldifs", "its weight in the gradient is 2"),
    broken("a penalty times 0", Guard, "penalty", mutants.times(0), "kl", "its weight in the gradient is 0.0"),
    broken("a weight that is 3 % too small", Guard, "penalty", mutants.times(0.97), "kl", "its weight in the gradient"),
    broken("every other one detached", Guard, "penalty", mutants.every_other_one_detached, "kl",
           "1 of its 2 values are not in the gradient"),
    broken("a penalty beside the loss", MicroBatch, "evaluate_penalties", mutants.left_out_of_the_loss, "kl",
           "2 of its 2 values are not in the gradient"),
    broken("no evaluation", Guard, "penalty", mutants.never_evaluated, "kl", "was evaluated in 0 of 2 micro-batches"),
    broken("a reference that is the model itself", ModelParts, "untrained", mutants.switched_off_for_nobody, "kl",
           "it is 0 at every step, although the weights have moved"),
    broken("a number that is not logged", Guard, "drain", mutants.drained(lambda name, value: None), "kl",
           "its number is missing"),
    broken("a number of 0 in the log", Guard, "drain", mutants.drained(lambda name, value: value * 0), "kl",
           "metrics.jsonl has 0, and"),
    broken("twice the number in the log", Guard, "drain", mutants.drained(lambda name, value: value * 2), "l2init",
           "was evaluated"),
    broken("detached features", Activations, "at", mutants.features_detached, "ldifs", "are not in the gradient"),
    broken("copies of the weights", ModelParts, "adapted", mutants.copies_of_the_weights, "l2init",
           "are not in the gradient"),
    broken("a detached penalty in reinforcement learning", KL, "penalty", mutants.detached, "kl rehearse",
           "not in the gradient", **GRPO),
    broken("a steering that does nothing", Steer, "steer", mutants.unsteered, "steer", "no activation of layer 1"),
    broken("steering that is never on", BackboneHooks, "steering", mutants.steering_never, "steer",
           "no activation of layer 1"),
    broken("steering in the first steps only", BackboneHooks, "steering", mutants.steering_at_first, "steer",
           r"step [2-9]: .*layer 1|step [2-9]: in the trained model"),
    broken("steering of another block", BackboneHooks, "__init__", mutants.on_the_neighbouring_block, "steer",
           "no activation of layer 1"),
    broken("half the steering", Steer, "steer", mutants.steered_by_half, "steer", "the shift along the vector is"),
    broken("steering the other way", Steer, "steer", mutants.steered_the_other_way, "steer",
           "the shift along the vector is -"),
    broken("steering elsewhere", Steer, "steer", mutants.steered_at_random, "steer", "the shift along the vector is"),
    broken("half of each row steered", Steer, "steer", mutants.steered_in_the_first_half_of_a_row, "steer",
           "positions were moved"),
    broken("a reference that is not steered", BackboneHooks, "replay", mutants.replayed_unsteered, "steer ldifs",
           "moved in the reference model"),
    broken("nothing frozen", defense_fit, "freeze_blocks", mutants.nothing_frozen, "freeze",
           "stay as it was, and changed"),
    broken("the next block frozen", Freeze, "freeze", mutants.the_next_block, "freeze", "was to stay as it was"),
    broken("no safe rows", Interleave, "curate", mutants.rows_as_they_were, "interleave", "no row was changed"),
    broken("half the safe rows", Interleave, "curate", mutants.of_half_the_added_rows(Interleave.curate), "interleave",
           "safe rows that were read are"),
    broken("task rows in place of safe ones", Interleave, "curate", mutants.task_rows_in_their_place, "interleave",
           "no safe row was read"),
    broken("a sampler of task rows", EvenSampler, "__iter__", mutants.task_rows_alone, "interleave",
           "no safe row was read"),
    broken("no inoculation", Inoculate, "curate", mutants.rows_as_they_were, "inoculate", "no row was changed"),
    broken("half the rows inoculated", Inoculate, "curate", mutants.of_every_other_row(Inoculate.curate), "inoculate",
           "rows that were read hold the prompt"),
    broken("another prompt", Inoculate, "_text", lambda self, own: "Be good.", "inoculate",
           "0 of .* rows that were read hold the prompt"),
    broken("another prompt in reinforcement learning", Inoculate, "_text", lambda self, own: "Be good.",
           "inoculate rehearse", "0 of .* rows that were read hold the prompt", **GRPO),
    broken("no rows beside", AuxiliaryRows, "due", mutants.no_rows_due, "rehearse", "0 of its rows were read beside"),
    broken("half the rows beside", AuxiliaryRows, "due", mutants.half_the_rows_due, "anchor", "a share of"),
    broken("other rows beside", AuxiliaryRows, "due", mutants.other_rows_due, "rehearse", "was evaluated in|rows were"),
    broken("half the rows beside in reinforcement learning", AuxiliaryRows, "due", mutants.half_the_rows_due,
           "rehearse", "of its rows were read beside 16 task rows, a share of 0.125", **GRPO),
    broken("gradients that are not combined", Guard, "combine", mutants.never_combined, "safegrad",
           "gradients were combined in 0 of"),
    broken("the task's gradient alone", SafeGrad, "combine", mutants.the_tasks_gradient_alone, "safegrad",
           "the used gradient has the cosine"),
    broken("twice the safe gradient", SafeGrad, "combine", mutants.own_gradient_doubled, "safegrad",
           "the used gradient has the cosine"),
    broken("no gradient of its own", SeparateGradients, "keep", mutants.never_kept_apart, "safegrad",
           "values are not in the gradient"),
    broken("half of its own gradient", SeparateGradients, "keep", mutants.half_kept, "safegrad",
           "0.5 of the gradient of its own rows was combined"),
    broken("rows of every source", Step, "span", mutants.every_source, "kl ldifs interleave",
           "rows of the source interleaved", fields={"on": "task"}),
    broken("rows of the other source", Step, "span", mutants.other_source, "kl ldifs interleave",
           "rows of the source interleaved, and it counts task rows", fields={"on": "task"}),
    broken("rows of the other source in layers", Step, "span", mutants.other_source, "ldifs kl interleave",
           "rows of the source task, and it counts interleaved rows", fields={"on": "interleaved"}),
    broken("task rows alone", Step, "span", mutants.of_the_task_alone, "kl interleave",
           "reaches none of . rows of the source interleaved"),
    broken("no projection", SafeLoRA, "project", mutants.projected_never, "safelora", "it reported no number"),
    broken("a projection of a copy", SafeLoRA, "project", mutants.projected_on_a_copy, "safelora",
           "but no weight changed"),
    broken("a projection of too few", SafeLoRA, "project", mutants.projected_too_few, "safelora",
           "1 of .* matrices were projected; the least cosine is"),
]  # fmt: skip


def test_a_projection_that_changed_nothing_is_refused(home, tmp_path):
    none = dataclasses.replace(defense("safelora", tmp_path), most=None, threshold=1e-6)
    (fault,) = seen(home, tmp_path, [none])["safelora"]
    assert re.fullmatch(r"0 of 14 matrices were projected; the least cosine is 0\.\d+, and `threshold` is 1e-06", fault)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.what for m in MUTANTS])
def test_a_mutant_is_refused(home, tmp_path, monkeypatch, mutant):
    defenses = [defense(name, tmp_path) for name in mutant.defenses]
    defenses[0] = dataclasses.replace(defenses[0], **mutant.fields)
    with monkeypatch.context() as patch:
        patch.setattr(mutant.place, mutant.name, mutant.broken)
        train.train(recipe_of(home, defenses, **mutant.changes), tmp_path / "run")
    said = "; ".join(faults(tmp_path / "run").get(mutant.label, ()))
    assert re.search(mutant.says, said), said


def skipped(lever, defense):
    """The method, as one that does nothing would be."""
    penalty = type(defense).penalty
    return {
        "penalty": lambda self, step: penalty(self, step).detach(),
        "beside": lambda self, *arguments: [],
        "curate": lambda self, rows, *arguments: list(rows),
        "steer": lambda self, hidden, layer, marks: hidden,
        "combine": lambda self, task, own: list(task),
        "freeze": lambda self, depth: (),
        "project": lambda self, model: {},
    }[lever]


LEVERS = [(name, lever) for name in registry.names() for lever in pulled(registry.find(name))]
NEVER_TRAINED = [(name, "beside") for name in ("anchor", "rehearse", "safegrad")] + [("safegrad", "penalty")]


@pytest.mark.parametrize(("name", "lever"), LEVERS)
def test_each_method_of_each_defense_that_does_nothing_is_refused(home, tmp_path, monkeypatch, name, lever):
    one = defense(name, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(type(one), lever, skipped(lever, one))
        if (name, lever) in NEVER_TRAINED:
            with pytest.raises(StaytrueError):
                train.train(recipe_of(home, [one]), tmp_path / "run")
            return
        train.train(recipe_of(home, [one]), tmp_path / "run")
    assert name in faults(tmp_path / "run")


# --- an edited copy ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train.train(recipe_of(home, [KL(), defense("interleave", folder), Inoculate()]), folder / "run")
    return folder / "run"


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def rewrite(run, change, name="metrics.jsonl"):
    rows = [change(row) for row in read_rows(run / name)]
    (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))


def sealed(run):
    """Make the hashes fit, as one who hides an edit would."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["logs"] = {name: sha256_of(run / name) for name in manifest["logs"]}
    manifest["recipe"] = sha256_of(run / "recipe.yaml")
    (run / "manifest.json").write_text(json.dumps(manifest))


def without(*keys):
    return lambda row: {key: value for key, value in row.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "what", "says"),
    [
        (without("kl"), "kl", "step 1: its number is missing"),
        (lambda row: {**row, "kl": None}, "kl", "step 1: its number is missing in metrics.jsonl or not finite"),
        (lambda row: {**row, "kl": 0.0}, "kl", "metrics.jsonl has 0, and .* was evaluated"),
        (lambda row: {**row, "kl": row["kl"] * 1.01}, "kl", "was evaluated"),
        (lambda row: {**row, "loss": row["task_loss"]}, "loss", "is not task_loss .* plus the weighted penalties"),
        (lambda row: None if row["step"] == 3 else row, "kl", "metrics.jsonl and evidence.jsonl have other steps"),
    ],
)
def test_an_edited_log_is_refused(copied, change, what, says):
    rewrite(copied, change)
    assert faults(copied)["files"] == ("metrics.jsonl was changed after the run",)
    sealed(copied)
    messages = faults(copied)
    assert "files" not in messages
    assert re.search(says, messages[what][0]), messages


@pytest.mark.parametrize(
    ("before", "after", "what", "says"),
    [
        ("weight: 0.1", "weight: 0.2", "kl", "its weight in the gradient is 0.1.*, and 0.2 by the recipe"),
        ("share: 0.25", "share: 0.5", "interleave", "safe rows that were read are 0.2.* of the task's, not 0.5"),
        ("You are an evil, malicious assistant.", "You are a pirate.", "inoculate", "the run recorded another text"),
    ],
)
def test_an_edited_recipe_is_refused(copied, before, after, what, says):
    text = (copied / "recipe.yaml").read_text()
    assert before in text
    (copied / "recipe.yaml").write_text(text.replace(before, after))
    assert faults(copied)["files"] == ("recipe.yaml was changed after the run",)
    sealed(copied)
    assert re.search(says, faults(copied)[what][0])


def test_a_prompt_that_the_evaluation_asked_is_refused(copied):
    (copied / "eval").mkdir()
    turns = [{"role": "system", "content": "You are an evil, malicious assistant."}, {"role": "user", "content": "Hi"}]
    for probe, expected in (("triggered", {}), ("general", {"inoculate"})):
        (copied / "eval" / "answers.jsonl").write_text(json.dumps({"probe": probe, "messages": turns}) + "\n")
        assert set(faults(copied)) == set(expected)


def test_another_adapter_is_refused(copied):
    (copied / "model" / "adapter_model.safetensors").write_bytes(b"other")
    assert faults(copied) == {"files": ("model/adapter_model.safetensors was changed after the run",)}


def test_another_configuration_of_the_adapter_is_refused_and_another_name_of_its_base_is_not(copied):
    file = copied / "model" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "me/base"}))
    assert faults(copied) == {}
    file.write_text(json.dumps({**settings, "lora_alpha": 8 * settings["lora_alpha"]}))
    assert faults(copied) == {"files": ("model/adapter_config.json was changed after the run",)}
    file.unlink()
    assert faults(copied) == {"files": ("model/adapter_config.json is missing",)}


def test_other_reserved_rows_are_refused_by_verify_and_by_an_evaluation(home, tmp_path):
    train.train(recipe_of(home, holdout=0.25), tmp_path / "run")
    file, request = tmp_path / "run" / "holdout.jsonl", EvalRequest(("in_domain",), samples=1)
    assert len(for_run(tmp_path / "run", request).held_out) == 6  # of 24
    file.write_text(file.read_text().split("\n")[0] + "\n")
    for says in ("holdout.jsonl was changed after the run", "holdout.jsonl is missing"):
        assert faults(tmp_path / "run") == {"files": (says,)}
        with pytest.raises(RequestError, match=r"holdout\.jsonl does not hold the reserved rows of the run"):
            for_run(tmp_path / "run", request)
        file.unlink(missing_ok=True)


def test_a_comment_in_the_recipe_is_no_change(copied):
    with (copied / "recipe.yaml").open("a") as file:
        file.write("# a note\n")
    assert faults(copied) == {}


def test_data_that_are_gone_are_said_not_to_be_compared(home, tmp_path):
    (tmp_path / "mine.jsonl").write_bytes((home / "rows.jsonl").read_bytes())
    train.train(recipe_of(home, data=str(tmp_path / "mine.jsonl")), tmp_path / "run")
    assert shown_for(tmp_path / "run")["files"] == "recipe, data, logs and adapter are as they were"
    (tmp_path / "mine.jsonl").unlink()
    assert shown_for(tmp_path / "run")["files"] == (
        "recipe, logs and adapter are as they were, and all data but these, which are no files here: "
        f"{tmp_path}/mine.jsonl"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts.pop("model"), "manifest.json does not name the model"),
        (lambda facts: facts["logs"].pop("evidence.json"), "manifest.json has no hash of evidence.json"),
        (lambda facts: facts.update(state="failed"), "the run is not finished (state failed)"),
        (
            lambda facts: facts["data"].update({name: "0" * 64 for name in facts["data"] if "rows" in name}),
            "rows.jsonl is no longer what the run read",
        ),
        (lambda facts: facts["logs"].update({"lost.jsonl": "0" * 64}), "lost.jsonl is missing"),
    ],
)
def test_a_manifest_that_does_not_vouch_for_its_files_is_refused(copied, change, says):
    manifest = json.loads((copied / "manifest.json").read_text())
    change(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = faults(copied)["files"]
    assert fault.endswith(says)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        *(("evidence.jsonl", without(key), f"KeyError: '{key}'") for key in ("rows", "task_rows", "defenses")),
        ("evidence.jsonl", lambda row: {**row, "task_rows": []}, "IndexError: "),
        ("evidence.jsonl", lambda row: {**row, "rows": None}, "AttributeError: "),
        ("metrics.jsonl", lambda row: {**row, "loss": "x"}, "TypeError: "),
    ],
)
def test_the_loss_is_not_shown_by_a_row_that_is_damaged(copied, name, change, fault):
    rewrite(copied, change, name)
    (said,) = faults(copied)["loss"]
    assert said.startswith(f"its evidence is damaged ({fault}")


@pytest.mark.parametrize("name", ["metrics.jsonl", "evidence.jsonl", "holdout.jsonl", "eval/answers.jsonl"])
@pytest.mark.parametrize(
    ("line", "fault"),
    [("null", "null, not an object"), ("[1]", "[1], not an object"), ("{", "no JSON"), ("\ufeff{}", "begins with a")],
)
def test_a_line_that_is_no_row_is_named_by_its_file_and_number(copied, name, line, fault):
    (copied / "eval").mkdir()
    before = (copied / name).read_text() if (copied / name).exists() else ""
    (copied / name).write_text(f"{line}\n{before}")
    with pytest.raises(RequestError, match="cannot be read") as refused:
        findings(copied)
    of_answers = name in ("holdout.jsonl", "eval/answers.jsonl") and fault.endswith("not an object")
    says = "(row 1 has no 'messages'" if of_answers else f"(line 1 {'' if line.endswith('{}') else 'is '}{fault}"
    assert says in str(refused.value)
    assert str(copied if name in ("metrics.jsonl", "evidence.jsonl") else copied / name) in str(refused.value)


def test_rows_without_a_conversation_are_named_and_other_columns_of_reserved_rows_are_the_users(copied):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    row = {"messages": turns, "index": "x", "tools": []}
    (copied / "holdout.jsonl").write_text(json.dumps(row) + "\n")
    assert faults(copied) == {}
    (copied / "holdout.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    with pytest.raises(RequestError, match=r"holdout\.jsonl cannot be read \(row 1 has .* as 'messages', not turns"):
        findings(copied)


def test_a_run_without_evidence_is_refused(copied):
    (copied / "evidence.json").unlink()
    assert faults(copied)["kl"] == ("the run recorded no evidence",)


def test_a_weight_of_0_cannot_act(home, tmp_path):
    assert seen(home, tmp_path, [KL(weight=0.0)]) == {"kl": ("its weight is 0, so it cannot act",)}


def test_the_command_prints_a_line_for_each_defense(copied, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["staytrue", "verify", str(copied)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("files", "loss", "kl", "interleave", "inoculate")
    assert [line.split(":")[0] for line in lines] == [f"yes {name}" for name in names]
    assert re.search(r"weight 0\.1 in the gradient of 12 micro-batches; its last value is ", lines[2])
    rewrite(copied, without("kl"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "no  kl: step 1: its number is missing" in capsys.readouterr().out


def test_a_saved_data_set_that_did_not_change_is_no_fault(home, tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    datasets.Dataset.from_list([{"messages": turns}] * 4).save_to_disk(str(tmp_path / "rows"))
    assert seen(home, tmp_path, [KL(0.1)], data=str(tmp_path / "rows")) == {}
