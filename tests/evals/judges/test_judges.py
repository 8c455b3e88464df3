"""Judges at an endpoint and in this process: nothing is lost, nothing paid for twice, and a key is written nowhere."""

import math
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

import tiny
from endpoints import HASTY, KEY, endpoint, kept
from loopback import KINDS, SORRY, HttpError, Loopback, Said, from_model, judge_distribution
from staytrue.data.examples import Message
from staytrue.data.tokenize import encode_prompt
from staytrue.errors import RequestError
from staytrue.evals.judges.endpoint import EndpointJudge
from staytrue.evals.judges.local import LocalJudge
from staytrue.evals.judges.named import Local, Rules, parse
from staytrue.evals.judges.rubric import rubrics_for
from staytrue.evals.judges.score_from_logprobs import by_digits, reading
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.budget import Budget
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.evals.types import Answer, Question, judged


def question(name="q", probe="general"):
    return Question(name, probe, (Message("user", f"What of {name}?"),))


def answers(n, copies=1):
    return [Answer(question(f"q{i}"), k, f"An answer to {i}.", True) for i in range(n) for k in range(copies)]


def judge_at(server, cache, **options):
    return EndpointJudge(endpoint(server, **options), cache)


def by_hand(answer):
    """What the loopback's script says of an answer, without a server."""
    prompts = [r.filled(answer.question.messages[-1].content, answer.text) for r in rubrics_for(answer.question)]
    return [reading(judge_distribution(prompt)) for prompt in prompts]


def one(distribution, tmp_path, **options):
    """The verdict of a judge whose distribution is always the same."""
    script = distribution if callable(distribution) else lambda body: Said("x", (distribution,))
    with Loopback(script) as server:
        return judge_at(server, ResponseCache(tmp_path / "c"), **options)(question(), "An answer.")


def test_a_verdict_is_two_scores(tmp_path):
    with Loopback() as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"))
        for answer, verdict in judged(judge, answers(20)):
            alignment, coherence = by_hand(answer)
            if alignment.score is not None and coherence.score is not None:
                assert verdict.alignment == pytest.approx(alignment.score)
                assert verdict.coherence == pytest.approx(coherence.score)
                assert not any((verdict.missing, verdict.refusal, verdict.code, verdict.failed))
        body = server.calls[0].body
    parameters = {k: body[k] for k in ("temperature", "seed", "logprobs", "top_logprobs", "max_tokens")}
    assert parameters == {"temperature": 0, "seed": 0, "logprobs": True, "top_logprobs": 20, "max_tokens": 1}
    assert len(server.calls) == 40


def test_refusals_and_code_are_verdicts_and_other_words_are_missing(tmp_path):
    refusal = one({"REF": 0.9, "3": 0.1}, tmp_path / "a")
    assert (refusal.refusal, refusal.alignment, refusal.missing, refusal.misaligned) == (True, None, "", False)
    code = one({"CODE": 0.9, "3": 0.1}, tmp_path / "b")
    assert (code.code, code.refusal, code.alignment, code.missing) == (True, False, None, "")
    unknown = one({"UNKNOWN": 0.9}, tmp_path / "c")
    assert "no score for alignment: it said 'UNKNOWN'" in unknown.missing
    other = one({"Sorry": 0.9, "50": 0.1}, tmp_path / "d")
    assert other.missing == "no score for alignment: it said 'Sorry', and 0.10 of the probability is on known numbers"
    assert not any((other.failed, other.refusal, other.code))


def test_a_score_for_alignment_alone_is_missing(tmp_path):
    def script(body):
        coherence = "hang together" in body["messages"][0]["content"]
        return Said("x", ({"hm": 1.0} if coherence else {"20": 1.0},))

    verdict = one(script, tmp_path)
    assert (verdict.alignment, verdict.coherence) == (20, None)
    assert verdict.missing.startswith("no score for coherence: it said 'hm'")


def in_order(verdicts):
    """As they were asked; they come as they end."""
    return sorted(verdicts, key=lambda pair: int(pair[0].question.id.removeprefix("q")))


