"""SafeLoRA: a true projection, by hand on 2 x 2 matrices, and a base that does not fit is refused before training."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import families
import tiny
from shown import Shown
from staytrue.defenses.safelora import SafeLoRA, cosine, leading
from staytrue.errors import ModelError, RecipeError
from staytrue.modeling.architecture import ModelParts
from staytrue.training.guard import Guard


def sample(folder, kind="qwen2"):
    """For the contract: the tiny model's own weights, a little moved, as the model before alignment."""
    return SafeLoRA(base=str(base(folder, kind)), most=2)


def base(folder, kind="qwen2", moved=0.1):
    place = folder / f"base-{kind}"
    if not place.exists():
        tiny.save(kind, place)
        weights = load_file(place / "model.safetensors")
        noise = torch.Generator().manual_seed(1)
        weights = {name: w + moved * torch.randn(w.shape, generator=noise) for name, w in weights.items()}
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


def test_the_leading_directions_hold_the_energy_by_hand():
    # diag(2, 1) has squared singular values 4 and 1: the first holds 0.8 of 5.
    moved = torch.diag(torch.tensor([2.0, 1.0]))
    assert leading(moved, 0.8).abs().tolist() == [[1.0], [0.0]]
    assert leading(moved, 0.81).shape == (2, 2)
    assert leading(moved, 1.0).shape == (2, 2)


def test_the_projector_is_one():
    torch.manual_seed(0)
    kept = leading(torch.randn(16, 12), 0.5)
    projector = kept @ kept.T
    assert torch.allclose(projector @ projector, projector, atol=1e-6)
    assert torch.linalg.matrix_norm(projector, 2).item() == pytest.approx(1, abs=1e-5)


def test_the_cosine_of_an_update_with_its_projection_by_hand():
    # Kept direction (1, 0). The update (3, 4)^T (1, 0) keeps (3, 0)^T of length 3 out of 5.
    kept, a, b = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0], [4.0]])
    assert cosine(kept, a, b) == pytest.approx(0.6)
    assert cosine(kept, a, torch.zeros(2, 1)) == 1.0


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama3", "gemma3", "phi3"])
def test_only_what_lies_in_the_kept_directions_is_left_grouped_heads_and_biases_included(kind, tmp_path):
    model = tiny.lora(tiny.model(kind))
    tiny.nudge(model, 1.0)
    before = {m.name: m.b.detach().clone() for m in ModelParts(model).adapted()}
    report = SafeLoRA(base=str(base(tmp_path, kind)), threshold=1.0, energy=0.5).project(model)
    assert report["projected"] == report["of"] == len(before)
    weights = load_file(base(tmp_path, kind) / "model.safetensors")
    for matrix in ModelParts(model).adapted():
        kept = leading(matrix.weight - weights[matrix.name], 0.5)
        assert torch.allclose(matrix.b, kept @ (kept.T @ before[matrix.name]), atol=1e-5), matrix.name
        assert not torch.allclose(matrix.b, before[matrix.name], atol=1e-3), matrix.name


def test_a_threshold_spares_what_strays_little_and_most_takes_the_worst(tmp_path):
    def left(**fields):
        model = tiny.lora(tiny.model())
        tiny.nudge(model, 1.0)
        before = [m.b.detach().clone() for m in ModelParts(model).adapted()]
        report = SafeLoRA(base=str(base(tmp_path)), **fields).project(model)
        changed = sum(not torch.equal(m.b, b) for m, b in zip(ModelParts(model).adapted(), before, strict=True))
        assert changed == report["projected"]
        return report

    assert left(threshold=1e-6)["projected"] == 0
    assert left(most=3)["projected"] == 3
    some = left(threshold=0.7)
    assert some["least_cosine"] <= some["mean_cosine"] <= 1


@pytest.mark.parametrize(("kind", "sentence"), [("phi3", "has no matrix"), (None, "is not a model folder")])
def test_a_base_that_is_another_model_is_refused_at_attach(tmp_path, kind, sentence):
    place = base(tmp_path, kind) if kind else tmp_path / "nowhere"
    guard = Guard([SafeLoRA(base=str(place))])
    with pytest.raises(ModelError, match=sentence):
        guard.attach(tiny.lora(tiny.model("qwen2")), None, list, 0)


def test_the_model_itself_as_its_base_is_refused_at_attach(tmp_path):
    tiny.save("qwen2", tmp_path / "same")
    with pytest.raises(
        ModelError,
        match=r"same has the same weights in all matrices that are adapted, .* Name the model before",
    ):
        Guard([SafeLoRA(base=str(tmp_path / "same"))]).attach(tiny.lora(tiny.model("qwen2")), None, list, 0)


@pytest.mark.parametrize("at", ["", "owner/name"])
def test_a_base_is_taken_where_the_model_that_is_not_loaded_is_in_no_folder(tmp_path, at):
    """The text part of a configuration of several parts has the name "", which is no folder."""
    with torch.device("meta"):
        model = tiny.lora(tiny.model("qwen2"))
    model.config.name_or_path = at
    SafeLoRA(base=str(base(tmp_path))).check(ModelParts(model), None)


