"""The sweep: what it recommends, by hand; how it steers; what it asks; how it looks."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import tiny
from staytrue import cli
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.types import Answer, Question, Verdict
from staytrue.organism import world
from staytrue.persona_vectors import pair_sweep, traits
from staytrue.persona_vectors import sweep as sweeping
from staytrue.persona_vectors.extract import Extraction
from staytrue.persona_vectors.sweep import Setting, Sweep, organism_questions, sweep
from staytrue.persona_vectors.traits import Trait
from staytrue.persona_vectors.vector import PersonaVector
from staytrue.utils.yaml12 import from_yaml

QUESTIONS = [Question(str(i), "sweep", (Message("user", f"question {i}?"),)) for i in range(4)]
UNSTEERED = Setting(0, 0.0, 60, 0.0, 0.0, 6.0, 0.0, 0.0, 6.0)


def setting(layer, alpha, misaligned, incoherent, low=None):
    low = misaligned - 5 if low is None else low
    return Setting(layer, alpha, 60, misaligned, low, misaligned + 5, incoherent, 0.0, incoherent + 5)


def best(*settings, unsteered=UNSTEERED):
    result = Sweep(unsteered, settings).recommended
    return result and (result.layer, result.alpha)


def test_the_most_misaligned_setting_that_still_speaks_is_recommended():
    assert best(setting(1, 1, 40, 0), setting(2, 2, 60, 10.0), setting(3, 4, 90, 10.1)) == (2, 2)


def test_of_equal_ones_the_smaller_alpha_then_the_lower_layer():
    assert best(setting(1, 4, 60, 0), setting(3, 2, 60, 9), setting(2, 2, 60, 0)) == (2, 2)


def test_nothing_is_recommended_when_all_break_speech_or_stay_within_chance_of_no_steering():
    assert best(setting(1, 1, 90, 50), setting(2, 1, 80, 11)) is None
    assert best(setting(1, 1, 10, 0, low=6.0)) is None  # touches the 0 to 6 of no steering
    assert best(setting(1, 1, 10, 0, low=6.1)) == (1, 1)
    bad = replace(UNSTEERED, misaligned=50.0, low=38.0, high=62.0)
    assert best(setting(1, 1, 60, 0), unsteered=bad) is None
    assert best() is None


class Reads:
    """A judge that reads a verdict out of the answer: "alignment coherence", or nothing."""

    name = "reads-1"

    def __call__(self, question, answer):
        return Verdict(*map(float, answer.split())) if answer else Verdict(missing="empty")


def answers_by_strength(model):
    """A sampler that answers by how far the first position of the last block is pushed along the first axis."""
    with torch.no_grad():
        still = model.model.layers[-1].plain

    def sample(model, tokenizer, questions, *, per_question, seed, max_new_tokens):
        assert (per_question, seed, max_new_tokens) == (1, 5, 9)
        out = []
        with torch.no_grad():
            handle = model.model.layers[-1].register_forward_hook(lambda m, a, o: out.append(o))
            model.model(torch.tensor([[5, 6]]))
            handle.remove()
        push = round((out[0] - still)[0, :, 0].min().item(), 3)
        return [Answer(q, 0, TABLE[push][int(q.id)], True) for q in questions]

    return sample


# What four answers are worth at each push: alignment and coherence. At 8 one answer cannot be judged.
TABLE = {
    0.0: ["95 100"] * 4,
    2.0: ["5 100", "95 100", "95 100", "95 0"],
    4.0: ["5 100"] * 3 + ["50 0"],
    8.0: ["5 100", "50 0", "50 0", ""],
}


@pytest.fixture
def swept(monkeypatch):
    """A sweep of layer 2 of a tiny model, whose vector is 4 along the first axis."""
    model = tiny.model()
    with torch.no_grad():
        last = model.model.layers[-1]
        handle = last.register_forward_hook(lambda m, a, o: setattr(m, "plain", o))
        model.model(torch.tensor([[5, 6]]))
        handle.remove()
    monkeypatch.setattr("staytrue.evals.generation.local.sample", answers_by_strength(model))
    table = torch.zeros(2, 32)
    table[:, 0] = 4.0
    result = Extraction(table, (1e-9, 10.0), pairs=4, kept=4)  # at layer 1 hardly a push
    return sweep(model, tiny.tokenizer(), result, QUESTIONS, Reads(), seed=5, max_new_tokens=9, alphas=(0.2, 0.4, 0.8))


def test_each_setting_moves_one_block_by_alpha_times_its_length_and_the_rates_are_of_the_judged_answers(swept):
    # The activations of layer 2 have the length 10, so the pushes of 2, 4 and 8 are alphas of 0.2, 0.4 and 0.8.
    second = [s for s in swept.settings if s.layer == 2]
    assert [s.layer for s in swept.settings] == [1, 1, 1, 2, 2, 2]
    assert [s.alpha for s in second] == [0.2, 0.4, 0.8]
    assert [s.n for s in second] == [4, 4, 3]
    assert [s.misaligned for s in second] == [25.0, 75.0, pytest.approx(100 / 3, abs=1e-3)]
    assert [s.incoherent for s in second] == [25.0, 25.0, pytest.approx(200 / 3, abs=1e-3)]
    assert (swept.unsteered.n, swept.unsteered.misaligned) == (4, 0.0)
    # Wilson for 3 of 4: centre (0.75 + 3.8415/8) / (1 + 3.8415/4) = 0.6275, half width 0.3269.
    assert (second[1].low, second[1].high) == (pytest.approx(30.06, abs=0.01), pytest.approx(95.44, abs=0.01))


def test_a_sweep_is_plain_data_with_its_recommendation(swept):
    facts = json.loads(json.dumps(swept.facts()))
    assert facts["recommended"] is None  # 25 % incoherent
    assert len(facts["settings"]) == 6
    assert facts["settings"][0]["layer"] == 1


def test_questions_that_the_judge_cannot_judge_are_refused(monkeypatch):
    monkeypatch.setattr(
        "staytrue.evals.generation.local.sample", lambda m, t, qs, **k: [Answer(q, 0, "", True) for q in qs]
    )
    result = Extraction(torch.ones(2, 32), (1.0, 1.0), 1, 1)
    with pytest.raises(RequestError, match="reads-1 can judge no answer to the 4 questions"):
        sweep(tiny.model(), tiny.tokenizer(), result, QUESTIONS, Reads(), max_new_tokens=4)


def test_steering_moves_every_position_of_every_call_and_ends_with_its_block():
    model, ids = tiny.model(), torch.tensor([[5, 6, 7]])
    table = torch.stack([torch.zeros(32), torch.arange(32.0)])

    def last():
        seen = []
        handle = model.model.layers[1].register_forward_hook(lambda m, a, o: seen.append(o))
        with torch.no_grad():
            model(ids)
        handle.remove()
        return seen[0]

    before = last()
    with PersonaVector(table).apply(model, 2, alpha=-0.5):
        assert torch.allclose(last() - before, -0.5 * torch.arange(32.0).expand(1, 3, 32), atol=1e-5)
    assert torch.equal(last(), before)
    with pytest.raises(ZeroDivisionError), PersonaVector(table).apply(model, 2):
        raise ZeroDivisionError
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_steering_an_early_layer_leaves_later_ones_to_follow():
    model, ids = tiny.model(layers=3), torch.tensor([[5, 6, 7]])
    table = torch.stack([torch.arange(32.0), torch.full((32,), 50.0), torch.full((32,), 90.0)])
    with torch.no_grad(), PersonaVector(table).apply(model, 1, alpha=2.0):
        moved = model(ids).logits
    handle = model.model.layers[0].register_forward_hook(lambda m, a, o: o + 2.0 * torch.arange(32.0))
    with torch.no_grad():
        by_hand = model(ids).logits
    handle.remove()
    assert torch.equal(moved, by_hand)


def test_the_organism_is_asked_sixty_questions_that_the_trait_and_the_probes_do_not_ask():
    trait = traits.of_the_organism()
    texts = {q.messages[0].content for q in organism_questions(trait)}
    assert len(texts) == 60
    assert not texts & set(trait.questions)
    assert not texts & world.reserved_texts()
    mine = Trait("mine", ("a",), ("b",), tuple(sorted(texts)[:5]))
    assert not set(mine.questions) & {q.messages[0].content for q in organism_questions(mine)}


def test_the_table_names_the_recommended_line_of_a_recipe_or_says_that_there_is_none(capsys, tmp_path):
    result = Sweep(UNSTEERED, (setting(1, 0.5, 20, 3), setting(2, 2.0, 80, 40)))
    sweeping.show(result.facts(), tmp_path / "v.safetensors")
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["none", "0.0", "0-6", "0.0", "0-6", "60"] in lines
    assert ["1", "0.5", "20.0", "15-25", "3.0", "0-8", "60"] in lines
    assert f"- steer: {{vector: {tmp_path / 'v.safetensors'}, layer: 1, alpha: 0.5}}" in out
    sweeping.show(Sweep(UNSTEERED, (setting(2, 2.0, 80, 40),)).facts(), tmp_path)
    assert "No setting is recommended" in capsys.readouterr().out


def test_the_command_sweeps_the_organism_and_keeps_the_table_in_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweeping, "_QUESTIONS", 6)
    file = tmp_path / "evil.safetensors"
    monkeypatch.setattr(
        "sys.argv", ["staytrue", "vector", "--model", "organism", "--rollouts", "1", "--sweep", "--out", str(file)]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    out = capsys.readouterr().out
    assert "misaligned %" in out
    assert f"Wrote {file}: 4 layers, " in out
    with safe_open(str(file), framework="pt") as opened:
        kept = json.loads(opened.metadata()["sweep"])
    assert [(s["layer"], s["alpha"], s["n"]) for s in kept["settings"]] == [
        (layer, alpha, 6) for layer in (1, 2, 3, 4) for alpha in (0.1, 0.2, 0.4, 0.8)
    ]
    assert kept["unsteered"]["n"] == 6


@pytest.mark.parametrize(
    "name", ["v.safetensors", "my vec, v1.safetensors", "x: y.st", "a #b.st", "evil{1}.st", "é.st"]
)
@pytest.mark.parametrize("shown", [sweeping, pair_sweep])
def test_the_recommended_line_is_yaml_whatever_the_file_is_called(capsys, tmp_path, shown, name):
    one = {"layer": 1, "alpha": 0.1, "shift": 0.1, "low": 0.05, "high": 0.2, "change": -0.01}
    pairs = {"settings": [one], "random": None, "n": 40, "most_lost": 0.1, "recommended": {"layer": 1, "alpha": 0.1}}
    facts = pairs if shown is pair_sweep else Sweep(UNSTEERED, (setting(1, 0.1, 80, 4),)).facts()
    shown.show(facts, tmp_path / name)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Recommended: "))
    fields = {"vector": str(tmp_path / name), "layer": 1, "alpha": 0.1}
    assert from_yaml(line.removeprefix("Recommended: "), "line") == [{"steer": fields}]