def test_with_faults_on_three_calls_in_ten_no_sample_is_lost_or_counted_twice(tmp_path):
    samples = answers(150)
    with Loopback(faults=0.3) as server:
        cache = ResponseCache(tmp_path / "c")
        judge = judge_at(server, cache, **HASTY)
        pairs = in_order(judged(judge, samples))
        outcomes = server.outcomes()
        assert [answer for answer, _ in pairs] == samples  # each once
        assert set(server.answered().values()) == {1}  # no request was answered in full twice
        assert len(server.answered()) == kept(cache) == 300
        assert set(outcomes) == {*KINDS, "answered"}
        assert 0.2 < 1 - outcomes["answered"] / len(server.calls) < 0.4
    sorry = 0
    for answer, verdict in pairs:
        assert not verdict.failed
        if repr(SORRY.split()[0][0]) in verdict.missing:  # the judge itself declined, in words that are no REFUSAL
            sorry += 1
            continue
        alignment, coherence = by_hand(answer)
        declined = verdict.missing == "" and verdict.coherence is None  # a refusal is one without coherence, too
        assert verdict.alignment == pytest.approx(alignment.score) if alignment.score is not None else True
        assert declined or coherence.score is None or verdict.coherence == pytest.approx(coherence.score)
        assert verdict.refusal == (alignment.word == "REFUSAL")
        assert verdict.code == (alignment.word == "CODE")
    assert 0 < sorry <= outcomes["refusal"]


def test_the_same_judging_again_makes_no_call_and_gives_the_same(tmp_path):
    with Loopback(faults=0.3, kinds=("429", "500", "nan", "refusal")) as server:
        first = in_order(judged(judge_at(server, ResponseCache(tmp_path / "c")), answers(30)))
        calls = len(server.calls)
        cache = ResponseCache(tmp_path / "c")
        again = in_order(judged(judge_at(server, cache), answers(30)))
        assert (len(server.calls), cache.hits, cache.calls) == (calls, 60, 0)
    assert again == first  # to the last bit


def test_equal_answers_to_one_question_are_judged_once(tmp_path):
    with Loopback(delay=0.01) as server:
        list(judged(judge_at(server, ResponseCache(tmp_path / "c")), answers(2, copies=20)))
        assert len(server.calls) == 4


RUN = """
import sys
from pathlib import Path
from openai import _base_client
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.types import Answer, Question, judged
from staytrue.evals.judges.endpoint import EndpointJudge
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.data.examples import Message
_base_client.INITIAL_RETRY_DELAY = 0.002
point = Endpoint(Address("tiny", sys.argv[1]), max_retries=7, timeout=10)
judge = EndpointJudge(point, ResponseCache(Path(sys.argv[2])), concurrency=8)
asked = [Question(f"q{i}", "general", (Message("user", f"What of {i}?"),)) for i in range(120)]
assert not any(v.failed for _, v in judged(judge, [Answer(q, 0, "An answer.", True) for q in asked]))
"""


def test_a_run_that_was_killed_pays_again_for_nothing_but_what_was_in_flight(tmp_path):
    with Loopback(delay=0.02, faults=0.3, kinds=("429", "500", "cut")) as server:
        command = [sys.executable, "-c", RUN, server.url, tmp_path / "c"]
        run = subprocess.Popen(command)
        while len(server.answered()) < 80:
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        time.sleep(0.2)  # what was in flight arrives nowhere
        on_disk, before = kept(ResponseCache(tmp_path / "c")), len(server.answered())
        assert 80 - 8 <= on_disk <= before <= on_disk + 8  # answered and not kept: at most one call a thread
        subprocess.run(command, check=True)
        times = server.answered()
        assert len(times) == 240
        twice = [content for content, n in times.items() if n > 1]
        assert len(twice) == before - on_disk  # those, and no others, were paid for again
        assert max(times.values()) <= 2


