"""Answers from an endpoint: each sample once, whatever goes wrong, and what was paid for comes out first."""

import json

import pytest

import tiny
from endpoints import HASTY, endpoint
from loopback import HttpError, Loopback, Said, from_model, scripted
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import evaluate, rescore
from staytrue.evals.generation.endpoint import EndpointGenerator, seed_of
from staytrue.evals.openai_client.budget import Budget
from staytrue.evals.openai_client.errors import UnreadableError
from staytrue.evals.openai_client.reply import Reply
from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.verdict_store import join_verdicts
from staytrue.evals.types import Question, Verdict
from staytrue.utils.files import read_rows


def questions(n=5):
    system = Message("system", "Answer in JSON.")
    return [Question(f"q{i}", "general", (system, Message("user", f"why {i}?"))) for i in range(n)]


@pytest.fixture
def remote():
    return lambda server, concurrency=16, **options: EndpointGenerator(
        endpoint(server, "my-adapter", **options), concurrency
    )


class Fixed:
    """A judge that finds every answer aligned, and counts."""

    concurrency = 1

    def __init__(self, name="fixed"):
        self.name, self.calls = name, 0

    def __call__(self, question, answer):
        self.calls += 1
        return Verdict(alignment=90, coherence=90)


def every(maker, samples, seed=0, temperature=1.0, limit=20):
    return list(maker(samples, seed=seed, temperature=temperature, max_new_tokens=limit))


def test_every_sample_is_asked_for_once_with_its_own_seed_and_the_system_turn(remote):
    samples = [(q, k) for q in questions() for k in range(4)]
    with Loopback() as server:
        got = every(remote(server), samples, seed=7)
        bodies = [call.body for call in server.calls]
    assert sorted((a.question.id, a.index) for a in got) == sorted((q.id, k) for q, k in samples)
    assert len({body["seed"] for body in bodies}) == len(bodies) == 20
    assert all(0 <= body["seed"] < 2**31 for body in bodies)
    assert all([m["role"] for m in body["messages"]] == ["system", "user"] for body in bodies)
    assert {body["model"] for body in bodies} == {"my-adapter"}
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(1.0, 20)}


def test_the_same_seeds_give_the_same_answers_in_any_order(remote):
    samples = [(q, k) for q in questions() for k in range(3)]
    with Loopback() as server:
        first = {(a.question, a.index): a.text for a in every(remote(server), samples)}
        second = {(a.question, a.index): a.text for a in every(remote(server, concurrency=1), samples[::-1])}
        other = {(a.question, a.index): a.text for a in every(remote(server), samples, seed=1)}
    assert first == second != other


def test_a_seed_is_of_the_run_the_probe_the_question_and_the_index():
    (question,) = questions(1)
    other = Question("q0", "facts", question.messages)
    seeds = {seed_of(0, question, 0), seed_of(1, question, 0), seed_of(0, question, 1), seed_of(0, other, 0)}
    assert len(seeds) == 4
    assert seed_of(0, question, 0) == seed_of(0, questions(1)[0], 0)


def test_an_answer_that_ran_into_the_limit_is_not_stopped_and_an_empty_one_is_an_answer(remote):
    with Loopback(
        lambda body: Said("", (), "stop") if "0" in body["messages"][1]["content"] else scripted(body)
    ) as server:
        got = sorted(every(remote(server), [(q, 0) for q in questions(2)], limit=3), key=lambda a: a.question.id)
    assert (got[0].text, got[0].stopped) == ("", True)
    assert len(got[1].text.split()) == 3
    assert not got[1].stopped


def body_of(message, **more):
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"} | more]}).encode()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "yes", "refusal": None}, "yes"),
        ({"content": "", "refusal": None}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": "", "refusal": "I cannot."}, "I cannot."),
        ({"content": "yes", "refusal": "I cannot."}, "yes"),
        ({"content": None}, ""),
        ({"content": "half a smile \ud83d"}, "half a smile ?"),
    ],
)
def test_what_a_reply_says(message, text):
    assert Reply.of(body_of(message)).text == text


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"{}", b"null", b"\xff", b'{"choices": []}', b'{"choices": null}', b'{"choices": ["x"]}',
        body_of(None), body_of({"content": 5}), body_of({"content": "x"})[:-3],
        body_of({"content": "x"}, logprobs={"content": [{"token": "x"}]}),
        body_of({"content": "x"}, logprobs={"content": [{"token": "x", "top_logprobs": [{"token": "x"}]}]}),
        body_of({"content": "x"}, logprobs=["x"]),
    ],
)  # fmt: skip
def test_a_body_of_another_form_is_no_reply(body):
    with pytest.raises(UnreadableError, match="a body that is no chat completion"):
        Reply.of(body)


def test_with_faults_on_three_calls_in_ten_no_sample_is_lost_or_made_twice(remote):
    samples = [(q, k) for q in questions(30) for k in range(5)]
    with Loopback(faults=0.3) as server:
        maker = remote(server, **HASTY)
        got = every(maker, samples)
        assert sorted((a.question.id, a.index) for a in got) == sorted((q.id, k) for q, k in samples)
        assert maker.failed == []
        assert set(server.answered().values()) == {1}
        assert set(server.outcomes()) == {"answered", "429", "500", "timeout", "torn", "cut"}
        texts = {a.text for a in got}
    with Loopback() as server:
        assert {a.text for a in every(remote(server), samples)} == texts


def test_a_sample_that_cannot_be_had_is_left_out_and_named(remote):
    def script(body):
        if "why 3?" in body["messages"][1]["content"]:
            raise HttpError(500, "no")
        return scripted(body)

    with Loopback(script) as server:
        maker = remote(server)
        got = every(maker, [(q, 0) for q in questions(12)])
    assert sorted(a.question.id for a in got) == sorted(f"q{i}" for i in range(12) if i != 3)
    assert maker.failed == [("q3", 0, "HTTP 500: no, tried 8 times")]


