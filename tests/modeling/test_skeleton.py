"""A model without weights has the counts of the model with weights, and keeps what its forward pass keeps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import families
import tiny
from staytrue.errors import ModelError
from staytrue.evals.generation.check import check_generation
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.model_source import Source
from staytrue.modeling.skeleton import Skeleton

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def skeleton(folder, adapted=lambda model: get_peft_model(model, LORA), **options):
    return Skeleton.of(Source("m", str(folder), dtype="float32"), adapted, **options)


def really_kept(model, rows, tokens):
    """Bytes that a forward pass with real weights keeps for its backward pass."""
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(rows, tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = ModelParts(model.train()).backbone(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kind", tiny.KINDS[:3])
def test_it_counts_weights_and_what_is_kept_as_the_real_model(kind, tmp_path):
    tiny.save(kind, tmp_path)
    model, counted = get_peft_model(tiny.model(kind), LORA), skeleton(tmp_path)
    assert [w.shape for w in counted.weights] == [w.shape for w in model.parameters()]
    assert len(counted.trained) == sum(w.requires_grad for w in model.parameters())
    assert counted.adapted == 7 * 2  # q, k, v, o, gate, up and down of two blocks
    assert counted.kept_for_backward(3, 11) == pytest.approx(really_kept(model, 3, 11), rel=0.1)  # and its mask
    assert counted.kept_for_backward(6, 11) == pytest.approx(2 * counted.kept_for_backward(3, 11), rel=0.05)


def test_all_weights_keep_more_than_an_adapter(tmp_path):
    tiny.save("qwen2", tmp_path)
    whole = skeleton(tmp_path, lambda model: model, whole=True)
    assert len(whole.trained) == len(whole.weights)
    assert whole.adapted == 0
    assert whole.kept_for_backward(3, 11) == pytest.approx(really_kept(tiny.model("qwen2"), 3, 11), rel=0.1)
    assert whole.kept_for_backward(3, 11) > skeleton(tmp_path).kept_for_backward(3, 11)


def test_the_embedding_multiplies_no_token_unless_it_is_the_head(tmp_path):
    tiny.save("qwen2", tmp_path)
    whole, config = skeleton(tmp_path, lambda model: model), tiny.model("qwen2").config
    matrices = sum(
        w.numel() for name, w in tiny.model("qwen2").named_parameters() if w.dim() > 1 and "embed" not in name
    )
    tied = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    assert whole.multiplied == matrices + tied
    assert whole.vocabulary == config.vocab_size


@pytest.mark.parametrize("family", sorted(families.CONFIGS))
def test_an_unusual_model_is_counted_as_it_is_or_not_at_all(family, tmp_path):
    model = families.model(family)
    model.save_pretrained(tmp_path)
    counted = skeleton(tmp_path, lambda model: model)
    try:
        kept = counted.kept_for_backward(2, 16)
    except ModelError:
        return
    assert kept == pytest.approx(really_kept(model, 2, 16), rel=0.1)


@pytest.mark.parametrize("kind", tiny.KINDS[:3])
def test_a_row_of_generation_is_that_of_the_real_model(kind, tmp_path):
    tiny.save(kind, tmp_path)
    assert skeleton(tmp_path).cached_row() == check_generation(tiny.model(kind))


def test_a_model_that_cannot_be_built_is_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match=r"The model m cannot be built: "):
        skeleton(tmp_path)
