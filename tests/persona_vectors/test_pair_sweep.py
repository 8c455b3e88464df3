"""The sweep by pairs: shift, interval and change by hand; what it recommends; what the command keeps and prints."""

import json

import pytest
import torch
from safetensors import safe_open

import tiny
from shown import Shown
from staytrue import cli
from staytrue.evals.questions.answer_pairs import EARLY_STOPPING, Pair, shipped
from staytrue.modeling.architecture import ModelParts
from staytrue.persona_vectors import pair_sweep, traits, vector_request
from staytrue.persona_vectors.extract import Extraction
from staytrue.persona_vectors.pair_sweep import Setting, layers_of, recommended, sweep
from staytrue.persona_vectors.vector import PersonaVector

PAIRS = [Pair(name, "Why?", "A.", "B.") for name in "abc"]
# What the first block's activations move along the first axis, and log P(misaligned), log P(aligned) of each pair.
TABLE = {
    0.0: [(-2.0, -1.0), (-3.0, -2.0), (-1.0, -1.0)],  # the gaps are -1, -1 and 0
    1.0: [(-1.7, -1.0), (-2.9, -2.0), (-0.8, -1.0)],  # shifts of 0.3, 0.1 and 0.2
    2.0: [(-2.0, -2.0), (-3.0, -3.0), (-1.0, -2.0)],  # shifts of 1 by aligned answers that lose 1: 0.5 of all
}


def setting(layer, alpha, shift, low, change):
    return Setting(layer, alpha, shift, low, 2 * shift - low, change)


def best(*settings):
    result = recommended(settings)
    return result and (result.layer, result.alpha)


def test_the_largest_clear_shift_that_costs_little_is_recommended():
    assert best(setting(1, 0.1, 0.1, 0.05, 0), setting(2, 0.2, 0.2, 0.1, -0.1), setting(3, 0.4, 0.9, 0.8, -0.101)) == (
        2,
        0.2,
    )
    assert best(setting(1, 0.1, 0.1, 0.01, 0), setting(2, 0.2, 0.3, 0.0, 0)) == (1, 0.1)
    assert best(setting(1, 0.4, 0.2, 0.1, 0), setting(3, 0.2, 0.2, 0.1, 0), setting(2, 0.2, 0.2, 0.1, 0)) == (2, 0.2)
    assert best(setting(1, 0.1, 0.1, -0.01, 0), setting(2, 0.8, 0.5, 0.4, -2)) is None


def test_ten_layers_at_most_are_evenly_spaced_and_end_with_the_last():
    assert layers_of(4) == [1, 2, 3, 4]
    assert layers_of(30) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert layers_of(28) == [3, 6, 8, 11, 14, 17, 20, 22, 25, 28]


def swept(monkeypatch, alphas, progress=None):
    """A sweep of a model with two blocks, whose vector is 4 along the first axis, where activations are 10 long."""
    model, seen = tiny.model(), []
    blocks = ModelParts(model).blocks

    def pushed():
        """How far the two blocks' outputs are moved along the first axis, and how long the move is."""
        moves = []
        for block in blocks:
            plain = torch.zeros(1, 1, 32)
            for hook in block._forward_hooks.values():
                plain = hook(block, (), plain)
            moves.append(plain[0, 0])
        return moves

    def likelihoods(_, tokenizer, pairs, count):
        assert pairs is PAIRS
        moves = pushed()
        seen.append([move.norm().item() for move in moves])
        count(6)
        return TABLE.get(round(moves[1][0].item(), 3), TABLE[0.0])

    monkeypatch.setattr("staytrue.evals.measures.pairs.likelihoods", likelihoods)
    table = torch.zeros(2, 32)
    table[:, 0] = 4.0
    result = Extraction(table, (10.0, 10.0), pairs=4, kept=4)
    return sweep(model, None, result, PAIRS, alphas=alphas, progress=progress), seen


def test_each_setting_has_the_mean_shift_students_interval_and_the_change_of_all_answers(monkeypatch):
    facts, seen = swept(monkeypatch, (0.1, 0.2), progress := Shown())
    assert [(s["layer"], s["alpha"]) for s in facts["settings"]] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert [s["shift"] for s in facts["settings"]] == [0, 0, 0.2, 1]
    # as in early stopping: mean 0.2, standard deviation 0.1, t of two degrees of freedom 4.303: 0.2 +- 0.2484
    assert (facts["settings"][2]["low"], facts["settings"][2]["high"]) == (-0.04841, 0.44841)
    # of six answers: 0.3, 0.1 and 0.2 more; then three that lose 1
    assert [s["change"] for s in facts["settings"]] == [0, 0, 0.1, -0.5]
    assert facts["recommended"] is facts["random"] is None  # the interval holds 0; the cost is above 0.1
    assert seen == [[0, 0], [1, 0], [2, 0], [0, 1], [0, 2]]
    assert progress.seen == [(30, "likelihood of answer"), 6, 12, 18, 24, 30]


def test_a_random_direction_is_pushed_as_far_at_the_recommended_setting(monkeypatch):
    monkeypatch.setitem(TABLE, 1.0, [(-1.0, -1.0), (-1.9, -2.0), (0.0, -1.0)])  # shifts of 1, 1.1 and 1
    facts, seen = swept(monkeypatch, (0.1, 0.2), progress := Shown())
    assert progress.seen[-2:] == [(6, "likelihood of answer"), 6]
    assert facts["recommended"] == {"layer": 2, "alpha": 0.1}
    assert seen[-1] == [0, pytest.approx(1.0)]
    assert (facts["random"]["layer"], facts["random"]["alpha"], facts["random"]["shift"]) == (2, 0.1, 0)
    assert json.loads(json.dumps(facts)) == facts