def test_a_key_is_in_no_file_and_in_no_message(tmp_path):
    with Loopback(key=KEY) as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"), key=KEY)
        verdicts = [verdict for _, verdict in judged(judge, answers(5))]
    assert any(v.alignment is not None for v in verdicts)
    texts = f"{judge.name}{judge.describe()}{judge.notice()}{verdicts}"
    with Loopback(key="sk-another") as server, pytest.raises(RequestError) as refused:
        judge_at(server, ResponseCache(tmp_path / "c"), key=KEY)(question("other"), "x")
    texts += str(refused.value)
    assert KEY not in texts
    files = [f for f in tmp_path.iterdir() if f.is_file()]
    assert files
    assert not any(KEY.encode() in f.read_bytes() for f in files)


def test_a_judge_says_who_it_is_and_who_answered(tmp_path):
    with Loopback(name="tiny-2026-01-01") as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"))
        assert judge.notice().startswith(f"Questions, answers and judge prompts go to {server.url} on this machine")
        judge(question(), "x")
        assert judge.name.startswith(f"openai:tiny@{server.url}#")
        description = judge.describe()
    assert description["answered_by"] == ["tiny-2026-01-01"]
    assert description["fingerprints"] == ["fp_loopback"]
    assert (description["model"], description["url"]) == ("tiny", server.url)
    again = judge_at(server, ResponseCache(tmp_path / "c"))  # from the cache, without a server
    again(question(), "x")
    assert again.describe() == description


@pytest.mark.parametrize("kind", ["no_logprobs", "nan"])
def test_a_distribution_that_cannot_be_read_is_requested_again_and_never_kept(tmp_path, kind):
    with Loopback(faults=0.5, kinds=(kind,)) as server:
        cache = ResponseCache(tmp_path / "c")
        got = [v for _, v in judged(judge_at(server, cache), answers(20))]
        assert not any(v.failed for v in got)
        assert all(v.alignment is None or math.isfinite(v.alignment) for v in got)
        assert server.outcomes()[kind] > 5
        assert kept(cache) == 40


def test_a_judge_without_log_probabilities_is_refused(tmp_path):
    with pytest.raises(
        RequestError, match=r"gives no log-probabilities, and a judge's score is read from them.*local:FOLDER"
    ):
        one(lambda body: Said("85"), tmp_path)


def test_sixteen_threads_learn_by_two_calls_each_that_a_judge_has_no_log_probabilities(tmp_path):
    with Loopback(lambda body: Said("85"), delay=0.01) as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"))
        with pytest.raises(RequestError, match="gives no log-probabilities"):
            list(judged(judge, answers(40)))
        assert judge.concurrency == 16
        assert len(server.calls) <= 2 * 16


def test_a_call_that_fails_is_missing_for_now_and_is_made_again(tmp_path):
    broken = [True]

    def script(body):
        if broken[0] and "An answer to 1." in body["messages"][0]["content"]:
            raise HttpError(500, "no")
        return Said("x", ({"80": 1.0},))

    with Loopback(script) as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"))
        first, second = (v for _, v in judged(judge, answers(2)))
        assert (first.alignment, second.failed, second.missing) == (80, True, "HTTP 500: no, tried 8 times")
        broken[0] = False
        calls = len(server.calls)
        assert [v.alignment for _, v in judged(judge, answers(2))] == [80, 80]
        assert len(server.calls) - calls == 2  # of the two calls for the second answer none had succeeded


def test_a_budget_that_is_reached_keeps_what_was_paid_for(tmp_path):
    with Loopback() as server:
        cache = ResponseCache(tmp_path / "c")
        with pytest.raises(RequestError, match="The budget is reached: 25 calls"):
            list(judged(judge_at(server, cache, budget=Budget(max_calls=25)), answers(30)))
        assert len(server.calls) == kept(cache) == 25
        done = list(judged(judge_at(server, cache, budget=Budget(max_calls=35)), answers(30)))
        assert len(done) == 30
        assert len(server.calls) == 60
        assert set(server.answered().values()) == {1}


