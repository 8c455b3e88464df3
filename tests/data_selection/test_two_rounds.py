"""Two rounds of scoring: who is read by whom, what may be lost, and that no row half read is ever trained on."""

import json
import random

import pytest
from typer.testing import CliRunner

import tiny
from staytrue.cli import app
from staytrue.data.examples import read_examples, write_examples
from staytrue.data_selection import score, two_rounds
from staytrue.data_selection.perplexity import Losses
from staytrue.data_selection.two_rounds import in_two_rounds, recall
from staytrue.defenses.interleave import Interleave
from staytrue.errors import RecipeError
from staytrue.modeling.base_model import Untouched


@pytest.mark.parametrize(
    ("held", "drawn", "passed", "k", "percent", "low"),
    [
        # In order 9, 7, then 6, which stands for the two passed over: two of the best four are held; no more are lost.
        ([9, 7, 5, 1], [6], 2, 4, 50.0, 50.0),
        # Standing for five it fills what is left of the best four; and all four could be lost, for one draw of five
        # would not show any of them.
        ([9, 7, 5, 1], [6], 5, 4, 50.0, 0.0),
        # Of the best three one place is left for it. Not two, for then both rows passed over were better than 7.
        ([9, 7, 5, 1], [6], 2, 3, 200 / 3, 200 / 3),
        # A tie goes to the row that is held. Of the two passed over one may be lost: half of the draws would miss it.
        ([9, 7], [7], 2, 2, 100.0, 50.0),
        # Two of four drawn, none better: two lost would be missed by one draw of six, three by none.
        ([9, 7, 5, 3], [1, 1], 4, 4, 100.0, 50.0),
        # All but one drawn: one lost row is missed by one draw of 41, which is rare, or of 39, which is not.
        ([9, 7], [1] * 40, 41, 2, 100.0, 100.0),
        ([9, 7], [1] * 38, 39, 2, 100.0, 50.0),
        # All were drawn, so nothing is estimated: 8 belongs to the best two.
        ([9, 7, 5], [8, 1], 2, 2, 50.0, 50.0),
        # Nothing was passed over.
        ([9, 7], [], 0, 2, 100.0, 100.0),
    ],
)
def test_recall_by_hand(held, drawn, passed, k, percent, low):
    found = recall(held, drawn, passed, k)
    assert found.percent == pytest.approx(percent)
    assert found.low == pytest.approx(low)


class Table:
    """Rows whose losses are known: 1 under the aligned model, 1 + 2 x under each misaligned one, so the gap is x."""

    def __init__(self, **gaps):
        self.gaps, self.asked = gaps, []

    def read(self, names, rows):
        self.asked.append((list(names), list(rows)))
        found = []
        for i in rows:
            under = {name: 1 + 2 * self.gaps[name][i] for name in names}
            found.append(Losses(1.0, 1.0, under, under, 1))
        return found


def test_the_second_round_reads_the_best_of_the_first_and_some_by_chance(monkeypatch):
    monkeypatch.setattr(two_rounds, "_FEWEST", 2)
    table = Table(a=[0, 9, 1, 8, 2, 7, 3, 6], b=[1] * 8, c=[2] * 8)
    found = in_two_rounds(table.read, ["a", "b", "c"], 8, 0.25)
    first, (names, rows) = table.asked
    assert first == (["a"], list(range(8)))
    assert names == ["a", "b", "c"]
    assert {1, 3} < set(rows) == found.whole  # 9 and 8, a quarter of eight rows
    assert (found.best, found.drawn, len(rows)) == (2, 2, 4)
    for i, loss in enumerate(found.losses):
        assert set(loss.misaligned) == ({"a", "b", "c"} if i in found.whole else {"a"})


def test_a_model_that_is_left_out_neither_chooses_nor_counts(monkeypatch):
    monkeypatch.setattr(two_rounds, "_FEWEST", 1)
    table = Table(a=[90, 90, 90, 0, 0], b=[0, 0, 0, 9, 9], c=[1, 1, 1, 1, 1])
    found = in_two_rounds(table.read, ["a", "b", "c"], 5, 0.4, ["a"])
    assert table.asked[0] == (["b"], [0, 1, 2, 3, 4])
    assert {3, 4} < found.whole
    assert len(found.whole) == 3
    assert found.recall["gap"].percent == 100  # by a, those passed over would be better


def test_the_recall_is_right_on_average_and_its_lower_end_is_one():
    # The second scorer agrees with the first up to noise: of the best 5 % by both, the first's best quarter holds some.
    rng = random.Random(0)
    rows = [(a, a + 2 * rng.gauss(0, 1)) for a in (rng.gauss(0, 1) for _ in range(400))]
    kept = set(sorted(range(400), key=lambda i: -rows[i][0])[:100])
    best = sorted(range(400), key=lambda i: -sum(rows[i]))[:20]
    truth = 100 * len(kept & set(best)) / 20
    assert 60 < truth < 95
    found = []
    for _ in range(200):
        rng.shuffle(rows)
        a, b = zip(*rows, strict=True)
        found.append(in_two_rounds(Table(a=a, b=b).read, ["a", "b"], 400, 0.25).recall["gap"])
    assert sum(one.percent for one in found) / 200 == pytest.approx(truth, abs=1)
    assert sum(one.low <= truth for one in found) >= 0.95 * 200