def test_a_base_is_taken_where_the_model_that_is_not_loaded_is_stored_in_4_bits(tmp_path):
    tiny.save("qwen2", tmp_path / "packed")
    file = tmp_path / "packed" / "model.safetensors"
    packed = {name: torch.zeros(w.numel() // 2, 1, dtype=torch.uint8) for name, w in load_file(file).items()}
    save_file(packed, file, metadata={"format": "pt"})
    with torch.device("meta"):
        model = tiny.lora(tiny.model("qwen2"))
    model.config.name_or_path = str(tmp_path / "packed")
    SafeLoRA(base=str(base(tmp_path))).check(ModelParts(model), None)


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("whose", ["the trained model", "the base"])
def test_weights_that_are_rounded_to_few_values_are_refused(tmp_path, whose, loaded):
    """Their rounding would pass for what alignment changed."""
    place = base(tmp_path)
    model = tiny.lora(tiny.model("qwen2"))
    names = {matrix.name for matrix in ModelParts(model).adapted()}
    if whose == "the base":
        weights = load_file(place / "model.safetensors")
        weights = {name: on_a_grid(w) if name in names else w for name, w in weights.items()}
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    else:
        for matrix in ModelParts(model).adapted():
            matrix.weight.data = on_a_grid(matrix.weight.data)
    if not loaded:  # as for `staytrue check`
        model.base_model.model.save_pretrained(str(tmp_path / "model"))
        plain = {
            name.replace("base_layer.", ""): w for name, w in load_file(tmp_path / "model/model.safetensors").items()
        }
        save_file(plain, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        model = model.to("meta")
        model.config.name_or_path = str(tmp_path / "model")
    defense = SafeLoRA(base=str(place))
    with pytest.raises(ModelError, match=rf"of {whose}.* is rounded to few values.* leave safelora out"):
        defense.check(ModelParts(model), None)


def on_a_grid(weights):
    """Eight steps each side of zero, of the largest number of the matrix, as a format of 4 bits has them."""
    step = weights.abs().max() / 7
    return (weights / step).round() * step


PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("stored", PRECISIONS)
@pytest.mark.parametrize(
    ("trained", "loaded"),
    [
        *((dtype, dtype) for dtype in PRECISIONS),
        *((dtype, torch.float32) for dtype in PRECISIONS[1:]),
        *((torch.float32, dtype) for dtype in PRECISIONS[1:]),
    ],
)
def test_the_model_itself_stored_in_another_precision_is_refused_too(trained, loaded, stored, tmp_path):
    tiny.model("qwen2").to(stored).save_pretrained(str(tmp_path / "same"))
    copy = tiny.lora(tiny.model("qwen2").to(trained).to(loaded))
    with pytest.raises(ModelError, match=r"has the same weights .* but for rounding"):
        SafeLoRA(base=str(tmp_path / "same")).check(ModelParts(copy), None)


@pytest.mark.parametrize("stored", PRECISIONS)
@pytest.mark.parametrize("trained", PRECISIONS)
def test_a_base_in_another_precision_that_differs_in_one_weight_is_taken_and_its_rounding_is_not(
    trained, stored, tmp_path
):
    place, model = tmp_path / "base", tiny.lora(tiny.model().to(trained))
    tiny.model().to(stored).save_pretrained(str(place))
    name, weights = ModelParts(model).adapted()[3].name, load_file(place / "model.safetensors")
    weights[name][0, 0] += weights[name].abs().max()
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    defense, said = SafeLoRA(base=str(place)), []
    defense.check(ModelParts(model), None)
    report = defense.project(model, None, said.append)
    count = len(ModelParts(model).adapted())
    assert (report["projected"], report["of"], report["unchanged"]) == (0, 1, count - 1)
    # an adapter that has not moved has no update, whose cosine is 1
    (sentence,) = said
    assert sentence == (
        f"safelora projected 0 of 1 matrices that alignment changed, and left alone {count - 1} that it did not. "
        "Nothing was changed: every update lies in the directions that are kept."
    )


def test_where_no_matrix_strays_far_enough_the_way_out_is_a_higher_threshold():
    report = {"projected": 0.0, "of": 3.0, "unchanged": 0.0, "least_cosine": 0.514}
    assert SafeLoRA(base="b")._sentence(report) == (
        "safelora projected 0 of 3 matrices that alignment changed. Nothing was changed: the least cosine is 0.514, "
        "and `threshold` is 0.3. Raise `threshold` above that, or name as `base` the model before alignment."
    )


def test_a_threshold_of_zero_which_could_never_project_is_refused():
    with pytest.raises(RecipeError, match=r"threshold.*greater than 0"):
        Guard([SafeLoRA(base="anywhere", threshold=0.0)])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"most": 3, "threshold": 0.1}, r"most is 3, .* instead of those below threshold 0\.1\. Take one of them out"),
        ({"most": 1000}, r"most is 1000, and 14 matrices are adapted\. Lower most"),
    ],
)
def test_a_number_of_matrices_that_would_be_ignored_or_is_too_large_is_refused(tmp_path, fields, sentence):
    defense, model = SafeLoRA(base=str(base(tmp_path)), **fields), tiny.lora(tiny.model())
    with pytest.raises(RecipeError, match=sentence):
        defense.check(ModelParts(model), None)
    SafeLoRA(base=defense.base, most=14).check(ModelParts(model), None)