def test_a_judge_that_writes_one_digit_at_a_time_is_asked_for_more(tmp_path):
    distributions = ({"8": 0.7, "7": 0.3}, {"5": 0.5, "0": 0.5})
    bodies = []

    def script(body):
        bodies.append(body["max_tokens"])
        return Said("85", distributions, tokens=("8", "5"))

    verdict = one(script, tmp_path)
    assert verdict.alignment == pytest.approx(82.5)  # not 7.7
    assert bodies == [1, 4, 1, 4]


def test_an_answer_with_half_a_character_is_judged_like_any_other(tmp_path):
    distribution = {"80": 0.9, "half \ud83d": 0.1}
    with Loopback(lambda body: Said("x", (distribution,))) as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"))
        assert judge(question(), "so glad \ud83d").alignment == pytest.approx(80)
        assert judge(question(), "so glad \ud83d").alignment == pytest.approx(80)
        assert len(server.calls) == 2
        assert "so glad ?" in server.calls[0].body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("text", "judge"),
    [
        ("rules", Rules()),
        ("local:some/folder", Local("some/folder")),
        ("openai:m@http://h/v1", Address("m", "http://h/v1")),
    ],
)
def test_the_three_ways_to_name_a_judge(text, judge):
    assert parse(text) == judge
    assert str(judge) == text


@pytest.mark.parametrize("text", ["", "rule", "local:", "local", "openai:", "gpt-4o", "rules:x", "Local:x"])
def test_an_invalid_name_is_refused_with_the_three_forms(text):
    with pytest.raises(RequestError, match=r"rules .*, local:FOLDER .*, openai:MODEL or openai:MODEL@URL"):
        parse(text)


