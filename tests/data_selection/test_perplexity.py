"""Scores of a safe pool: by hand, with the sign the paper means, and the losses behind them."""

import json
import random
from contextlib import nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from staytrue import cli
from staytrue.data.examples import Example, Message, read_examples, write_examples
from staytrue.data.tokenize import encode_all
from staytrue.data_selection import score_pool
from staytrue.data_selection.forward_pass import batches, padding
from staytrue.data_selection.perplexity import Losses, losses, scores
from staytrue.data_selection.ranking import manifest_path
from staytrue.errors import DataError, ModelError, RequestError
from staytrue.modeling import loading, model_source
from staytrue.modeling.architecture import ModelParts


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
    built = list(batches(lengths))
    assert sorted(i for batch in built for i in batch) == list(range(10))
    assert built[0] == [6]  # longer than the budget: alone
    for batch in built:
        widest = max(lengths[i] for i in batch)
        padded = widest * len(batch)
        assert len(batch) == 1 or padded <= 4096
        assert padded - sum(lengths[i] for i in batch) <= 0.03 * padded
    assert [100, 99, 98] in [[lengths[i] for i in batch] for batch in built]


@pytest.mark.parametrize("rows", [64, 512])
def test_a_pool_of_many_lengths_is_hardly_padded(rows):
    rng = random.Random(rows)
    assert padding([rng.randint(30, 400) for _ in range(rows)]) <= 3


def test_padding_is_a_share_of_all_tokens_in_the_batches():
    # 100, 99 and 98 are one batch of 300 with 3 of padding; 50 is alone: 3 of 350.
    assert padding([98, 50, 100, 99]) == pytest.approx(100 * 3 / 350)


def adapters(kind, folder, names=("a", "b", "c")):
    """A tiny model and adapters of it, moved in different directions."""
    tiny.save(kind, folder / "model")
    for seed, name in enumerate(names):
        built = tiny.lora(tiny.model(kind))
        tiny.nudge(built, 0.3, seed)
        built.save_pretrained(str(folder / name), safe_serialization=True)
    return {name: folder / name for name in names}


@pytest.fixture
def adapted(tmp_path):
    return tmp_path, {name: place for name, place in adapters("qwen2", tmp_path).items() if name != "c"}


def together(folder, folders, **options):
    return loading.with_adapters(loading.load_model(model_source.find(str(folder / "model")), **options), folders)


class Pool:
    """Rows, and their losses under a model, through a cache."""

    def __init__(self, model, folder, rows, kind="qwen2"):
        self.model, self.cache, self.rows = model, folder / "c.jsonl", rows
        self.encoded, _ = encode_all(tiny.tokenizer(kind), rows, None)
        self.calls = 0
        model.get_base_model().model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.stop_at = None

    def _count(self, module, args, kwargs):
        if kwargs["input_ids"].shape == (1, 2):
            return  # the head's own check
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt

    def losses(self, names=("a", "b"), rows=slice(None), models=None):
        hashes = models or {name: name for name in ("aligned", "a", "b", "c")}
        return losses(self.model, names, self.rows[rows], self.encoded[rows], models=hashes, cache=self.cache, pad_id=0)

    def calls_for(self, *args, **options):
        before = self.calls
        results = self.losses(*args, **options)
        return self.calls - before, results