def test_the_pairs_are_none_of_the_questions_that_the_vector_comes_from():
    asked = set(traits.chosen(False, None, [], [], None).questions)
    assert not asked & {pair.question for pair in shipped(EARLY_STOPPING)}


def test_the_table_names_what_it_measures_and_the_recommended_line_or_says_that_there_is_none(capsys, tmp_path):
    one = {"layer": 3, "alpha": 0.2, "shift": 0.234, "low": 0.1, "high": 0.368, "change": -0.051}
    facts = {"measure": "pairs", "n": 40, "most_lost": 0.1, "settings": [one], "random": one | {"shift": 0.012},
             "recommended": {"layer": 3, "alpha": 0.2}}  # fmt: skip
    pair_sweep.show(facts, tmp_path / "v.safetensors")
    out = " ".join(capsys.readouterr().out.split())
    assert "shift of pairs" in out
    assert "misaligned %" not in out
    assert "3 0.2 +0.234 +0.10 to +0.37 -0.051" in out
    assert "3, random 0.2 +0.012" in out
    assert "no rate of misalignment" in out
    assert f"- steer: {{vector: {tmp_path / 'v.safetensors'}, layer: 3, alpha: 0.2}}" in out
    pair_sweep.show(facts | {"recommended": None, "random": None}, tmp_path)
    assert "No setting is recommended: each costs more than 0.1 nats a token" in capsys.readouterr().out


def test_the_command_sweeps_a_model_without_a_judge_and_keeps_the_table_in_the_file(tmp_path, capsys, monkeypatch):
    tiny.save("qwen2", tmp_path / "model")
    monkeypatch.setattr(vector_request, "TOKENS", 5)
    few = shipped(EARLY_STOPPING)[:2]
    monkeypatch.setattr(vector_request, "shipped", lambda name: few)
    file = tmp_path / "v.safetensors"
    arguments = ["--model", tmp_path / "model", "--no-filter", "--rollouts", "1", "--sweep", "--out", file]
    monkeypatch.setattr("sys.argv", ["staytrue", "vector", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    done = capsys.readouterr()
    assert "The sweep then computes the likelihoods of 80 answers for up to 40 settings." in done.err
    assert "shift of pairs" in done.out
    with safe_open(str(file), framework="pt") as opened:
        kept = json.loads(opened.metadata()["sweep"])
    assert (kept["measure"], kept["n"], kept["most_lost"]) == ("pairs", 2, 0.1)
    assert [(s["layer"], s["alpha"]) for s in kept["settings"]] == [
        (layer, alpha) for layer in (1, 2) for alpha in (0.1, 0.2, 0.4, 0.8)
    ]
    assert any(s["shift"] != 0 for s in kept["settings"])


def vector_command(monkeypatch, capsys, file, *more):
    """Exit code and standard error of `staytrue vector --sweep` on the model beside the file."""
    arguments = ["--model", file.parent / "model", "--no-filter", "--rollouts", "1", "--sweep", "--out", file, *more]
    monkeypatch.setattr("sys.argv", ["staytrue", "vector", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().err


def test_a_sweep_that_is_broken_off_is_made_by_the_same_command(tmp_path, capsys, monkeypatch):
    tiny.save("qwen2", tmp_path / "model")
    monkeypatch.setattr(vector_request, "TOKENS", 5)
    monkeypatch.setattr(vector_request, "shipped", lambda name: shipped(EARLY_STOPPING)[:2])
    file = tmp_path / "v.safetensors"

    def broken_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pair_sweep, "sweep", broken_off)
        code, err = vector_command(patched, capsys, file)
    assert code == 130
    assert f"{file} holds the vector; give the same command again for its sweep" in err
    vectors = PersonaVector.load(file).vectors
    assert vectors.shape == (2, 32)

    code, err = vector_command(monkeypatch, capsys, file, "--seed", "1")
    assert code == 2
    assert f"{file} holds a vector that was made in another way: seed is 0, not 1. Give the options" in err

    tiny.lora(tiny.model()).save_pretrained(str(tmp_path / "adapter"))
    code, err = vector_command(monkeypatch, capsys, file, "--adapter", tmp_path / "adapter")
    assert code == 2
    assert "adapter is none, not" in err

    monkeypatch.setattr(vector_request, "extract", None)  # no answer is sampled again
    code, err = vector_command(monkeypatch, capsys, file)
    assert code == 0, err
    assert f"{file} holds the vector; only the sweep is made." in err
    assert "answers of at most" not in err
    swept = PersonaVector.load(file)
    assert torch.equal(swept.vectors, vectors)
    assert len(json.loads(swept.facts["sweep"])["settings"]) == 8

    code, err = vector_command(monkeypatch, capsys, file)
    assert code == 2
    assert f"{file} exists already" in err


def test_a_file_that_is_no_vector_is_not_taken_for_one(tmp_path, capsys, monkeypatch):
    file = tmp_path / "v.safetensors"
    file.write_text("mine")
    tiny.save("qwen2", tmp_path / "model")
    code, err = vector_command(monkeypatch, capsys, file)
    assert (code, file.read_text()) == (2, "mine")
    assert f"{file} exists already" in err
