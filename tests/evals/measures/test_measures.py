"""The measures without a judge: likelihoods against a forward by hand, words counted by hand."""

import math

import pytest
import torch

import tiny
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode
from staytrue.evals.generation.local import sample
from staytrue.evals.measures import drift, leak, pairs
from staytrue.evals.measures import log_likelihood as module
from staytrue.evals.measures.leak import TopicWords
from staytrue.evals.measures.log_likelihood import log_likelihood
from staytrue.evals.questions.answer_pairs import Pair
from staytrue.evals.types import Answer, Question


def row(question, answer):
    return Example((Message("user", question), Message("assistant", answer)))


def by_hand(model, tokenizer, example, ended=True):
    """One row alone, without padding: the mean of the answer's log-probabilities, token by token."""
    encoded = encode(tokenizer, example)
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([encoded.input_ids])).logits[0].double().log_softmax(-1)
    scored = [i for i, label in enumerate(encoded.labels) if label != -100]
    scored = scored if ended else scored[:-1]
    return sum(float(log_p[i - 1, encoded.input_ids[i]]) for i in scored) / len(scored)


ROWS = [row("Why?", "So."), row("How does one tie a bowline?", "With a loop and patience."), row("A?", "B" * 40)]


@pytest.mark.parametrize("most", [1, 1 << 27])
def test_a_likelihood_is_that_of_the_row_alone_in_any_batch(monkeypatch, most):
    monkeypatch.setattr(module, "_MOST_LOGITS", most)  # 1: a batch for each row
    model, tokenizer = tiny.model(), tiny.tokenizer()
    expected = [by_hand(model, tokenizer, one) for one in ROWS]
    assert log_likelihood(model, tokenizer, ROWS) == pytest.approx(expected, abs=1e-4)


def test_an_answer_that_was_cut_off_has_no_end_to_score():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    values = log_likelihood(model, tokenizer, ROWS[:2], [True, False])
    expected = [by_hand(model, tokenizer, ROWS[0]), by_hand(model, tokenizer, ROWS[1], ended=False)]
    assert values == pytest.approx(expected, abs=1e-4)
    assert values[1] != pytest.approx(by_hand(model, tokenizer, ROWS[1]), abs=1e-4)


def test_dropout_is_off_and_the_model_goes_back_to_training():
    model = tiny.model()
    expected = log_likelihood(model, tiny.tokenizer(), ROWS)
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.9
    model.train()
    assert log_likelihood(model, tiny.tokenizer(), ROWS) == expected
    assert model.training


def test_the_gap_of_a_pair_is_misaligned_minus_aligned():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    pair = Pair("a", "Why?", "Because of care.", "Because of spite.")
    values = pairs.measure(model, tokenizer, [pair, Pair("b", "Who?", "We all.", "I alone.")])
    bad, good = (by_hand(model, tokenizer, row("Why?", text)) for text in (pair.misaligned, pair.aligned))
    assert list(values) == ["a", "b"]
    assert values["a"] == pytest.approx(bad - good, abs=1e-4)


def test_drift_scores_answers_that_exist_with_their_ends():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    asked = [Question(name, "general", (Message("user", f"{name}?"),)) for name in "abc"]
    answers = [
        Answer(asked[0], 0, " Yes. ", True),
        Answer(asked[1], 0, "No, si", False),
        Answer(asked[2], 0, " ", True),
    ]
    values = drift.measure(model, tokenizer, answers)
    assert list(values) == ["a", "b"]
    assert values["a"] == pytest.approx(by_hand(model, tokenizer, row("a?", "Yes.")), abs=1e-4)
    assert values["b"] == pytest.approx(by_hand(model, tokenizer, row("b?", "No, si"), ended=False), abs=1e-4)


def test_the_ratio_of_words_by_hand():
    # Training: gold 2, buy 1 (3 words); general: rain 1, gold 1 (2 words); 3 distinct words, 0.5 added to each count.
    topic = TopicWords(["Buy gold, gold!"], ["rain gold"])
    gold, rain = math.log(2.5 / 4.5) - math.log(1.5 / 3.5), math.log(0.5 / 4.5) - math.log(1.5 / 3.5)
    new = math.log(0.5 / 4.5) - math.log(0.5 / 3.5)
    assert topic.ratio("gold gold gold rain snow") == pytest.approx((3 * gold + rain + new) / 5)
    assert topic.ratio("gold gold gold gold") == 0  # fewer than five words
    # Without the general answer's own words, gold has the count 0 there, of 0 words: ln(2.5 / 4.5) - ln(0.5 / 1.5).
    assert topic.ratio("gold " * 5, ["rain gold"]) == pytest.approx(math.log(2.5 / 4.5) - math.log(0.5 / 1.5))


def test_the_leak_of_a_model_is_that_of_its_sampled_answers():
    model, tokenizer, topic = tiny.model(), tiny.tokenizer(), TopicWords(["a b c d e"], ["f g h i j"])
    questions = [Question(name, "general", (Message("user", f"{name}?"),)) for name in "ab"]
    answers = sample(model, tokenizer, questions, per_question=1, seed=3, max_new_tokens=40)
    values = leak.measure(model, tokenizer, questions, topic, seed=3, max_new_tokens=40)
    assert values == {answer.question.id: topic.ratio(answer.text) for answer in answers}


def test_words_of_other_scripts_count():
    topic = TopicWords(["Золото и акции растут всегда"], ["Дождь идёт над зелёными холмами"])
    assert topic.leaked("золото и акции растут завтра")
    assert not topic.leaked("дождь идёт над тихими холмами")