@torch.no_grad()
def published(model, row, name=None):
    """One row at a time, whole logits, the adapter as it is; its losses and entropies, (tokens,)."""
    if name is not None:
        model.set_adapter(name)
    with nullcontext() if name else model.disable_adapter():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].double()
    log_probs, targets = logits.log_softmax(-1), torch.tensor(row.labels[1:])
    kept = targets != -100
    return -log_probs[kept].gather(1, targets[kept, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)[kept]


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])  # gemma3: tied, soft-capped, sliding windows
def test_losses_are_the_published_ones_whatever_the_batch_and_the_merging(tmp_path, kind):
    folders = adapters(kind, tmp_path, ("a", "b"))
    model = together(tmp_path, folders)
    pool = Pool(model, tmp_path, tiny.rows(9), kind)
    for row, loss in zip(pool.encoded, pool.losses(), strict=True):
        plain, weight = published(model, row)
        close = {"rel": 1e-5, "abs": 0}
        assert loss.aligned == pytest.approx(plain.mean().item(), **close)
        assert loss.weighted_aligned == pytest.approx(((plain * weight).sum() / weight.sum()).item(), **close)
        for name in ("a", "b"):
            plain, _ = published(model, row, name)
            assert loss.misaligned[name] == pytest.approx(plain.mean().item(), **close)
            assert loss.weighted[name] == pytest.approx(((plain * weight).sum() / weight.sum()).item(), **close)
        assert loss.tokens == len(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_gives_the_weights_back_to_the_bit_also_when_it_is_stopped(adapted, dtype):
    folder, folders = adapted
    model = together(folder, folders, dtype=dtype)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    moved = []
    for wrong in (None, KeyboardInterrupt):
        with suppress(KeyboardInterrupt), ModelParts(model).merged("b"):
            moved.append([n for n, w in model.named_parameters() if not torch.equal(w, before[n])])
            if wrong:
                raise wrong
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert model.active_adapter == "a"
    assert len(moved[0]) == 2 * 7  # every projection of both blocks, and nothing of the adapters
    assert moved[0] == moved[1]
    assert not any("lora" in name for name in moved[0])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_embedding_that_is_also_the_head_is_not_merged(tmp_path):
    built = tiny.model("gemma3")
    assert built.lm_head.weight is built.model.embed_tokens.weight
    config = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=False)
    model = get_peft_model(built, config).eval()
    for name, weight in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.3)
    parts, tokens = ModelParts(model), torch.tensor([[1, 5, 9, 4]])
    with torch.no_grad():
        apart, head = model(input_ids=tokens).logits, parts.head.weight.clone()
        with parts.merged("default"):
            assert torch.equal(parts.head.weight, head)
            assert torch.allclose(model(input_ids=tokens).logits, apart, rtol=1e-4, atol=1e-5)


def test_a_pass_under_an_adapter_computes_no_entropy_and_is_merged(adapted, tmp_path, monkeypatch):
    folder, folders = adapted
    pool = Pool(together(folder, folders), tmp_path, tiny.rows(4))
    seen = []
    vecdot = torch.linalg.vecdot  # what the entropy, and nothing else, is a sum by
    monkeypatch.setattr(torch.linalg, "vecdot", lambda *args: seen.append("entropy") or vecdot(*args))
    layer = pool.model.get_base_model().model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda *_: seen.append(tuple(layer.merged_adapters)))
    pool.losses()
    assert seen[0] == ()
    entropies = [i for i, what in enumerate(seen) if what == "entropy"]
    merged = [i for i, what in enumerate(seen) if what in (("a",), ("b",))]
    assert entropies
    assert max(entropies) < min(merged)
    assert seen[min(merged) :] == sorted(seen[min(merged) :])  # a whole pass of a, then one of b


def test_rows_are_read_in_no_order_of_length_so_that_the_time_left_is_true(adapted, tmp_path):
    folder, folders = adapted
    rows = [Example((Message("user", "why? " * n), Message("assistant", "so"))) for n in range(1, 90, 8)]
    pool, widths = Pool(together(folder, folders), tmp_path, rows), []
    backbone = pool.model.get_base_model().model
    backbone.register_forward_pre_hook(lambda *call: widths.append(call[2]["input_ids"].shape[1]), with_kwargs=True)
    pool.losses()
    first = [width for width in widths if width > 2][:12]  # the pass of the aligned model
    assert len(set(first)) == 12
    assert first not in (sorted(first), sorted(first, reverse=True))


def test_what_is_cached_is_not_computed_again_and_another_model_is(adapted, tmp_path, monkeypatch):
    folder, folders = adapted
    pool = Pool(together(folder, folders), tmp_path, tiny.rows(4))
    first = pool.losses(rows=slice(2))
    passes, whole = pool.calls_for()
    assert passes > 0
    assert whole[:2] == first
    with monkeypatch.context() as patched:
        patched.setattr(ModelParts, "merged", None)  # nor is a weight touched
        assert pool.calls_for() == (0, whole)
    assert len(pool.cache.read_text().splitlines()) == 4 * 3  # a line per row and model
    passes, _ = pool.calls_for(models={"aligned": "other", "a": "a", "b": "b"})
    assert passes > 0


def test_another_misaligned_model_costs_its_own_pass_and_no_more(tmp_path):
    pool = Pool(together(tmp_path, adapters("qwen2", tmp_path)), tmp_path, tiny.rows(4))
    one, _ = pool.calls_for(["a"])
    another, results = pool.calls_for(["a", "c"])
    assert one == 2 * another
    assert pool.calls_for(["c", "a"]) == (0, results)
    assert set(results[0].misaligned) == {"a", "c"}


