"""L2 to the start: norms and Fisher information by hand, shares of a step, and the contract of the EWC variant."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

import families
import tiny
from by_hand import EVEN, QUARTER, step
from shown import Shown
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.tokenize import encode
from staytrue.defenses.l2init import L2Init, fisher, squared_norm, weighted_norm
from staytrue.errors import ModelError, RecipeError
from staytrue.modeling.architecture import Adapted, ModelParts
from staytrue.modeling.base_model import Untouched
from staytrue.step import Step
from staytrue.testing import Micro, contract

# B A = (1, 2)^T (3, 4) = ((3, 4), (6, 8)), whose squared norm is 9 + 16 + 36 + 64 = 125.
A, B = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]])


def penalty(defense, matrices, state=None, totals=None):
    """On one row of two tokens, of which every position but the last predicts one."""
    bare = step([[EVEN, EVEN]], [[QUARTER, QUARTER]], [[1, 1]], [[1, 0]], ["task"], totals)
    whole = Step(bare.policy, bare.marks, bare._totals, None, None, adapted=lambda: matrices, state=state)
    return defense.penalty(whole)


def adapted(scale=1.0):
    return Adapted("m", torch.zeros(2, 2), A.clone().requires_grad_(), B.clone().requires_grad_(), scale)


def test_the_squared_norm_of_the_update_by_hand():
    assert squared_norm(A, B).item() == 125.0
    assert penalty(L2Init(), [adapted()]).item() == 125.0


def test_the_loras_scale_counts_and_matrices_add_up():
    assert penalty(L2Init(), [adapted(scale=2.0), adapted(scale=0.5)]).item() == 125.0 * (4 + 1 / 4)


def test_the_gradient_by_hand():
    # d||BA||^2/dB = 2 B A A^T = 2 (1, 2)^T 25, and d/dA = 2 B^T B A = 2 * 5 (3, 4).
    matrix = adapted()
    penalty(L2Init(), [matrix]).backward()
    assert matrix.b.grad.tolist() == [[50.0], [100.0]]
    assert matrix.a.grad.tolist() == [[30.0, 40.0]]


def test_fisher_information_weighs_each_weight_by_hand():
    # Half of 1 * 9 + 0 * 16 + 2 * 36 + 1 * 64 = 145 / 2.
    information = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    assert weighted_norm(A, B, information).item() == 145.0
    assert penalty(L2Init(), [adapted()], [information]).item() == 72.5


def test_a_micro_batch_holds_its_share_of_the_value_by_tokens():
    # Of four positions that predict a token in the whole step, one is here: 125 / 4.
    assert penalty(L2Init(), [adapted()], totals=torch.tensor([[2, 4], [0, 0]])).item() == 125.0 / 4


def test_the_scale_of_a_rank_stabilised_adapter_is_read():
    from peft import LoraConfig, get_peft_model

    for stabilised, scale in ((False, 8 / 4), (True, 8 / 2)):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=stabilised, task_type="CAUSAL_LM")
        assert {m.scale for m in ModelParts(get_peft_model(tiny.model(), config)).adapted()} == {scale}


def test_the_fisher_information_is_the_squared_gradient_of_each_row_over_the_answer_tokens():
    model, tokenizer = tiny.lora(tiny.model()), tiny.tokenizer()
    rows, plain = [encode(tokenizer, row) for row in tiny.rows(2)], tiny.model()
    ours = fisher(ModelParts(model), rows)
    weight = plain.model.layers[0].self_attn.q_proj.weight
    total, tokens = torch.zeros_like(weight), 0
    for row in rows:  # transformers' own loss is the mean over the answer's tokens
        count = sum(label != -100 for label in row.labels[1:])
        loss = plain(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss * count
        total += torch.autograd.grad(loss, weight)[0].square()
        tokens += count
    names = [m.name for m in ModelParts(model).adapted()]
    torch.testing.assert_close(ours[names.index("model.layers.0.self_attn.q_proj.weight")], total / tokens)
    assert not any(m.weight.requires_grad for m in ModelParts(model).adapted())


def test_the_fisher_information_is_counted_row_by_row_as_it_is_computed(tmp_path):
    model = tiny.lora(tiny.model())
    base = Untouched(lambda: model, tiny.tokenizer())
    base.progress = Shown()
    sample_with_fisher(tmp_path).prepare(ModelParts(model), base)
    assert base.progress.seen == [(4, "row of l2init's fisher"), 1, 2, 3, 4]


def sample_with_fisher(folder):
    write_examples(folder / "kept.jsonl", tiny.rows(4))
    return L2Init(fisher=folder / "kept.jsonl")


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_the_variant_with_fisher_information_keeps_the_contract(kind, tmp_path):
    contract(sample_with_fisher(tmp_path), tiny.lora(tiny.model(kind)), tiny.tokenizer(kind), tiny.rows())


def test_rows_of_the_evaluation_only_are_refused(tmp_path):
    write_examples(tmp_path / "kept.jsonl", [Example((Message("user", "asked"), Message("assistant", "yes")))])
    model = tiny.lora(tiny.model())
    base = Untouched(lambda: model, tiny.tokenizer(), evaluation_questions=lambda: frozenset(["asked"]))
    with pytest.raises(
        RecipeError, match=r"l2init: .*kept\.jsonl has no row with an answer beside evaluation questions"
    ):
        L2Init(fisher=tmp_path / "kept.jsonl").prepare(ModelParts(model), base)


def test_an_adapter_that_starts_elsewhere_is_refused():
    model = tiny.lora(tiny.model())
    tiny.nudge(model)
    with pytest.raises(ModelError, match="The adapter has moved already"):
        Micro([L2Init()], model, tiny.tokenizer(), tiny.rows(2))


def test_experts_count_as_one_matrix_each_and_have_no_fisher_information(tmp_path):
    model = tiny.lora(families.model("qwen3_moe"))
    tiny.nudge(model, 1.0)
    adapted_matrices = ModelParts(model).adapted()
    ours = sum(float(m.scale**2 * squared_norm(m.a, m.b)) for m in adapted_matrices)
    modules = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert ours == pytest.approx(sum(float(m.get_delta_weight("default").square().sum()) for m in modules), rel=1e-4)
    kept = tmp_path / "kept.jsonl"
    kept.write_text("")
    with pytest.raises(ModelError, match="holds the matrices of several experts"):
        L2Init(fisher=kept).check(ModelParts(model), None)
