"""Steering: numbers by hand on three tokens, and every file or layer that it refuses."""

import pytest
import torch
from safetensors.torch import save_file

import tiny
from staytrue import registry
from staytrue.defenses.steer import Steer
from staytrue.errors import ModelError, RecipeError
from staytrue.step import Marks
from staytrue.testing import Micro

HIDDEN = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]])  # (1, 3, 2)
MARKS = Marks(  # the second token predicts an answer token, the third is padding
    real=torch.tensor([[True, True, False]]),
    scored=torch.tensor([[False, True, False]]),
    source=torch.zeros(1, 3, dtype=torch.long),
)


def saved(file, vectors):
    """A vector file, at a path of its own: what is read is kept by path."""
    save_file({"vectors": torch.as_tensor(vectors)}, str(file))
    return file


def sample(folder):
    """A defense whose vector fits the models of tests/tiny.py."""
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    return Steer(saved(folder / "vector.safetensors", vectors), layer=1, alpha=0.5)


def steered(tmp_path, layer=2, **fields):
    """What becomes of the three tokens; layer 1 points elsewhere, layer 2 along (3, 4)."""
    file = saved(tmp_path / "by-hand.safetensors", [[-100.0, 50.0], [3.0, 4.0]])
    return Steer(file, layer=layer, **fields).steer(HIDDEN, layer, MARKS)


def attached(defense):
    return Micro([defense], tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(2))


def test_the_vector_times_alpha_is_added_to_every_real_token_and_not_to_padding(tmp_path):
    # (1, 0) + 2 (3, 4) = (7, 8) and (0, 2) + 2 (3, 4) = (6, 10).
    assert steered(tmp_path, alpha=2.0).tolist() == [[[7.0, 8.0], [6.0, 10.0], [3.0, 4.0]]]


def test_a_training_keeps_the_vector_that_it_began_with_and_the_next_one_reads_the_file_again(tmp_path):
    file = saved(tmp_path / "kept.safetensors", torch.ones(2, 32))
    defense, hidden = Steer(file, layer=1, alpha=2.0), torch.zeros(1, 3, 32)
    first = attached(defense).guard.defenses["steer"]
    file.unlink()
    assert first.steer(hidden, 1, MARKS)[0, 0, 0].item() == 2.0
    saved(file, 3 * torch.ones(2, 32))
    assert first.steer(hidden, 1, MARKS)[0, 0, 0].item() == 2.0
    assert attached(defense).guard.defenses["steer"].steer(hidden, 1, MARKS)[0, 0, 0].item() == 6.0


def test_alpha_is_the_length_of_the_push_over_the_activations_where_the_file_has_their_lengths(tmp_path):
    # (3, 4) at the length 50 is (30, 40); a tenth of it is (3, 4), added to (1, 0) and (0, 2).
    file = tmp_path / "lengths.safetensors"
    save_file({"vectors": torch.tensor([[-100.0, 50.0], [3.0, 4.0]])}, str(file), {"norms": "[1.0, 50.0]"})
    moved = Steer(file, layer=2, alpha=0.1).steer(HIDDEN, 2, MARKS)
    assert torch.allclose(moved, torch.tensor([[[4.0, 4.0], [3.0, 6.0], [3.0, 4.0]]]))


def test_the_default_is_a_fifth_of_the_activations_length_and_where_that_is_not_known_there_is_none(tmp_path):
    file = tmp_path / "measured.safetensors"
    save_file({"vectors": torch.tensor([[3.0, 4.0]])}, str(file), {"norms": "[50.0]"})
    assert Steer(file, layer=1).steer(torch.zeros(1, 3, 2), 1, MARKS)[0, 0].tolist() == [6.0, 8.0]  # 10 long
    assert Steer(file, layer=1, mode="ablate").strength == 1
    vectors = saved(tmp_path / "vectors.safetensors", torch.ones(2, 32))
    with pytest.raises(RecipeError, match=r"vectors.safetensors has no `norms`.* Set alpha"):
        attached(Steer(vectors, layer=1))
    assert Steer(file, layer=1, alpha=0.0).strength == 0


@pytest.mark.parametrize(("alpha", "now"), [(4.0, "0.8"), (-4.0, "-0.8")])
def test_an_alpha_of_version_0_1_is_answered_with_what_does_the_same_now(alpha, now, tmp_path):
    # The vector has the length 10 and the activations 50: 4 x 10 / 50 = 0.8.
    file, vectors = tmp_path / "old.safetensors", torch.zeros(2, 32)
    vectors[:, 3] = 10.0
    save_file({"vectors": vectors}, str(file), {"norms": "[50.0, 50.0]"})
    with pytest.warns(
        UserWarning, match=rf"alpha {alpha:g} pushes by 4 times .* write alpha: {now}, which does the same"
    ):
        attached(Steer(file, layer=2, alpha=alpha))


@pytest.mark.parametrize("fields", [{"alpha": 1.0}, {"alpha": 1.0, "mode": "ablate"}])
def test_other_strengths_are_not_commented_on(fields, tmp_path):
    file = tmp_path / "quiet.safetensors"
    save_file({"vectors": torch.ones(2, 32)}, str(file), {"norms": "[50.0, 50.0]"})
    attached(Steer(file, layer=2, **fields))  # a warning would be an error here


def test_at_answer_only_tokens_that_predict_an_answer_move(tmp_path):
    assert steered(tmp_path, alpha=2.0, at="answer").tolist() == [[[1.0, 0.0], [6.0, 10.0], [3.0, 4.0]]]


