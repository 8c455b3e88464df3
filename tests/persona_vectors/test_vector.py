"""`PersonaVector`: applied to a model, saved and loaded; numbers by hand, and every file or model it refuses."""

import doctest
import os

import pytest
import torch
from safetensors.torch import save_file

import tiny
from staytrue import PersonaVector
from staytrue.errors import ModelError, RequestError
from staytrue.persona_vectors import vector as module

HIDDEN = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # (1, 2, 2)
BY_HAND = PersonaVector(torch.tensor([[-100.0, 50.0], [3.0, 4.0]]))
TOKENS = torch.tensor([[5, 6, 7]])


def outputs(model):
    """Every block's output for three tokens."""
    recorded = []
    hooks = [block.register_forward_hook(lambda m, a, out: recorded.append(out)) for block in model.model.layers]
    with torch.no_grad():
        model(TOKENS)
    for hook in hooks:
        hook.remove()
    return recorded


def test_adding_and_ablating_by_hand():
    # (1, 0) + 2 (3, 4) = (7, 8); the unit vector is (0.6, 0.8), and (0, 2) has 1.6 of it: (0, 2) - 1.6 (0.6, 0.8).
    assert BY_HAND.steer(HIDDEN, 2, alpha=2.0).tolist() == [[[7.0, 8.0], [6.0, 10.0]]]
    ablated = BY_HAND.steer(HIDDEN, -1, mode="ablate", where=torch.tensor([[False, True]]))
    assert torch.allclose(ablated, torch.tensor([[[1.0, 0.0], [-0.96, 0.72]]]))


@pytest.mark.parametrize("norms", [[7.0, 20.0], "[7.0, 20.0]"], ids=["in memory", "of a file"])
def test_with_the_models_lengths_alpha_is_the_length_of_the_push_by_hand(norms):
    # (3, 4) at the length 20 is (12, 16): (1, 0) + (6, 8) and (0, 2) + (6, 8). At layer 1 the length is 7.
    vector = PersonaVector(BY_HAND.vectors, {"norms": norms})
    assert torch.allclose(vector.steer(HIDDEN, 2, alpha=0.5), torch.tensor([[[7.0, 8.0], [6.0, 10.0]]]))
    assert torch.equal(vector.steer(HIDDEN, -1, alpha=0.5), vector.steer(HIDDEN, 2, alpha=0.5))
    assert vector.push(1).norm().item() == pytest.approx(7)
    ablated = vector.steer(HIDDEN, -1, mode="ablate", where=torch.tensor([[False, True]]))
    assert torch.allclose(ablated, torch.tensor([[[1.0, 0.0], [-0.96, 0.72]]]))


@pytest.mark.parametrize("norms", [[1.0], [1.0, 0.0], [1.0, float("nan")], "many", 3, ["a", "b"]])
def test_lengths_that_are_not_one_positive_number_for_each_layer_are_refused(norms):
    with pytest.raises(ModelError, match=r"`norms` are .*not one positive number for each of its 2 layers"):
        PersonaVector(BY_HAND.vectors, {"norms": norms}).steer(HIDDEN, 2)


def test_its_example_runs():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("layer", [1, -2])
def test_applied_it_moves_one_block_by_alpha_times_its_row_and_stops_with_the_block(layer):
    model = tiny.model()
    vector = PersonaVector(torch.stack([torch.arange(32.0), torch.full((32,), 7.0)]))
    before = outputs(model)
    with vector.apply(model, layer, alpha=0.25):
        inside = outputs(model)
    assert torch.allclose(inside[0] - before[0], 0.25 * torch.arange(32.0).expand(1, 3, 32), atol=1e-5)
    assert all(map(torch.equal, before, outputs(model)))


def test_applied_it_steers_generation_under_an_adapter_too():
    model = tiny.lora(tiny.model())
    vector = PersonaVector(20 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))

    def answer():
        return model.generate(input_ids=TOKENS, max_new_tokens=8, do_sample=False).tolist()

    plain = answer()
    with vector.apply(model, layer=2):
        assert answer() != plain
    assert answer() == plain


def test_saved_and_loaded_it_is_the_same_and_its_file_has_the_same_bytes(tmp_path):
    PersonaVector(BY_HAND.vectors, {"model": {"sha256": "ab"}, "seed": "1"}).save(tmp_path / "one")
    loaded = PersonaVector.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert torch.equal(loaded.vectors, BY_HAND.vectors)
    assert loaded.facts == {"model": '{"sha256": "ab"}', "seed": "1"}
    assert loaded.model_sha256 == "ab"
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("facts", [{}, {"model": "no JSON"}, {"model": "[]"}])
def test_a_file_that_does_not_name_its_model_has_no_hash(facts):
    assert PersonaVector(BY_HAND.vectors, facts).model_sha256 is None


def test_a_file_that_has_changed_is_read_again(tmp_path):
    file = tmp_path / "v"
    BY_HAND.save(file)
    PersonaVector.load(file)
    PersonaVector(2 * BY_HAND.vectors).save(file)
    os.utime(file, ns=(1, 1))
    assert torch.equal(PersonaVector.load(file).vectors, 2 * BY_HAND.vectors)


def test_what_is_no_vector_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a tensor")
    save_file({"vectors": torch.tensor([[1.0], [0.0]])}, str(tmp_path / "zero"))
    for name, sentence in (("absent", "cannot be read"), ("text", "is not a vector file"), ("zero", "holds zeros")):
        with pytest.raises(RequestError, match=f"{name} {sentence}"):
            PersonaVector.load(tmp_path / name)


@pytest.mark.parametrize("layer", [0, 3, -3])
def test_a_layer_or_a_model_that_does_not_fit_is_refused(layer):
    with pytest.raises(ModelError, match=f"There is no layer {layer}: this model has 2"):
        PersonaVector(torch.ones(2, 32)).apply(tiny.model(), layer).__enter__()
    with pytest.raises(ModelError, match=r"depth and width \(2, 31\), but this model has \(2, 32\)"):
        PersonaVector(torch.ones(2, 31)).apply(tiny.model(), 1).__enter__()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf")])
def test_a_push_of_no_finite_length_is_refused(alpha):
    with pytest.raises(RequestError, match=rf"^alpha is {alpha}; write a finite number\.$"):
        BY_HAND.steer(HIDDEN, 2, alpha=alpha)
    with pytest.raises(RequestError, match="alpha is"):
        PersonaVector(torch.ones(2, 32)).apply(tiny.model(), 1, alpha=alpha).__enter__()
