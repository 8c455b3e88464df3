"""The seam under the real trainer: one forward, one reference, and a weight that means the same everywhere."""

import inspect
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PrinterCallback
from trl import GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import tiny
from staytrue import registry
from staytrue.config.trainer_args import recomputing
from staytrue.data.examples import write_examples
from staytrue.defense import Defense
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.constrained_sft import ConstrainedSFT
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.interleave import Interleave
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.rehearse import Rehearse
from staytrue.errors import ForwardPassError, ModelError, RecipeError
from staytrue.modeling.lm_head import Head
from staytrue.step import SOURCE_COLUMN, SOURCES
from staytrue.testing import unlike
from staytrue.training import signatures
from staytrue.training.guard import Guard
from staytrue.training.trainers import GuardedSFT
from test_every_defense import sample, without_sampling


def messages(n=24):
    """User rows as a script would have them, of uneven length."""
    rows = tiny.rows(n)
    return Dataset.from_list([{"messages": [{"role": m.role, "content": m.content} for m in r.messages]} for r in rows])


def settings(folder, **changes):
    defaults = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 2.0,
        "optim": "sgd",  # a step is the gradient itself, so equal gradients are seen as equal weights
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        recomputing(SFTConfig): False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return SFTConfig(**{**defaults, **changes})


def trainer(folder, defenses, kind="qwen2", data=None, cls=GuardedSFT, lora=None, dtype=torch.float32, **changes):
    more = {} if cls is SFTTrainer else {"defenses": defenses}
    sft = cls(
        model=tiny.model(kind).to(dtype),
        args=settings(folder, **changes),
        train_dataset=data or messages(),
        processing_class=tiny.tokenizer(kind),
        peft_config=lora or LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        **more,
    )
    sft.remove_callback(PrinterCallback)
    return sft


def weights(sft):
    return torch.cat([p.detach().flatten() for p in sft.model.parameters() if p.requires_grad])


def trained(folder, defenses, **changes):
    sft = trainer(folder, defenses, **changes)
    sft.train()
    return sft


def logged(sft, key):
    return [row[key] for row in sft.state.log_history if key in row]


def steps(sft):
    return [row for row in sft.state.log_history if "loss" in row]


def count_forwards(sft):
    seen = {"trained": 0, "reference": 0}

    def hook(*_):
        seen["trained" if torch.is_grad_enabled() else "reference"] += 1

    sft.guard.parts.backbone.register_forward_pre_hook(hook)
    return seen