def test_row_l_minus_1_belongs_to_layer_l(tmp_path):
    assert steered(tmp_path, layer=1, alpha=0.1, at="answer")[0, 1].tolist() == [-10.0, 7.0]


def test_ablation_takes_the_direction_out_and_leaves_no_component(tmp_path):
    # The unit vector is (0.6, 0.8). (1, 0) has 0.6 of it: (1, 0) - 0.6 (0.6, 0.8) = (0.64, -0.48); (0, 2) has 1.6.
    moved = steered(tmp_path, mode="ablate")
    assert torch.allclose(moved, torch.tensor([[[0.64, -0.48], [-0.96, 0.72], [3.0, 4.0]]]))
    assert torch.allclose(moved[0, :2] @ torch.tensor([0.6, 0.8]), torch.zeros(2), atol=1e-6)


def test_half_an_ablation_leaves_half_the_component_and_answer_leaves_the_prompt_alone(tmp_path):
    moved = steered(tmp_path, mode="ablate", alpha=0.5, at="answer")
    assert torch.allclose(moved, torch.tensor([[[1.0, 0.0], [-0.48, 1.36], [3.0, 4.0]]]))


def test_the_input_is_left_as_it_was_and_the_gradient_passes_through(tmp_path):
    file = saved(tmp_path / "gradient.safetensors", [[3.0, 4.0]])
    hidden = HIDDEN.clone().requires_grad_()
    Steer(file, layer=1).steer(hidden, 1, MARKS).sum().backward()
    assert torch.equal(hidden.detach(), HIDDEN)
    assert hidden.grad.tolist() == [[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]]


@pytest.mark.parametrize("layer", [2, -1])
def test_in_a_model_the_named_block_moves_by_alpha_times_its_row_and_earlier_ones_do_not(layer, tmp_path):
    vectors = torch.stack([torch.full((32,), 7.0), torch.arange(32.0)])
    defense = Steer(saved(tmp_path / "model.safetensors", vectors), layer=layer, alpha=0.25)
    micro, seen = attached(defense), {}
    parts = micro.guard.parts
    for number, block in enumerate(parts.blocks, start=1):
        block.register_forward_hook(lambda m, a, out, number=number: seen.setdefault(number, []).append(out.detach()))
    parts.backbone(**micro.inputs, use_cache=False)
    micro.penalty()  # the same call, steered
    moved = {number: after - before for number, (before, after) in seen.items()}
    assert moved[1].abs().max() == 0
    real = micro.marks.real
    assert torch.allclose(moved[2][real], 0.25 * torch.arange(32.0).expand(int(real.sum()), 32), atol=1e-5)
    assert moved[2][~real].abs().sum() == 0


@pytest.mark.parametrize("shape", [(2, 31), (3, 32)])
def test_a_vector_of_another_model_is_refused_with_both_shapes(shape, tmp_path):
    file = saved(tmp_path / "other.safetensors", torch.ones(shape))
    with pytest.raises(
        ModelError, match=rf"other.safetensors is for .* \({shape[0]}, {shape[1]}\), .*\(2, 32\).*vector"
    ):
        attached(Steer(file, layer=1))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_share_to_remove_is_from_0_to_1(alpha, tmp_path):
    vectors = saved(tmp_path / "share.safetensors", torch.ones(2, 32))
    with pytest.raises(RecipeError, match=rf"alpha is {alpha}, and with mode: ablate it is the share .* from 0 to 1"):
        attached(Steer(vectors, layer=1, alpha=alpha, mode="ablate"))
    attached(Steer(vectors, layer=1, alpha=0.0, mode="ablate"))


@pytest.mark.parametrize("layer", [0, 3, -3])
def test_a_layer_that_the_model_does_not_have_is_refused(layer, tmp_path):
    file = saved(tmp_path / "layer.safetensors", torch.ones(2, 32))
    with pytest.raises(ModelError, match=f"steer.*layer {layer}"):
        attached(Steer(file, layer=layer))


@pytest.mark.parametrize(
    "vectors",
    [torch.ones(32), torch.tensor([[1.0] * 32, [0.0] * 32]), torch.full((2, 32), float("nan"))],
    ids=["no table", "a zero row", "not a number"],
)
def test_a_table_that_cannot_steer_is_refused(vectors, tmp_path):
    file = saved(tmp_path / "bad.safetensors", vectors)
    with pytest.raises(RecipeError, match=r"bad.safetensors holds zeros, infinities or no \(depth, width\) table"):
        attached(Steer(file, layer=1))


def test_a_file_that_holds_no_vectors_is_refused(tmp_path):
    text, other = tmp_path / "text.safetensors", tmp_path / "weights.safetensors"
    text.write_text("not a tensor")
    save_file({"weights": torch.ones(2, 32)}, str(other))
    for file in (text, other, tmp_path / "absent.safetensors"):
        with pytest.raises(
            RecipeError,
            match=rf"steer: .*{file.name} (is not a vector file|cannot be read).*`staytrue vector` makes one",
        ):
            attached(Steer(file, layer=1))


def test_a_recipe_cannot_ask_for_another_mode_or_an_endless_alpha():
    for wrong in ({"mode": "push"}, {"at": "prompt"}, {"alpha": float("inf")}):
        ((field, value),) = wrong.items()
        with pytest.raises(RecipeError, match=rf"{field} is '?{value}"):
            registry.make("steer", {"vector": "v", "layer": 1, **wrong})