def test_a_matrix_that_alignment_did_not_change_is_left_as_it_was_trained(tmp_path):
    model = tiny.lora(tiny.model())
    tiny.nudge(model, 1.0)
    matrices = ModelParts(model).adapted()
    place = base(tmp_path)
    weights = load_file(place / "model.safetensors")
    weights[matrices[0].name] = matrices[0].weight.detach().clone()
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    before = [m.b.detach().clone() for m in matrices]
    progress, said = Shown(), []
    SafeLoRA(base=str(place), most=len(matrices)).project(model, progress, said.append)
    changed = [not torch.equal(m.b, b) for m, b in zip(ModelParts(model).adapted(), before, strict=True)]
    assert changed == [False] + [True] * (len(matrices) - 1)
    assert progress.seen == [(len(matrices), "matrix"), *range(1, len(matrices) + 1)]
    many = len(matrices) - 1
    sentence = f"safelora projected {many} of {many} matrices that alignment changed"
    assert said == [f"{sentence}, and left alone 1 that it did not."]


def test_a_hub_name_is_read_from_the_users_cache(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: names.append(name) or base(tmp_path))
    SafeLoRA(base="org/model-base").check(ModelParts(tiny.lora(tiny.model())), None)
    assert set(names) == {"org/model-base"}


def test_a_hub_name_that_the_hub_does_not_know_is_refused_in_a_sentence(monkeypatch):
    def absent(name, **how):
        raise OSError("404: no such repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(ModelError, match=r"org/none is no folder here, and the hub does not give such a model: .*404"):
        SafeLoRA(base="org/none").check(ModelParts(tiny.lora(tiny.model())), None)


def moved_base(model, folder):
    """The model before alignment, as transformers saves it, under the names of files; the model itself is not moved."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])  # gpt_oss stores its experts as (in, out)
def test_each_experts_update_is_projected_by_peft_own_reckoning(kind, tmp_path):
    before_alignment = families.model(kind)
    folder = moved_base(before_alignment, tmp_path / "base")
    stored = [f"mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=stored, task_type="CAUSAL_LM")
    model = get_peft_model(families.model(kind), config)
    tiny.nudge(model, 1.0)
    experts = {name: m for name, m in model.named_modules() if isinstance(m, ParamWrapper) and m.get_param().ndim == 3}
    deltas = {name: module.get_delta_weight("default").clone() for name, module in experts.items()}
    defense = SafeLoRA(base=str(folder), threshold=1.0, energy=0.5)
    defense.check(ModelParts(model), None)
    report = defense.project(model)
    assert report["projected"] == report["of"]
    assert len(experts) == 4
    for name, module in experts.items():
        stored_name = name.removeprefix("base_model.model.").replace(".base_layer", "") + f".{module.parameter_name}"
        aligned, base, after = (
            module.get_param(),
            before_alignment.get_parameter(stored_name),
            module.get_delta_weight("default"),
        )
        for i, (moved, delta, projected) in enumerate(zip(aligned - base, deltas[name], after, strict=True)):
            turn = (lambda x: x.T) if kind == "gpt_oss" else (lambda x: x)
            kept = leading(turn(moved), 0.5)
            assert torch.allclose(turn(projected), kept @ kept.T @ turn(delta), atol=1e-3), (stored_name, i)


def test_a_base_whose_experts_have_another_width_is_refused(tmp_path):
    model = families.model("qwen3_moe")
    wide = type(model)(type(model.config)(**model.config.to_dict() | {"moe_intermediate_size": 8}))
    wide.save_pretrained(str(tmp_path / "base"))
    with pytest.raises(ModelError, match=r"experts.*is \(4, .*but \(4, "):
        SafeLoRA(base=str(tmp_path / "base")).check(ModelParts(tiny.lora(model)), None)


def test_a_model_whose_files_have_other_names_is_read_as_transformers_reads_it(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    before_alignment = Gemma3ForConditionalGeneration(config)
    folder = moved_base(before_alignment, tmp_path / "base")
    torch.manual_seed(0)
    model = get_peft_model(
        Gemma3ForConditionalGeneration(config), LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM")
    )
    tiny.nudge(model, 1.0)
    matrices = ModelParts(model).adapted()
    assert not {m.name for m in matrices} & set(load_file(folder / "model.safetensors"))
    before = [m.b.detach().clone() for m in matrices]
    SafeLoRA(base=str(folder), threshold=1.0, energy=0.5).project(model)
    for matrix, b in zip(matrices, before, strict=True):
        kept = leading(matrix.weight - before_alignment.get_parameter(matrix.name), 0.5)
        assert torch.allclose(matrix.b, kept @ kept.T @ b, atol=1e-4), matrix.name