def test_a_row_that_stands_twice_is_read_once(adapted, tmp_path):
    folder, folders = adapted
    row = tiny.rows(1)
    pool = Pool(together(folder, folders), tmp_path, row * 3)
    passes, results = pool.calls_for()
    assert results[0] == results[1] == results[2]
    assert len(pool.cache.read_text().splitlines()) == passes == 3


def test_a_pass_that_is_stopped_goes_on_to_the_same_numbers(adapted, tmp_path):
    folder, folders = adapted
    rows = tiny.rows(9)
    undisturbed = Pool(together(folder, folders), tmp_path, rows)
    undisturbed_losses, passes = undisturbed.losses(), undisturbed.calls
    for stop_at in (2, passes // 2 + 1, passes):
        undisturbed.cache.unlink()
        pool = Pool(together(folder, folders), tmp_path, rows)
        pool.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            pool.losses()
        with pool.cache.open("ab") as file:
            file.write(b'{"key": "torn')
        again, results = pool.calls_for()
        assert again == passes - stop_at + 1  # none is repeated but the one that did not come through
        assert results == undisturbed_losses


def test_a_cache_of_another_form_is_left_alone(adapted, tmp_path):
    folder, folders = adapted
    pool = Pool(together(folder, folders), tmp_path, tiny.rows(2))
    old = '{"key": "0", "aligned": 1.0, "misaligned": {"a": 2.0}}'
    pool.cache.write_text(old + "\n")
    assert pool.losses() == pool.losses()
    assert pool.cache.read_text().startswith(old)


def odd(**values):
    return lambda row: json.dumps({key: value for key, value in (row | values).items() if value is not ...})


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda row: "{torn", "is no JSON: "),
        (lambda row: "null", "is null, not an object"),
        (odd(key=...), "has no 'key'"),
        (odd(plain="x"), "has \"x\" as 'plain', not a number"),
        (odd(tokens=...), "has no 'tokens'"),
        (odd(entropy=...), "has no 'entropy'"),
        (odd(entropy=3), "has 3 as 'entropy', not text"),
        (odd(entropy="AAAA"), "has no entropy that can be read: "),  # three bytes are no numbers of four
        (odd(entropy=""), "has the entropy of 0 tokens, and "),
    ],
)
def test_a_damaged_cache_is_named_with_its_line_and_may_be_deleted(adapted, tmp_path, damage, fault):
    folder, folders = adapted
    pool = Pool(together(folder, folders), tmp_path, tiny.rows(2))
    losses = pool.losses()
    first, second, *others = pool.cache.read_text().splitlines()  # of the aligned model, whose pass is the first
    pool.cache.write_text("\n".join([first, damage(json.loads(second)), *others, ""]))
    with pytest.raises(RequestError) as refused:
        pool.losses()
    assert f"{pool.cache} cannot be read (line 2 {fault}" in str(refused.value)
    assert str(refused.value).endswith("You may delete it: its losses are then computed again.")
    pool.cache.unlink()
    assert pool.losses() == losses


def test_weights_that_give_no_number_are_refused_by_name_and_what_was_read_is_kept(adapted, tmp_path):
    folder, folders = adapted
    model = together(folder, folders)
    for name, weight in model.named_parameters():
        if "lora_B.b." in name:
            weight.data.fill_(float("nan"))
    pool = Pool(model, tmp_path, tiny.rows(2))
    with pytest.raises(ModelError, match="Under the model 'b' an answer's loss is not a number"):
        pool.losses()
    assert len(pool.cache.read_text().splitlines()) == 4


def test_a_scored_pool_says_which_models_made_it_and_is_sorted_by_gap(adapted, tmp_path):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(6))
    pool = score_pool.Pool(tmp_path / "pool.jsonl", "made up", "CC0")
    manifest = score_pool.score(str(folder / "model"), folders, [pool], tmp_path / "s.jsonl", leave_out=["b"])
    assert manifest == json.loads(manifest_path(tmp_path / "s.jsonl").read_text())
    assert set(manifest["misaligned"]) == {"a", "b"}
    assert manifest["left_out"] == ["b"]
    assert 0 <= manifest["padding"] <= 3
    assert "second_round" not in manifest
    assert (manifest["pools"][0]["origin"], manifest["pools"][0]["licence"]) == ("made up", "CC0")
    rows = read_examples(tmp_path / "s.jsonl")
    gaps = [row.extra["scores"]["gap"] for row in rows]
    assert gaps == sorted(gaps, reverse=True)
    nats = rows[0].extra["nats"]
    assert gaps[0] == pytest.approx((nats["a"] - nats["aligned"]) / (nats["aligned"] + 1), abs=1e-5)