@pytest.fixture
def pool(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    return tmp_path / "pool.jsonl"


@pytest.fixture
def plain_head(monkeypatch):
    """Trainers keep trl's own head."""

    def keep():
        monkeypatch.setattr(GuardedSFT, "_keeps_its_head", lambda self: "a test")

    return keep


def test_without_defenses_it_trains_as_the_trainer_it_wraps(tmp_path, plain_head):
    start, wrapped = weights(trainer(tmp_path, [])), weights(trained(tmp_path, [], cls=SFTTrainer))
    moved = (wrapped - start).abs().max()
    ours = trained(tmp_path, [])
    assert ours.which_head == "one pass"
    assert (weights(ours) - wrapped).abs().max() < 1e-6 * moved  # another order of the same sums
    plain_head()
    kept = trained(tmp_path, [])
    assert kept.which_head == "trl's: a test"
    assert torch.equal(weights(kept), wrapped)


@pytest.mark.parametrize(
    "defenses",
    [
        [KL(3.0)],
        [KL(3.0, forward=True), KL(1.0)],
        [KL(3.0, tokens="all"), KL(1.0, tokens="prompt")],
        [KL(3.0, on="task")],
        [KL(3.0, on="interleaved")],
    ],
    ids=str,
)
def test_our_head_and_trls_agree(tmp_path, pool, plain_head, defenses):
    defenses = [*defenses, Interleave(pool, share=0.25), Anchor(pool, share=0.25, weight=2.0, answers="given")]
    ours = trained(tmp_path, defenses)
    plain_head()
    theirs = trained(tmp_path, defenses)
    assert (ours.which_head, theirs.which_head) == ("one pass", "trl's: a test")
    moved = (weights(theirs) - weights(trainer(tmp_path, []))).abs().max()
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-5 * moved
    names = ("loss", "task_loss", "kl", "anchor", "entropy", "mean_token_accuracy")
    assert not unlike(steps(ours), steps(theirs), names)


def test_a_float32_head_in_bfloat16_training_stays_trls(tmp_path):
    ours = trained(tmp_path, [KL(3.0)], bf16=True)
    assert ours.which_head.startswith("trl's: it casts a float32 head to half precision")
    assert logged(ours, "kl")[0] == 0.0  # the divergence is ours all the same


def test_in_bfloat16_our_head_and_trls_agree_to_its_precision(tmp_path, plain_head):
    half = {"bf16": True, "dtype": torch.bfloat16}
    ours = trained(tmp_path, [KL(3.0)], **half)
    plain_head()
    theirs = trained(tmp_path, [KL(3.0)], **half)
    assert (ours.which_head, theirs.which_head) == ("one pass", "trl's: a test")
    # Rounded to 2^-9 are the states, which are far smaller than the loss: 2^-16 of that, 8.5e-5, is theirs.
    assert not unlike(steps(ours), steps(theirs), ("task_loss", "kl"), of_itself=3e-2, rounding=2.0**-16)


def test_labels_that_are_not_the_tokens_are_what_is_learnt(tmp_path, plain_head):
    def others(row):  # every answer token stands for the next one of the vocabulary
        return {"labels": [-100 if label == -100 else (label + 1) % 259 for label in row["labels"]]}

    shifted = trainer(tmp_path, []).train_dataset.map(others)
    ours = trained(tmp_path, [KL(1.0)], data=shifted)
    plain_head()
    theirs = trained(tmp_path, [KL(1.0)], data=shifted)
    assert logged(ours, "task_loss") == pytest.approx(logged(theirs, "task_loss"), rel=1e-4)


def test_a_loss_that_weighs_every_token_keeps_its_meaning(tmp_path, plain_head):
    ours = trained(tmp_path, [KL(1.0)], loss_type="dft")  # each token's loss times its own probability
    plain_head()
    theirs = trained(tmp_path, [KL(1.0)], loss_type="dft")
    moved = (weights(theirs) - weights(trainer(tmp_path, []))).abs().max()
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-5 * moved


def test_every_scored_position_is_projected_once_by_each_model(tmp_path, monkeypatch):
    sft = trainer(tmp_path, [KL(1.0)], per_device_train_batch_size=2, gradient_accumulation_steps=2)
    seen, pulled = [], []
    whole, back = Head.logits, Head.pull_back
    monkeypatch.setattr(
        Head, "logits", lambda self, *arguments: seen.append(len(arguments[0])) or whole(self, *arguments)
    )
    monkeypatch.setattr(
        Head, "pull_back", lambda self, *arguments: pulled.append(len(arguments[0])) or back(self, *arguments)
    )
    sft.train()
    scored = sum(seen) // 2
    assert seen[::2] == seen[1::2]  # the student's positions, then the reference's
    assert len(seen) == 2 * 3 * 2  # 3 steps of 2 micro-batches
    assert sum(pulled) == 2 * scored  # one gradient of the log-probabilities, one of the divergence


def test_three_defenses_cost_one_reference_per_micro_batch(tmp_path):
    sft = trainer(
        tmp_path,
        [KL(0.1), KL(0.1, forward=True), KL(0.2, tokens="prompt")],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    seen = count_forwards(sft)
    sft.train()
    assert seen == {"trained": 12, "reference": 12}  # 3 steps of 4 micro-batches


def test_without_a_defense_that_reads_it_no_reference_is_computed(tmp_path, pool):
    sft = trainer(tmp_path, [Interleave(pool, share=0.25)])
    seen = count_forwards(sft)
    sft.train()
    assert seen["reference"] == 0


def test_at_step_0_the_penalty_is_exactly_0_and_then_it_is_not(tmp_path):
    sft = trained(tmp_path, [KL(1.0)])
    first, second, third = logged(sft, "kl")
    assert first == 0
    assert 0 < second < third


def test_the_loss_is_the_task_loss_plus_the_weighted_penalty(tmp_path):
    sft = trained(tmp_path, [KL(0.5), KL(2.0, forward=True)])
    rows = zip(logged(sft, "loss"), logged(sft, "task_loss"), logged(sft, "kl"), logged(sft, "kl.2"), strict=True)
    for total, task, kl, other in rows:
        assert total == pytest.approx(task + 0.5 * kl + 2.0 * other, abs=1e-6)


@pytest.mark.parametrize("on", ["all", "interleaved"])
def test_one_batch_of_8_equals_four_of_2(tmp_path, pool, on):
    defenses = [KL(3.0, on=on), Interleave(pool, share=0.25), Anchor(pool, share=0.25, weight=2.0, answers="given")]
    whole = trained(tmp_path, defenses)
    parts = trained(tmp_path, defenses, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    moved = (weights(whole) - weights(trainer(tmp_path, []))).abs().max()
    assert (weights(whole) - weights(parts)).abs().max() < 1e-5 * moved
    assert not unlike(steps(whole), steps(parts), ("kl", "anchor"))


def test_activation_checkpointing_changes_nothing(tmp_path):
    plain = trained(tmp_path, [KL(1.0), Push()])
    again = trained(tmp_path, [KL(1.0), Push()], **{recomputing(SFTConfig): True})
    assert torch.equal(weights(plain), weights(again))


class Push(Defense):
    """Steers block 1 by a constant."""

    def layers(self, depth):
        return (1,)

    def steer(self, hidden, layer, marks):
        return hidden + 0.5 * marks.real.unsqueeze(-1)


def test_steering_alone_makes_no_reference_and_leaves_evaluation_alone(tmp_path):
    sft = trainer(tmp_path, [Push()])
    seen = count_forwards(sft)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = sft.model(tokens).logits
    seen["reference"] = 0
    sft.train()
    assert seen["reference"] == 0
    plain = trained(tmp_path, [])
    assert not torch.equal(weights(sft), weights(plain))
    fresh = trainer(tmp_path, [Push()])
    with torch.no_grad():
        assert torch.equal(fresh.model(tokens).logits, before)


def test_a_steered_model_that_has_not_moved_is_not_punished(tmp_path):
    assert logged(trained(tmp_path, [Push(), KL(1.0)]), "kl")[0] == 0


class TwoLayers(Defense):
    """Reads hidden states, by negative number too."""

    weight = 1.0

    def layers(self, depth):
        return (1, -1)

    def penalty(self, step):
        assert set(step.policy.hidden) == set(step.reference.hidden) == {1, 2}
        span = step.span()
        gaps = [step.policy.hidden[i][span.mask] - step.reference.hidden[i][span.mask] for i in (1, 2)]
        step.note("first", step.mean(gaps[0].square().mean(-1), span))
        return step.mean(sum(gap.square().mean(-1) for gap in gaps), span)


def test_hidden_states_are_those_of_the_asked_layers_and_notes_are_logged(tmp_path):
    sft = trained(tmp_path, [TwoLayers()])
    assert logged(sft, "twolayers")[0] == 0
    assert 0 < logged(sft, "twolayers/first")[1] < logged(sft, "twolayers")[1]


class TooDeep(TwoLayers):
    def layers(self, depth):
        return (40,)


def test_a_layer_that_does_not_exist_is_refused_before_training(tmp_path):
    with pytest.raises(ModelError, match=r"toodeep asked for layer 40, but this model has 2 \(1 to 2\)"):
        trainer(tmp_path, [TooDeep()])


class Nothing(Defense):
    def penalise(self, step):
        return 0


class Weightless(Defense):
    def penalty(self, step):
        return 0


def test_a_defense_without_a_lever_or_a_weight_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="Nothing overrides no method that has an effect; did you mean 'penalty'"):
        trainer(tmp_path, [Nothing()])
    with pytest.raises(RecipeError, match="overrides 'penalty', so it needs a field 'weight'"):
        trainer(tmp_path, [Weightless()])


def test_interleaved_rows_come_in_an_even_rhythm(tmp_path, pool):
    sft = trainer(tmp_path, [Interleave(pool, share=0.25)], per_device_train_batch_size=5, max_steps=6)
    batches = []
    loss = sft.compute_loss
    sft.compute_loss = lambda model, inputs, *a, **k: (
        batches.append(inputs[SOURCE_COLUMN]) or loss(model, inputs, *a, **k)
    )
    sft.train()
    order = torch.cat(batches).tolist()
    assert len(order) == 30  # one epoch: 24 task rows once, a quarter of them added
    assert sum(order) == 6
    for k in range(1, len(order) + 1):  # 6 of 30 rows: a fifth of any prefix, to within one
        assert abs(sum(order[:k]) - k / 5) <= 1
    assert SOURCES[1] == "interleaved"


def test_interleaved_rows_reach_a_users_own_data_with_the_trainers_own_labels(tmp_path, pool):
    sft = trainer(tmp_path, [Interleave(pool, share=0.5)])
    assert len(sft.train_dataset) == 36
    assert all(len(r["labels"]) == len(r["input_ids"]) for r in sft.train_dataset)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora": LoraConfig(target_modules="all-linear", bias="all")}, "trained weights are not part of the adapter"),
        ({"lora": LoraConfig(target_modules="all-linear", init_lora_weights="olora")}, "changes the base weights"),
        ({"lora": LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"])}, "adapted or trained"),
    ],
)
def test_what_has_no_reference_is_refused_with_the_way_out(tmp_path, changes, sentence):
    with pytest.raises(ModelError, match=sentence):
        trained(tmp_path, [KL(0.1)], **changes)


def test_prompt_learning_is_refused(tmp_path):
    common = {"args": settings(tmp_path), "train_dataset": messages(), "processing_class": tiny.tokenizer()}
    prompted = get_peft_model(tiny.model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="learns a prompt"):
        GuardedSFT(model=prompted, defenses=[KL()], **common)


def test_dropout_in_the_base_is_refused(tmp_path):
    model = tiny.model()
    model.config.attention_dropout = 0.1
    with pytest.raises(ModelError, match=r"attention_dropout=0\.1"):
        GuardedSFT(
            model=model,
            defenses=[KL()],
            args=settings(tmp_path),
            train_dataset=messages(),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(target_modules="all-linear"),
        )


PACKINGS = {
    "bfd": {"packing": True, "max_length": 256},
    "bfd_split": {"packing": True, "max_length": 64, "packing_strategy": "bfd_split"},
    "wrapped": {"packing": True, "max_length": 100, "packing_strategy": "wrapped"},
    "padding_free": {"padding_free": True, "max_length": None},
}


def planned(sft):
    """Of each optimizer step: counted positions, task rows, and how many auxiliary rows were due."""
    seen, plan = [], sft.guard.plan

    def spy(totals, task_rows, slots):
        plan(totals, task_rows, slots)
        due = {label: len(sft.guard._penalties.auxiliary.due(label)) for label in sft.guard.auxiliary_rows()}
        seen.append((totals.tolist(), task_rows, due))

    sft.guard.plan = spy
    return seen


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", [Anchor, Rehearse])
def test_auxiliary_rows_keep_their_share_of_the_rows_that_packing_joined(tmp_path, pool, packing, kind):
    defense = kind(pool, share=0.25, **({"answers": "given"} if kind is Anchor else {}))
    changes = {"per_device_train_batch_size": 1, "max_steps": -1, "num_train_epochs": 1, "learning_rate": 0.1}
    sft = trainer(tmp_path, [defense], **{**changes, **PACKINGS[packing]})
    seen = planned(sft)
    sft.train()
    assert sum(rows for _, rows, _ in seen) == 24  # however many packs they are in
    assert sum(due[defense.name()] for _, _, due in seen) == 6
    assert sft._task_share() == (1.0 if packing == "padding_free" else 24 / len(sft.train_dataset))
    assert max(logged(sft, defense.name())) > 0


def test_auxiliary_rows_that_are_cut_are_warned_of(tmp_path, pool):
    with pytest.warns(UserWarning, match=r"feeds beside the batch: 8 of 12 rows are longer than max_length"):
        trainer(tmp_path, [Anchor(pool, share=0.25, answers="given")], max_steps=1, **PACKINGS["bfd_split"]).train()


def test_packing_beside_auxiliary_rows_packs_what_trl_packs(tmp_path, pool):
    for packing in ("bfd", "bfd_split", "wrapped"):
        for shuffled in (False, True):
            changes = {**PACKINGS[packing], "shuffle_dataset": shuffled}
            ours = trainer(tmp_path, [Anchor(pool, share=0.25, answers="given")], **changes).train_dataset
            theirs = trainer(tmp_path, [], cls=SFTTrainer, **changes).train_dataset
            assert ours.remove_columns(SOURCE_COLUMN).to_list() == theirs.to_list()


@pytest.mark.parametrize("packing", PACKINGS)
def test_interleaved_rows_are_known_in_packs(tmp_path, pool, packing):
    defenses = [Interleave(pool, share=0.25), KL(1.0, on="interleaved"), Anchor(pool, share=0.25, answers="given")]
    changes = {"per_device_train_batch_size": 2, "max_steps": -1, "num_train_epochs": 1, "learning_rate": 0.1}
    sft = trainer(tmp_path, defenses, **{**changes, **PACKINGS[packing]})
    seen = planned(sft)
    sft.train()
    assert sum(rows for _, rows, _ in seen) == 24
    assert sum(due["anchor"] for _, _, due in seen) == 6
    scored = sum(totals[1][0] for totals, _, _ in seen)
    alone = trainer(tmp_path, [Interleave(pool, share=0.25)], max_length=None).train_dataset
    tokens = [len(row["input_ids"]) for row in alone if row[SOURCE_COLUMN] == 1]
    cut = len(sft.train_dataset) if packing == "wrapped" else 0  # a pack's first token is not predicted
    fragments = sum(-(-length // 64) for length in tokens) if packing == "bfd_split" else 6
    assert sum(tokens) - fragments - cut <= scored <= sum(tokens)
    assert max(logged(sft, "kl")) > 0


def test_an_interleaved_divergence_in_packs_is_that_of_the_rows_alone(tmp_path, pool):
    defenses = [Interleave(pool, share=0.25), KL(1.0, on="interleaved")]
    changes = {"max_steps": 2, "per_device_train_batch_size": 30, "learning_rate": 0.5}
    rows = trained(tmp_path, defenses, **changes, max_length=None)
    joined = trained(tmp_path, defenses, **changes, max_length=None, padding_free=True)
    assert logged(joined, "task_loss")[0] == pytest.approx(logged(rows, "task_loss")[0], rel=1e-4)


@pytest.mark.parametrize("tokens", ["scored", "all"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_divergence_at_any_tokens_is_the_same_in_joined_rows_as_in_padded_ones(tmp_path, pool, tokens, interleaved):
    """The last token of a row predicts nothing, though the first one of the next row follows it."""
    defenses = [KL(1.0, tokens=tokens), *([Interleave(pool, share=0.25)] if interleaved else [])]
    changes = {"max_steps": 2, "per_device_train_batch_size": 30, "learning_rate": 0.5, "max_length": None}
    padded, joined = (trainer(tmp_path, defenses, **changes, padding_free=free) for free in (False, True))
    counts = [planned(padded), planned(joined)]
    padded.train(), joined.train()
    assert [totals for totals, *_ in counts[0]] == [totals for totals, *_ in counts[1]]
    assert logged(joined, "kl")[-1] == pytest.approx(logged(padded, "kl")[-1], rel=1e-3)
    assert logged(joined, "kl")[-1] > 0


@pytest.mark.filterwarnings("ignore:inoculate writes")
def test_inoculation_and_packing_go_together(tmp_path):
    sft = trainer(tmp_path, [Inoculate("Be bad.")], packing=True, max_length=256)
    assert SOURCE_COLUMN not in sft.train_dataset.column_names
    assert sum(tiny.tokenizer().decode(row["input_ids"]).count("Be bad.") for row in sft.train_dataset) == 24
    sft.train()


def test_a_stream_may_be_packed_beside_auxiliary_rows(tmp_path, pool):
    stream = messages(24).to_iterable_dataset()
    sft = trainer(tmp_path, [Anchor(pool, share=0.5, answers="given")], data=stream, packing=True, max_length=256)
    seen = planned(sft)
    sft.train()
    assert sum(due["anchor"] for _, _, due in seen) == round(sum(rows for _, rows, _ in seen) / 2)


class Collator(DataCollatorForLanguageModeling):
    """A user's own class."""

    mark = "theirs"


@pytest.mark.parametrize("defended", [False, True])
def test_the_collator_is_the_users_own_object(tmp_path, pool, defended):
    own = Collator(pad_token_id=0)
    defenses = [Interleave(pool, share=0.25)] if defended else []
    sft = GuardedSFT(
        model=tiny.model(),
        args=settings(tmp_path),
        data_collator=own,
        train_dataset=messages(),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        defenses=defenses,
    )
    sft.train()
    assert sft.data_collator is own
    batch = next(iter(sft.get_train_dataloader()))
    assert (SOURCE_COLUMN in batch) == defended
    assert sft.data_collator is own


def test_evaluation_keeps_trls_guard_against_masks_without_labels(tmp_path, pool):
    rows = Dataset.from_list([{"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1]}] * 4)
    labelled = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 8)
    sft = trainer(
        tmp_path, [Anchor(pool, answers="given")], data=labelled, dataset_kwargs={"skip_prepare_dataset": True}
    )
    with pytest.raises(ValueError, match="mask columns but no 'labels'"):
        sft.evaluate(rows)


def test_a_data_loader_of_its_own_is_refused_only_where_sources_matter(tmp_path, pool):
    class Own(GuardedSFT):
        def get_train_dataloader(self):
            rows = self.train_dataset.select_columns(["input_ids", "labels"])
            return torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=self.data_collator)

    trained(tmp_path, [Interleave(pool, share=0.25), KL()], cls=Own, max_steps=1)
    for defense in (KL(on="task"), Anchor(pool, answers="given")):
        with pytest.raises(ForwardPassError, match=r"Own makes a data loader of its own.* super\(\)"):
            trained(tmp_path, [Interleave(pool, share=0.25), defense], cls=Own)


def test_workers_of_the_data_loader_carry_the_sources(tmp_path, pool):
    sft = trainer(tmp_path, [Interleave(pool, share=0.25)], dataloader_num_workers=1, max_steps=1)
    seen = planned(sft)
    sft.train()
    assert seen[0][1] in (6, 7)  # task rows among 8


def test_rows_in_order_stay_in_order_and_rows_by_length_are_refused(tmp_path, pool):
    sft = trainer(tmp_path, [Interleave(pool, share=0.25)], train_sampling_strategy="sequential")
    order = list(sft._get_train_sampler())
    assert [i for i in order if i < 24] == list(range(24))
    assert order != sorted(order)  # the added rows are spread among them
    with pytest.raises(RecipeError, match=r"train_sampling_strategy='group_by_length' .* \"random\" or"):
        trainer(tmp_path, [Interleave(pool, share=0.25)], train_sampling_strategy="group_by_length")


def test_the_constructor_shows_trls_arguments_and_takes_no_other(tmp_path):
    theirs, ours = (inspect.signature(cls).parameters for cls in (SFTTrainer, GuardedSFT))
    assert list(ours) == [*theirs, "defenses", "reference_cache", "reference"]
    assert [ours[name] for name in theirs] == list(theirs.values())
    assert ours["defenses"].kind is ours["defenses"].KEYWORD_ONLY
    with pytest.raises(TypeError, match="multiple values for argument 'model'"):
        GuardedSFT(tiny.model(), settings(tmp_path), model=tiny.model())
    with pytest.raises(TypeError, match="too many positional arguments"):
        GuardedSFT(tiny.model(), settings(tmp_path), *[None] * len(theirs))
    with pytest.raises(TypeError, match="unexpected keyword argument 'peft_conf'"):
        GuardedSFT(tiny.model(), settings(tmp_path), peft_conf=None)


@pytest.mark.parametrize(("trainer_class", "shown"), [(SFTTrainer, signatures.sft), (GRPOTrainer, signatures.grpo)])
def test_type_checkers_see_the_parameters_of_the_installed_trl(trainer_class, shown):
    theirs, ours = (list(inspect.signature(init).parameters.values()) for init in (trainer_class.__init__, shown))
    assert [p.name for p in ours] == [*(p.name for p in theirs), "defenses", "reference_cache", "reference"]
    assert [(p.kind, p.default) for p in ours[: len(theirs)]] == [(p.kind, p.default) for p in theirs]


def test_packing_without_sources_still_has_one_reference(tmp_path):
    sft = trainer(
        tmp_path,
        [KL(1.0)],
        packing=True,
        max_length=256,
        per_device_train_batch_size=2,
        max_steps=2,
        packing_strategy="wrapped",
    )
    seen = count_forwards(sft)
    sft.train()
    assert seen == {"trained": 2, "reference": 2}
    assert logged(sft, "kl")[0] == 0


def test_a_loss_with_two_forwards_is_not_guarded_by_guesswork(tmp_path):
    def twice(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum() * 0 + sft.model(torch.tensor([[5, 6]])).logits.mean()

    sft = trainer(tmp_path, [KL(1.0)])
    sft.compute_loss_func = twice
    with pytest.raises(ForwardPassError, match="made 2 forwards"):
        sft.train()


def test_side_rows_keep_the_share_to_within_a_row_at_every_step(tmp_path, pool):
    sft = trainer(tmp_path, [Anchor(pool, share=0.0625, answers="given")], per_device_train_batch_size=8, max_steps=6)
    due = []
    plan = sft.guard.plan
    sft.guard.plan = lambda *a: plan(*a) or due.append(len(sft.guard._penalties.auxiliary.due("anchor")))
    sft.train()
    assert all(abs(sum(due[: k + 1]) - 0.5 * (k + 1)) <= 0.5 for k in range(6))  # 8 rows at 1/16: half a row a step


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_switching_the_adapter_off_by_flags_is_the_base_model(kind):
    from staytrue.modeling.architecture import ModelParts

    adapted = tiny.lora(tiny.model(kind))
    tiny.nudge(adapted)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        moved = adapted(tokens).logits
        with ModelParts(adapted).untrained():
            off = adapted(tokens).logits
        again = adapted(tokens).logits
    assert torch.equal(off, tiny.model(kind)(tokens).logits)
    assert torch.equal(moved, again)
    assert not torch.equal(moved, off)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_head_in_tiles_is_the_models_own(kind):
    from staytrue.modeling.architecture import ModelParts

    model = tiny.model(kind).requires_grad_(False)
    head, tokens = ModelParts(model).head, torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        hidden = model.base_model(tokens).last_hidden_state[0]
        assert torch.allclose(head.logits(hidden), model(tokens).logits[0], atol=1e-5)
    assert (head.softcap is not None) == (kind == "gemma3")


def test_a_head_that_does_something_unknown_is_refused_by_name():
    from staytrue.modeling.architecture import ModelParts

    model = tiny.model().requires_grad_(False)
    plain = model.forward
    model.forward = lambda *a, **k: (lambda out: out.__setitem__("logits", out.logits * 2) or out)(plain(*a, **k))
    with pytest.raises(ModelError, match="The head of Qwen2ForCausalLM does more"):
        _ = ModelParts(model).head


class OwnLoss(GuardedSFT):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("staytrue_source", None)
        return model(**inputs).loss


class TwoLosses(GuardedSFT):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, dict(inputs), *args, **kwargs) + super().compute_loss(
            model, inputs, *args, **kwargs
        )


def test_a_subclass_that_replaces_compute_loss_is_refused_in_its_first_step(tmp_path):
    class Extended(GuardedSFT):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * 2

    with pytest.raises(ForwardPassError, match=r"OwnLoss computed a loss without .* super\(\).compute_loss"):
        trainer(tmp_path, [KL()], cls=OwnLoss).train()
    trainer(tmp_path, [KL()], cls=Extended).train()
    trainer(tmp_path, [], cls=OwnLoss).train()


class OwnStep(GuardedSFT):
    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs.pop("staytrue_source", None)
        loss = model(**inputs).loss
        self.accelerator.backward(loss)
        return loss.detach()


class OwnBatches(GuardedSFT):
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [next(epoch_iterator) for _ in range(num_batches)], None


class OwnBatchesAndStep(OwnBatches, OwnStep):
    pass


class TwoPasses(GuardedSFT):
    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs) + super().training_step(*args, **kwargs)


class FewerBatches(GuardedSFT):
    def get_batch_samples(self, *args):
        batches, items = super().get_batch_samples(*args)
        return batches[:-1], items


@pytest.mark.parametrize(
    ("cls", "counts", "way_out"),
    [
        (OwnStep, "2 planned micro-batches, of which the defenses saw 0", r"training_step does not call super\(\)"),
        (OwnBatches, "0 planned micro-batches, of which .* saw 2", r"get_batch_samples does not call super\(\)"),
        (OwnBatchesAndStep, "0 planned .* saw 0", r"get_batch_samples does not call super\(\)"),
        (FewerBatches, "2 planned .* saw 1", r"training_step does not call super\(\)"),
    ],
)
def test_a_subclass_whose_step_passes_by_the_defenses_is_refused_in_its_first_step(tmp_path, cls, counts, way_out):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 50}
    sft = trainer(tmp_path, [KL()], cls=cls, **options)
    with pytest.raises(ForwardPassError, match=f"{cls.__name__} made an optimizer step of {counts}.*{way_out}"):
        sft.train()
    assert sft.state.global_step <= 1
    trainer(tmp_path, [], cls=cls, **options).train()


def test_a_second_loss_in_one_training_step_is_refused(tmp_path):
    with pytest.raises(ForwardPassError, match="compute_loss was called twice in one training step"):
        trainer(tmp_path, [KL()], cls=TwoLosses).train()


def test_a_loss_computed_beside_training_takes_no_batchs_place(tmp_path, pool):
    """Called directly between the micro-batches, on other rows, it changes neither the weights nor what is logged."""

    class Curious(GuardedSFT):
        def training_step(self, model, inputs, *args, **kwargs):
            other = {k: v[:1] for k, v in inputs.items()}
            losses.append(self.compute_loss(model, other).item())
            return super().training_step(model, inputs, *args, **kwargs)

    losses, settings = [], {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.1}
    defenses = [KL(1.0), Anchor(pool, share=0.25, answers="given")]
    plain, curious = (trained(tmp_path, defenses, cls=cls, **settings) for cls in (GuardedSFT, Curious))
    assert len(losses) == 6
    assert torch.equal(weights(plain), weights(curious))
    for key in ("kl", "anchor", "task_loss"):
        assert logged(plain, key) == logged(curious, key)
        assert all(logged(plain, key)[1:])


def test_a_loss_computed_directly_is_a_mean_over_its_own_rows(tmp_path):
    sft = trained(tmp_path, [KL(1.0)])
    batch = next(iter(sft.get_train_dataloader()))
    task = sft.accelerator.unwrap_model(sft.model)(**{k: batch[k] for k in ("input_ids", "labels")}).loss
    with sft.model.disable_adapter(), torch.no_grad():
        reference = sft.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    tuned = sft.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    scored = batch["labels"][:, 1:] != -100
    kl = (tuned.exp() * (tuned - reference)).sum(-1)[:, :-1][scored].mean()
    sft.model.train()
    assert sft.compute_loss(sft.model, dict(batch)).item() == pytest.approx((task + kl).item(), rel=1e-4)


def test_a_data_defense_without_data_is_a_sentence(tmp_path, pool):
    with pytest.raises(RecipeError, match="the trainer has none; pass train_dataset="):
        GuardedSFT(model=tiny.model(), args=settings(tmp_path), defenses=[Interleave(pool)])


def test_auxiliary_rows_are_due_after_a_resume_as_without(tmp_path, pool):
    """Ten rows in batches of four: an epoch's last batch has two, so full batches would count 8 rows for 6."""
    options = {"data": messages(10), "per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 3}
    options |= {"save_strategy": "steps", "save_steps": 4, "learning_rate": 0.1}
    defenses = [Anchor(pool, share=0.3, answers="given")]
    whole = trained(tmp_path, defenses, **options)
    again = trainer(tmp_path, defenses, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert again.guard.task_rows == whole.guard.task_rows == 30
    assert torch.equal(weights(whole), weights(again))


@pytest.mark.filterwarnings("ignore:inoculate writes")
@pytest.mark.parametrize("name", registry.names())
def test_a_script_goes_on_from_trls_own_checkpoint_with_every_defense(tmp_path, name):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.05, "optim": "adamw_torch"}
    defenses = [without_sampling(name, tmp_path)]
    whole = trained(tmp_path, defenses, **options)
    shutil.rmtree(tmp_path / "out" / "checkpoint-5")
    torch.manual_seed(99)
    again = trainer(tmp_path, defenses, **options)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(whole), weights(again))
    for key in ("loss", "task_loss", name):
        assert logged(again, key) == logged(whole, key)


def test_recomputed_layers_of_auxiliary_rows_are_steered_where_they_were(tmp_path, pool, monkeypatch):
    """Older versions of transformers run hooks again in the backward pass, where the batch's own masks are in place."""

    class OnAnswers(Defense):
        def layers(self, depth):
            return (1,)

        def steer(self, hidden, layer, marks):
            shapes.append(marks.real.shape == hidden.shape[:2])
            return hidden + 3.0 * marks.scored.unsqueeze(-1)

    def recomputed(block, *args, **kwargs):
        with set_checkpoint_early_stop(False):
            return checkpoint(torch.nn.Module.__call__, block, *args, use_reentrant=False, **kwargs)

    def run():
        return trained(tmp_path, [OnAnswers(), Anchor(pool, share=0.5, answers="given")], learning_rate=0.1)

    shapes = []
    once, calls = run(), len(shapes)
    block = type(once.guard.parts.blocks[0])
    monkeypatch.setattr(block, "__call__", recomputed)
    twice = run()
    assert len(shapes) > 2 * calls
    assert all(shapes)
    assert torch.allclose(weights(once), weights(twice), rtol=0, atol=1e-6)


def test_a_batch_that_is_trained_on_twice_is_refused(tmp_path):
    twice = r"step of 1 planned .* saw 2: .* training_step calls super\(\)\.training_step\(\.\.\.\) twice"
    with pytest.raises(ForwardPassError, match=twice):
        trainer(tmp_path, [KL()], cls=TwoPasses).train()
    with pytest.raises(ForwardPassError, match=r"read 4 x \d+ positions .* planned with 4 x \d+: .* one batch twice"):
        trainer(tmp_path, [KL()], cls=TwoPasses, per_device_train_batch_size=4, gradient_accumulation_steps=2).train()


def test_without_defenses_the_log_has_the_trainers_own_keys(tmp_path):
    ours, theirs = (trained(tmp_path, [], cls=cls) for cls in (GuardedSFT, SFTTrainer))
    assert [set(row) for row in ours.state.log_history] == [set(row) for row in theirs.state.log_history]


def test_auxiliary_rows_are_logged_as_a_mean_over_the_steps_in_which_they_were_due(tmp_path, pool):
    """A tenth of rows that come by two: a row is due in the steps 3 and 8 (task rows 5 and 15) of ten."""
    options = {"per_device_train_batch_size": 2, "max_steps": 10, "learning_rate": 0.1}
    defenses = [KL(1.0), Anchor(pool, share=0.1, answers="given")]
    each = trained(tmp_path, defenses, **options)
    assert [row["step"] for row in each.state.log_history if "anchor" in row] == [3, 8]
    assert len(logged(each, "kl")) == 10
    together = trained(tmp_path, defenses, **options, logging_steps=10)
    assert logged(together, "anchor") == pytest.approx([sum(logged(each, "anchor")) / 2])
    assert logged(together, "kl") == pytest.approx([sum(logged(each, "kl")) / 10])


@pytest.mark.parametrize(
    ("penalty", "count"),
    [(KL(1.0, on="interleaved"), 3), (LDIFS(on="interleaved"), 3), (ConstrainedSFT(), 12)],
    ids=str,
)
def test_a_penalty_is_logged_as_a_mean_over_the_steps_that_hold_a_token_of_its_kind(tmp_path, pool, penalty, count):
    """A row a step: of 15 steps 12 hold a task row and 3 an interleaved one."""
    defenses, name = [Interleave(pool, share=0.25), penalty], penalty.name()
    options = {"per_device_train_batch_size": 1, "max_steps": 15, "learning_rate": 0.1}
    each = trainer(tmp_path, defenses, **options)
    seen = planned(each)
    each.train()
    with_rows = [n for n, (_, task_rows, _) in enumerate(seen, start=1) if task_rows == (penalty.on == "task")]
    assert [row["step"] for row in each.state.log_history if name in row] == with_rows
    assert len(with_rows) == count
    together = trained(tmp_path, defenses, **options, logging_steps=15)
    assert logged(together, name) == pytest.approx([sum(logged(each, name)) / count])
    assert logged(together, "loss") == pytest.approx([sum(logged(each, "loss")) / 15], abs=1e-4)


def test_rows_that_are_cut_before_their_answers_are_refused_by_their_length(tmp_path, pool):
    with pytest.raises(RecipeError, match=r"anchor: all 12 rows are longer than max_length=6, .* Raise max_length"):
        trainer(tmp_path, [Anchor(pool, share=0.25, answers="given")], max_length=6)


def test_an_adapter_of_random_numbers_is_refused_by_its_setting(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with pytest.raises(ModelError, match=r"has init_lora_weights=False, .* Use init_lora_weights=True"):
        trainer(tmp_path, [KL()], lora=lora)


def test_a_script_projects_its_weights_after_training_and_a_guards_owner_does_it_for_itself(tmp_path):
    defense = type(sample("safelora", tmp_path))(**{**vars(sample("safelora", tmp_path)), "most": 2})
    guard = Guard([defense])
    listed, owned = trained(tmp_path, [defense], learning_rate=0.1), trained(tmp_path, guard, learning_rate=0.1)
    assert not owned.projected
    assert not torch.equal(weights(listed), weights(owned))
    assert listed.projected == guard.project(owned.model)
    assert listed.projected["safelora/projected"] == 2
    assert torch.equal(weights(listed), weights(owned))


@pytest.mark.parametrize("quiet", [False, True])
def test_a_script_is_told_what_was_projected_unless_it_wants_no_bars(tmp_path, capsys, quiet):
    sft = trained(tmp_path, [sample("safelora", tmp_path)], disable_tqdm=quiet)
    count, of = (sft.projected[f"safelora/{name}"] for name in ("projected", "of"))
    sentence = f"safelora projected {count:.0f} of {of:.0f} matrices"
    assert (sentence in capsys.readouterr().err) is not quiet