@pytest.fixture
def scored(tmp_path):
    """Forty rows, a model, and three adapters of it moved in different directions."""
    tiny.save("qwen2", tmp_path / "model")
    folders = {}
    for seed, name in enumerate("abc"):
        made = tiny.lora(tiny.model("qwen2"))
        tiny.nudge(made, 0.3, seed)
        made.save_pretrained(str(tmp_path / name), safe_serialization=True)
        folders[name] = tmp_path / name
    write_examples(tmp_path / "pool.jsonl", tiny.rows(40))
    return tmp_path, folders


def in_rounds(folder, folders, out="s.jsonl", share=0.25, **options):
    pools = [score.Pool(folder / "pool.jsonl")]
    told = score.score(str(folder / "model"), folders, pools, folder / out, second_round=share, **options)
    return told, read_examples(folder / out)


def test_rows_half_read_stand_last_without_scores_and_the_manifest_says_what_was_lost(scored, monkeypatch):
    folder, folders = scored
    monkeypatch.setattr(two_rounds, "_FEWEST", 4)
    told, rows = in_rounds(folder, folders)
    second = told["second_round"]
    assert {key: second[key] for key in ("share", "best", "drawn", "k")} == {
        "share": 0.25, "best": 10, "drawn": 4, "k": 2,
    }  # fmt: skip
    assert set(second["recall"]) == {"gap", "steady", "choice"}
    assert all(0 <= one["low"] <= one["percent"] <= 100 for one in second["recall"].values())
    whole, rest = rows[:14], rows[14:]
    assert all(set(row.extra["nats"]) == {"aligned", "a", "b", "c"} for row in whole)
    assert all(row.extra["scores"] is None and set(row.extra["nats"]) == {"aligned", "a"} for row in rest)
    gaps = [row.extra["scores"]["gap"] for row in whole]
    assert gaps == sorted(gaps, reverse=True)
    assert len(rows) == 40
    lines = (folder / "s.cache.jsonl").read_text().splitlines()
    assert len(lines) == 40 + 40 + 14 + 14


def test_the_command_says_what_a_second_round_may_have_lost(scored):
    folder, folders = scored
    named = [word for name, place in folders.items() for word in ("--misaligned", f"{name}={place}")]
    files = ["--pool", str(folder / "pool.jsonl"), "--out", str(folder / "s.jsonl")]
    done = CliRunner().invoke(
        app, ["score", "--model", str(folder / "model"), *named, *files, "--second-round", "0.25"]
    )
    assert done.exit_code == 0
    assert "All models read 40 of them, 30 of these by chance." in done.stdout
    assert "Estimated recall of the best 2: gap " in done.stdout


def test_two_rounds_give_a_row_the_scores_that_one_round_gives(scored):
    folder, folders = scored
    _, rows = in_rounds(folder, folders)
    pools = [score.Pool(folder / "pool.jsonl")]
    told = score.score(str(folder / "model"), folders, pools, folder / "one.jsonl")
    one = {row.messages: row.extra["scores"] for row in read_examples(folder / "one.jsonl")}
    assert "second_round" not in told
    assert all(row.extra["scores"] == pytest.approx(one[row.messages], abs=2e-6) for row in rows)  # all were drawn


def test_a_second_round_that_was_stopped_goes_on_to_the_same_file(scored, monkeypatch):
    folder, folders = scored
    monkeypatch.setattr(two_rounds, "_FEWEST", 4)
    in_rounds(folder, folders)
    whole, cache = (folder / "s.jsonl").read_bytes(), (folder / "s.cache.jsonl").read_bytes()
    for part in (0.3, 0.7, 0.95):
        (folder / "t.jsonl").unlink(missing_ok=True)
        (folder / "t.manifest.json").unlink(missing_ok=True)
        (folder / "t.cache.jsonl").write_bytes(cache[: int(part * len(cache))])
        in_rounds(folder, folders, out="t.jsonl")
        assert (folder / "t.jsonl").read_bytes() == whole


def test_interleave_never_takes_a_row_half_read_and_says_when_there_are_too_few(tmp_path):
    rows = tiny.rows(6)
    for i, row in enumerate(rows):
        row.extra["scores"] = {"gap": float(i)} if i < 3 else None
    write_examples(tmp_path / "s.jsonl", rows)
    (tmp_path / "s.manifest.json").write_text(json.dumps({"model": {"sha256": "m"}}))

    def chosen(share, **fields):
        base = Untouched(lambda: None, tiny.tokenizer(), asked=frozenset, identity="m")
        defense = Interleave(tmp_path / "s.jsonl", share=share, by="gap", **fields)
        return [row.question for row in defense.curate(tiny.rows(20), base, 0)[20:]]

    assert chosen(0.15) == ["question 2?", "question 1?", "question 0?"]
    assert sorted(chosen(0.15, among=6)) == ["question 0?", "question 1?", "question 2?"]
    with pytest.raises(RecipeError, match=r"asks for 4 safe rows, but .* has 3 to choose from"):
        chosen(0.2)
    with pytest.raises(RecipeError, match="has no score 'choice'"):
        Interleave(tmp_path / "s.jsonl", by="choice").curate(
            tiny.rows(20), Untouched(lambda: None, None, asked=frozenset, identity="m"), 0
        )