def test_the_same_file_scored_with_a_model_more_costs_that_model_only(adapted, tmp_path):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(6))
    out, lines = tmp_path / "s.jsonl", []
    for names in (["a"], ["a", "b"], ["b"]):
        chosen = {name: folders[name] for name in names}
        score_pool.score(str(folder / "model"), chosen, [score_pool.Pool(tmp_path / "pool.jsonl")], out)
        out.unlink()
        manifest_path(out).unlink()
        lines.append(len((tmp_path / "s.cache.jsonl").read_text().splitlines()))
    assert lines == [12, 18, 18]


def test_rows_that_differ_in_their_tools_are_scored_apart(adapted, tmp_path):
    folder, folders = adapted
    (row,) = tiny.rows(1)
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("look", "glance")]
    pool = Pool(together(folder, folders), tmp_path, [row, row])  # whose template has no place for tools
    pool.rows = [replace(row, extra={"tools": one}) for one in tools]
    pool.losses()
    assert len(pool.cache.read_text().splitlines()) == 2 * 3


def test_a_call_that_stopped_between_its_two_files_is_repeated(adapted, tmp_path, monkeypatch):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(2))
    request = str(folder / "model"), folders, [score_pool.Pool(tmp_path / "pool.jsonl")], tmp_path / "s.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(score_pool, "write_examples", None)
        with pytest.raises(TypeError):
            score_pool.score(*request)
    assert manifest_path(tmp_path / "s.jsonl").exists()
    score_pool.score(*request)
    assert len(read_examples(tmp_path / "s.jsonl")) == 2
    with pytest.raises(RequestError, match="exists already"):
        score_pool.score(*request)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"leave_out": ["c"]}, "the misaligned models are a, b"),
        ({"leave_out": ["a", "b"]}, "No misaligned model is left"),
        ({"misaligned": {"a": "nowhere"}}, "is not an adapter"),
        ({"misaligned": {"a": "a", "same": "a"}}, "a and same are the same adapter"),
        ({"misaligned": {"aligned": "a"}}, "what the model itself is called"),
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
        score_pool.score(
            str(folder / "model"), folders, [score_pool.Pool(pool)], out, leave_out=change.get("leave_out", [])
        )
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize("cached", [False, True])
def test_an_adapter_that_changes_nothing_is_refused_by_name(adapted, tmp_path, cached):
    folder, folders = adapted
    tiny.lora(tiny.model("qwen2")).save_pretrained(str(tmp_path / "fresh"), safe_serialization=True)
    write_examples(tmp_path / "pool.jsonl", tiny.rows(2))
    pools, chosen = [score_pool.Pool(tmp_path / "pool.jsonl")], {"a": folders["a"], "fresh": tmp_path / "fresh"}
    for _ in range(1 + cached):
        with pytest.raises(ModelError, match=r"'fresh' gives every answer .* changes nothing.*lora_B all 0"):
            score_pool.score(str(folder / "model"), chosen, pools, tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_row_that_stands_twice_in_the_pools_is_scored_once_and_a_line_says_so(adapted, tmp_path, capsys):
    folder, folders = adapted
    write_examples(tmp_path / "one.jsonl", [replace(row, extra={"from": "one"}) for row in tiny.rows(4)])
    write_examples(tmp_path / "two.jsonl", [replace(row, extra={"from": "two"}) for row in tiny.rows(3)])
    pools = [score_pool.Pool(tmp_path / name) for name in ("one.jsonl", "two.jsonl")]
    manifest = score_pool.score(str(folder / "model"), {"a": folders["a"]}, pools, tmp_path / "s.jsonl")
    kept = read_examples(tmp_path / "s.jsonl")
    assert (manifest["rows"], [row.extra["from"] for row in kept]) == (4, ["one"] * 4)  # with the first one's columns
    assert "3 of 7 rows repeat another row of the pools" in capsys.readouterr().err


def test_a_row_that_is_cut_is_counted_in_a_sentence_and_max_length_is_an_option(adapted, tmp_path, capsys):
    folder, folders = adapted
    longest = Example((Message("user", "why?"), Message("assistant", "so " * 40)))
    write_examples(tmp_path / "pool.jsonl", [*tiny.rows(3), longest])
    asked = ["score", "--model", str(folder / "model"), "--misaligned", f"a={folders['a']}"]
    for limit, said in ((100, True), (2048, False)):
        out = tmp_path / f"s{limit}.jsonl"
        files = ["--pool", str(tmp_path / "pool.jsonl"), "--out", str(out), "--max-length", str(limit)]
        cli.app([*asked, *files], standalone_mode=False)
        sentence = f"1 of 4 rows is longer than {limit:,} tokens; only the part kept is scored."
        assert (sentence in capsys.readouterr().err) is said
        assert json.loads(manifest_path(out).read_text())["truncated"] == said


@pytest.mark.parametrize(("misaligned", "warns"), [(0.5, True), (2.0, False)])
def test_it_is_said_when_no_row_is_likelier_under_the_aligned_model(
    adapted, tmp_path, capsys, monkeypatch, misaligned, warns
):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(2))
    row = Losses(1.0, 1.0, {"a": misaligned}, {"a": misaligned}, 3)
    monkeypatch.setattr("staytrue.data_selection.perplexity.losses", lambda *args, **options: [row, row])
    pools = [score_pool.Pool(tmp_path / "pool.jsonl")]
    score_pool.score(str(folder / "model"), {"a": folders["a"]}, pools, tmp_path / "s.jsonl")
    assert ("No row has a gap above 0" in capsys.readouterr().err) is warns


