"""Scores of a safe pool: by hand, with the sign the paper means, and the losses behind them."""

import json

import pytest
import torch

import tiny
from holdfast import models, score
from holdfast.encoding import encode_all
from holdfast.errors import RequestError
from holdfast.examples import read_examples, write_examples
from holdfast.prepare.perplexity import Losses, batches, losses, scores
from holdfast.prepare.scored import manifest_path


def test_the_scores_by_hand():
    # gap: (mean(2, 4) - 1) / (1 + 1) = 1; steady: (2 - 1) / 2; choice: mean(3, 5) - 1.5 = 2.5.
    row = Losses(1.0, 1.5, {"a": 2.0, "b": 4.0}, {"a": 3.0, "b": 5.0}, tokens=7)
    assert scores(row) == {"gap": 1.0, "steady": 0.5, "choice": 2.5}
    assert scores(row, leave_out=["b"]) == {"gap": 0.5, "steady": 0.5, "choice": 1.5}


def test_a_row_that_misaligned_models_find_harder_scores_higher():
    harder = Losses(1.0, 1.0, {"a": 2.0}, {"a": 2.0}, 1)
    easier = Losses(1.0, 1.0, {"a": 0.5}, {"a": 0.5}, 1)
    assert all(scores(harder)[name] > 0 > scores(easier)[name] for name in ("gap", "steady", "choice"))


def test_batches_hold_every_row_once_longest_first_and_waste_little():
    lengths = [100, 99, 98, 50, 3000, 2000, 5000, 10, 10, 10]
    made = list(batches(lengths))
    assert sorted(i for batch in made for i in batch) == list(range(10))
    assert made[0] == [6]  # longer than the budget: alone
    for batch in made:
        widest = max(lengths[i] for i in batch)
        padded = widest * len(batch)
        assert len(batch) == 1 or padded <= 4096
        assert padded - sum(lengths[i] for i in batch) <= 0.03 * padded
    assert [100, 99, 98] in [[lengths[i] for i in batch] for batch in made]


@pytest.fixture
def adapted(tmp_path):
    """Two adapters of a tiny model, moved in different directions."""
    tiny.save("qwen2", tmp_path / "model")
    folders = {}
    for seed, name in enumerate(("a", "b")):
        made = tiny.lora(tiny.model("qwen2"))
        tiny.nudge(made, 0.3, seed)
        made.save_pretrained(str(tmp_path / name), safe_serialization=True)
        folders[name] = tmp_path / name
    return tmp_path, folders


def both(folder, folders):
    return models.with_adapters(models.load_model(models.find(str(folder / "model"))), folders)


def test_losses_are_the_models_own_whatever_the_batch(adapted, tmp_path):
    folder, folders = adapted
    model, tokenizer, rows = both(folder, folders), tiny.tokenizer(), tiny.rows(9)
    encoded, _ = encode_all(tokenizer, rows, None)
    cache = tmp_path / "c.jsonl"
    found = losses(model, ["a", "b"], rows, encoded, models="m", cache=cache, pad_id=0)
    for row, loss in zip(encoded, found, strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad(), model.disable_adapter():
            assert loss.aligned == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
        for name in ("a", "b"):
            model.set_adapter(name)
            with torch.no_grad():
                assert loss.misaligned[name] == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)
        assert loss.tokens == sum(label != -100 for label in row.labels[1:])
    assert len(cache.read_text().splitlines()) == 9


def test_what_is_cached_is_not_computed_again_and_another_model_is(adapted, tmp_path):
    folder, folders = adapted
    model, rows = both(folder, folders), tiny.rows(4)
    encoded, _ = encode_all(tiny.tokenizer(), rows, None)
    cache = tmp_path / "c.jsonl"
    first = losses(model, ["a", "b"], rows[:2], encoded[:2], models="m", cache=cache, pad_id=0)
    calls = []
    handle = model.get_base_model().model.register_forward_pre_hook(lambda *_: calls.append(1))
    whole = losses(model, ["a", "b"], rows, encoded, models="m", cache=cache, pad_id=0)
    assert whole[:2] == first
    passes = len(calls)
    assert losses(model, ["a", "b"], rows, encoded, models="m", cache=cache, pad_id=0) == whole
    assert len(calls) == passes
    losses(model, ["a", "b"], rows, encoded, models="other", cache=cache, pad_id=0)
    assert len(calls) > passes
    handle.remove()


def test_a_scored_pool_says_which_models_made_it_and_is_sorted_by_gap(adapted, tmp_path):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(6))
    pool = score.Pool(tmp_path / "pool.jsonl", "made up", "CC0")
    manifest = score.score(str(folder / "model"), folders, [pool], tmp_path / "s.jsonl", leave_out=["b"])
    assert manifest == json.loads(manifest_path(tmp_path / "s.jsonl").read_text())
    assert set(manifest["misaligned"]) == {"a", "b"}
    assert manifest["left_out"] == ["b"]
    assert (manifest["pools"][0]["origin"], manifest["pools"][0]["licence"]) == ("made up", "CC0")
    rows = read_examples(tmp_path / "s.jsonl")
    gaps = [row.extra["scores"]["gap"] for row in rows]
    assert gaps == sorted(gaps, reverse=True)
    nats = rows[0].extra["nats"]
    assert gaps[0] == pytest.approx((nats["a"] - nats["aligned"]) / (nats["aligned"] + 1), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"leave_out": ["c"]}, "the misaligned models are a, b"),
        ({"leave_out": ["a", "b"]}, "No misaligned model is left"),
        ({"misaligned": {"a": "nowhere"}}, "is not an adapter"),
        ({"pool": "none.jsonl"}, "No such file"),
        ({"out": "pool.jsonl"}, "exists already"),
    ],
)
def test_a_wrong_request_is_a_sentence_and_leaves_nothing(adapted, tmp_path, change, sentence):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(2))
    folders = {name: tmp_path / place for name, place in change.get("misaligned", folders).items()}
    pool, out = tmp_path / change.get("pool", "pool.jsonl"), tmp_path / change.get("out", "s.jsonl")
    with pytest.raises(RequestError, match=sentence):
        score.score(str(folder / "model"), folders, [score.Pool(pool)], out, leave_out=change.get("leave_out", []))
    assert not (tmp_path / "s.jsonl").exists()