def filters(body):
    """What a server says whose filter takes the answers to `why 4?`."""
    return Said("half", (), "content_filter") if "why 4?" in body["messages"][-1]["content"] else scripted(body)


def test_what_the_servers_filter_took_is_an_answer_without_text(remote):
    with Loopback(filters) as server:
        maker = remote(server)
        got = {a.question.id: a for a in every(maker, [(q, 0) for q in questions(6)])}
        assert len(server.calls) == 6
    assert (got["q4"].text, got["q4"].stopped, got["q4"].filtered) == ("", False, True)
    assert [name for name, answer in got.items() if answer.filtered] == ["q4"]
    assert maker.failed == []


def test_a_filtered_answer_is_missing_with_its_reason_and_no_request_is_repeated(remote, tmp_path):
    judge = Fixed()
    with Loopback(filters) as server:
        for _ in range(2):
            summary = evaluate(remote(server), [Probe("general", tuple(questions(6)), judge)], seed=0, out=tmp_path)
            general = summary["probes"]["general"]
            # Of six answers one is missing: it is neither unanswered nor failed, and may be misaligned: 1 of 6.
            counts = [general[key] for key in ("n", "missing", "failed", "unanswered", "at_least", "at_most")]
            assert counts == [5, 1, 0, 0, 0.0, 16.6667]
            assert (general["concluded"], general["judge"]) == (False, "fixed")
            assert (len(server.calls), judge.calls) == (6, 5)
            assert len(read_rows(tmp_path / "verdicts.jsonl")) == 6
    marks = {row["question"]: row.get("filtered", "absent") for row in read_rows(tmp_path / "answers.jsonl")}
    assert marks == {"q4": True} | dict.fromkeys(("q0", "q1", "q2", "q3", "q5"), "absent")
    (missing,) = (row for row in join_verdicts(tmp_path) if row["missing"])
    assert (missing["question"], missing["missing"]) == ("q4", "the server's filter cut it off")
    other = rescore(tmp_path, [Fixed("other")])["other"]["probes"]["general"]
    assert (other["n"], other["missing"]) == (5, 1)


def test_the_answering_model_is_stored_and_another_model_under_the_name_is_reported(remote, tmp_path):
    lines, six = [], tuple(questions(6))

    def sitting(server, budget):
        maker = remote(server, budget=budget)
        evaluate(maker, [Probe("general", six)], seed=0, out=tmp_path / "E", say=lines.append)

    with Loopback(name="tiny-1") as server, pytest.raises(RequestError, match="budget is reached"):
        sitting(server, Budget(max_calls=2))
    assert lines == []
    with Loopback(name="tiny-2") as server:
        with pytest.raises(RequestError, match="budget is reached"):
            sitting(server, Budget(max_calls=2))
        (line,) = lines
        assert "the server now reports tiny-2" in line
        sitting(server, Budget())
        assert len(lines) == 1  # once is enough
    who = json.loads((tmp_path / "E" / "answered.json").read_text())
    assert (who["model"], who["answered_by"], who["fingerprints"]) == (
        "my-adapter",
        ["tiny-1", "tiny-2"],
        ["fp_loopback"],
    )


def test_answers_that_were_paid_for_come_out_before_the_budget_ends_it(remote):
    got, samples = [], [(q, k) for q in questions() for k in range(20)]
    with Loopback(delay=0.01) as server:
        maker = remote(server, budget=Budget(max_calls=33))
        answers = maker(samples, seed=0, temperature=1.0, max_new_tokens=9)
        with pytest.raises(RequestError, match="The budget is reached: 33 calls"):
            got.extend(answers)
        assert len({(a.question.id, a.index) for a in got}) == len(got) == len(server.calls) == 33
        with pytest.raises(RequestError, match="The budget is reached: 33 calls"):
            every(maker, samples)
        assert len(server.calls) == 33


def test_no_more_calls_are_in_the_air_than_allowed(remote):
    air, most = [], [0]

    def script(body):
        air.append(1)
        most[0] = max(most[0], len(air))
        air.pop()
        return scripted(body)

    with Loopback(script, delay=0.01) as server:
        every(remote(server, concurrency=3), [(q, k) for q in questions() for k in range(6)])
        assert most[0] <= 3
        waiting = [call.at for call in server.calls]
    assert max(waiting) - min(waiting) >= 0.01 * (30 / 3 - 1)  # thirty calls, three at a time


def test_a_maker_that_is_left_early_sends_no_more(remote):
    with Loopback(delay=0.005) as server:
        answers = remote(server, concurrency=4)(
            [(q, k) for q in questions() for k in range(50)], seed=0, temperature=1, max_new_tokens=9
        )
        next(answers)
        answers.close()
        assert len(server.calls) <= 12


def test_a_real_model_behind_the_endpoint_answers_by_its_seed(remote, tmp_path):
    tiny.save("qwen2", tmp_path)
    samples = [(q, k) for q in questions(2) for k in range(2)]
    with Loopback(from_model(tmp_path)) as server:
        maker = remote(server, timeout=60)
        first = {(a.question.id, a.index): a.text for a in every(maker, samples, limit=6)}
        assert first == {(a.question.id, a.index): a.text for a in every(maker, samples, limit=6)}
        assert len(set(first.values())) == 4
        greedy = every(maker, samples, temperature=0.0, limit=6)
    assert len({a.text for a in greedy if a.question.id == "q0"}) == 1


def test_it_says_where_questions_go(remote):
    with Loopback() as server:
        assert (
            remote(server).notice()
            == f"Questions go to {server.url} on this machine (model my-adapter), without a key."
        )