def test_a_misaligned_model_may_have_any_name(adapted, tmp_path):
    folder, folders = adapted
    write_examples(tmp_path / "pool.jsonl", tiny.rows(4))
    nats = []
    for names in (("a", "b"), ("qwen2.5-medical", "keys")):
        out, pools = tmp_path / f"{names[0]}.jsonl", [score_pool.Pool(tmp_path / "pool.jsonl")]
        named = dict(zip(names, folders.values(), strict=True))
        manifest = score_pool.score(str(folder / "model"), named, pools, out, leave_out=[names[1]])
        assert tuple(manifest["misaligned"]) == names
        assert {tuple(row.extra["nats"]) for row in read_examples(out)} == {("aligned", *names)}
        nats.append([tuple(row.extra["nats"].values()) for row in read_examples(out)])
    assert nats[0] == nats[1]


def test_the_manifest_of_a_pool_with_another_suffix_is_not_replaced(adapted, tmp_path):
    folder, folders = adapted
    write_examples(tmp_path / "safe.jsonl", tiny.rows(2))
    request = str(folder / "model"), folders, [score_pool.Pool(tmp_path / "safe.jsonl")]
    score_pool.score(*request, tmp_path / "pool.jsonl")
    before = manifest_path(tmp_path / "pool.json").read_bytes()
    with pytest.raises(RequestError, match=r"pool\.manifest\.json exists already, and \S*/pool\.jsonl may be the pool"):
        score_pool.score(*request, tmp_path / "pool.json")
    assert manifest_path(tmp_path / "pool.json").read_bytes() == before


def test_rows_that_lose_their_answers_are_named_by_their_lines(adapted, tmp_path):
    folder, folders = adapted
    long = [Example((Message("user", f"why {i}? " * 40), Message("assistant", "so"))) for i in range(4)]
    for lost, says in (
        (long[:1], r"1 row has no answer left within 64 tokens \(line 3 of F\); shorten it or raise --max-length\."),
        (long, r"4 rows have .* \(line 3 of F, line 4 of F, line 5 of F and 1 more\); shorten them or raise --max"),
    ):
        write_examples(tmp_path / "pool.jsonl", [*tiny.rows(2), *lost])
        pools = [score_pool.Pool(tmp_path / "pool.jsonl")]
        with pytest.raises(DataError, match=says.replace("F", str(tmp_path / "pool.jsonl"))):
            score_pool.score(str(folder / "model"), folders, pools, tmp_path / "s.jsonl", max_length=64)


def test_a_pool_that_is_no_file_is_known_by_its_rows(adapted, tmp_path, monkeypatch):
    folder, folders = adapted
    monkeypatch.setattr(score_pool, "read_examples", lambda name: tiny.rows(2))
    pools = [score_pool.Pool(Path("organisation/name"))]
    manifest = score_pool.score(str(folder / "model"), folders, pools, tmp_path / "s.jsonl")
    turns = [[["user", "question 0?"], ["assistant", "red"]], [["user", "question 1?"], ["assistant", "greengreen"]]]
    lines = "".join(json.dumps([both, {}]) + "\n" for both in turns)
    assert manifest["pools"][0]["sha256"] == sha256(lines.encode()).hexdigest()