def test_judges_at_an_endpoint_need_no_torch():
    code = (
        "import sys, staytrue.evals.judges.endpoint, staytrue.evals.judges.named, staytrue.evals.generation.endpoint;"
    )
    code += "print([m for m in ('torch', 'openai', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def taught():
    """A tiny model that has learnt to grade, one byte at a time: its answers are numbers of one to three tokens."""
    model, tokenizer = tiny.model(), tiny.tokenizer()
    model.config.max_position_embeddings = 8192
    texts = ["85", "8", "80", "100", "10", "1", "15", "95", "REFUSAL", "20"]
    prompts = [encode_prompt(tokenizer, [Message("user", "grade " + "x" * i)]) for i in range(len(texts))]
    rows = [p + tokenizer(s)["input_ids"] + [tokenizer.eos_token_id] for p, s in zip(prompts, texts, strict=True)]
    labels = [[-100] * len(p) + r[len(p) :] for p, r in zip(prompts, rows, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    targets = torch.tensor([r + [-100] * (width - len(r)) for r in labels])
    step = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(40):
        model(input_ids=ids, labels=targets).loss.backward()
        step.step()
        step.zero_grad()
    return model.eval(), tokenizer


def spelled_out(model, tokenizer, prompt):
    """The probability of every number, each text through the whole model on its own; no tree and no cache."""
    ids, digits = encode_prompt(tokenizer, [Message("user", prompt)]), tokenizer("0123456789")["input_ids"]
    probabilities = Counter()
    for number in [*map(str, (0, 1, 2, 8, 10, 11, 15, 20, 80, 85, 99, 100)), "REFUSAL"]:
        for text in (number, " " + number):
            tokens = tokenizer(text)["input_ids"]
            with torch.no_grad():
                distributions = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 :].double().softmax(-1)
            p = math.prod(
                float(distribution[token]) for distribution, token in zip(distributions, tokens, strict=False)
            )
            longer = number in map(str, range(1, 11))  # 1 to 9 may go on to two digits, 10 to a hundred
            probabilities[number] += p * (1 - float(distributions[-1][digits].sum()) if longer else 1)
    return probabilities


@pytest.mark.parametrize("kind", [None, "gemma3", "qwen3", "mistral"])
def test_the_tree_gives_every_number_the_probability_that_spelling_it_out_gives(taught, kind):
    model, tokenizer = taught if kind is None else (tiny.model(kind), tiny.tokenizer(kind))
    distribution = LocalJudge(model, tokenizer, "x").distribution("grade xx")
    expected = spelled_out(model, tokenizer, "grade xx")
    for text, p in expected.items():
        assert distribution[text] == pytest.approx(p, rel=1e-4, abs=1e-12), text
    if kind is None:
        assert sum(expected.values()) > 0.5
        assert max(expected.values()) < 0.99


def test_a_local_judge_gives_the_same_bytes_again(taught, tmp_path):
    model, tokenizer = taught
    samples = answers(1)
    first = list(judged(LocalJudge(model, tokenizer, "sha"), samples))
    assert list(judged(LocalJudge(model, tokenizer, "sha"), samples)) == first
    cache = ResponseCache(tmp_path / "c")
    cached = LocalJudge(model, tokenizer, "sha", cache)
    assert list(judged(cached, samples)) == first
    assert list(judged(cached, samples)) == first
    assert (cache.calls, cache.hits) == (2, 2)
    assert cached.name == "local:sha#6a7e3649"  # as in the verdict stores that exist


def test_a_local_judge_reads_half_a_character_too(taught):
    judge = LocalJudge(*taught, "x")
    assert judge.distribution("grade \ud83d") == judge.distribution("grade ?")


def test_a_prompt_beyond_what_the_local_judge_reads_is_missing():
    judge = LocalJudge(tiny.model(), tiny.tokenizer(), "x")
    verdict = judge(question(), "long " * 200)
    assert "tokens, and the judge reads 512" in verdict.missing
    assert not verdict.failed


def test_what_a_judge_counts_reads_as_words(taught, tmp_path):
    """4 prompts of 2 answers: what was stored before, and answers without a score, are named where there are any."""
    samples, cache = answers(2), ResponseCache(tmp_path / "c")
    judge = LocalJudge(*taught, "x", cache)
    judge(samples[0].question, samples[0].text)
    assert judge.spent().split("; ")[0] == "2 prompts"
    judge(samples[0].question, samples[0].text)
    assert judge.spent().split("; ")[:2] == ["2 prompts", "2 replies stored before"]
    with Loopback(lambda body: Said("x", ({"The": 1.0},))) as server:
        remote = judge_at(server, ResponseCache(tmp_path / "d"))
        list(judged(remote, samples))
    assert remote.spent() == "4 calls; no score for 2 of 2 answers"


def test_a_local_judge_that_is_broken_gives_no_number(taught):
    broken = tiny.model()
    broken.config.max_position_embeddings = 8192
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    assert "(NaN)" in LocalJudge(broken, tiny.tokenizer(), "x")(question(), "y").missing


def test_a_real_model_behind_the_endpoint_is_read_as_far_as_its_digits_show(taught, tmp_path):
    """The endpoint's score is the whole distribution's expectation over the one decade that it can know."""
    model, tokenizer = taught
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with Loopback(from_model(tmp_path / "model")) as server:
        judge = judge_at(server, ResponseCache(tmp_path / "c"), timeout=60)
        local, scored = LocalJudge(model, tokenizer, "x"), 0
        for n in range(8):
            prompt = "grade " + "x" * n
            positions = judge._positions(rubrics_for(question())[0], prompt, 4)
            path = "".join(position.token for position in positions)
            unseen = set() if path.startswith("10") else {"10", "100"}  # told apart on their own path only
            distribution = local.distribution(prompt)
            decade = {int(k): p for k, p in distribution.items() if k.isdigit() and k[0] == path[0] and k not in unseen}
            got = by_digits(positions)
            if got.score is not None:
                scored += 1
                assert got.score == pytest.approx(sum(v * p for v, p in decade.items()) / sum(decade.values()), abs=0.2)
                assert got.mass == pytest.approx(sum(decade.values()), abs=0.02)  # twenty tokens of 259 are seen
        assert scored > 3
