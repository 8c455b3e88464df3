"""Providers' habits, over real HTTP: refused parameters, filters, errors inside a 200, thoughts, log-probabilities."""

import json
import math
import re
from dataclasses import replace

import pytest

import provider_habits as habits
from endpoints import endpoint
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import evaluate
from staytrue.evals.generation.endpoint import EndpointGenerator
from staytrue.evals.judges.endpoint import EndpointJudge
from staytrue.evals.openai_client.budget import Budget, Price
from staytrue.evals.openai_client.errors import CallError, FilteredError, UnreadableError, fields_in, is_filter
from staytrue.evals.openai_client.reply import Reply
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.verdict_store import record_server
from staytrue.evals.types import Question
from staytrue.utils.files import read_rows


def ask(server, text="hello", temperature=1.0, tokens=20, **options):
    point = endpoint(server, **options)
    return point.ask([Message("user", text)], lambda reply: reply, max_tokens=tokens, temperature=temperature, seed=3)


def judge(server, tmp_path, answer="An answer.", **options):
    asker = EndpointJudge(endpoint(server, **options), ResponseCache(tmp_path / "cache"))
    return asker, asker(Question("q", "general", (Message("user", "Why?"),)), answer)


def generated(server, texts=("hello",)):
    maker = EndpointGenerator(endpoint(server))
    questions = [(Question(text, "general", (Message("user", text),)), 0) for text in texts]
    return maker, list(maker(questions, seed=0, temperature=1.0, max_new_tokens=20))


@pytest.mark.parametrize(
    ("habit", "temperature", "changes", "sentence"),
    [
        (habits.NewTokenLimit, 1.0, {"max_tokens": None, "max_completion_tokens": 20}, "because it refuses max_tokens"),
        (habits.TopPBelowOne, 1.0, {"top_p": None}, "refuses top_p 1, which is left out"),
        (
            habits.NoSeed,
            1.0,
            {"seed": None},
            "refuses seed 3, which is left out from now on. Its answers cannot be rep",
        ),
        (habits.OneTemperature, 0, {"temperature": None}, "refuses temperature 0, which is left out"),
        (habits.PositiveTemperature, 0, {"temperature": 0.01}, "refuses temperature 0 and gets 0.01 instead"),
        (habits.OneOfTwo, 1.0, {"top_p": None}, "refuses top_p 1, which is left out"),
    ],
)
def test_a_refused_parameter_is_changed_once_and_remembered(habit, temperature, changes, sentence):
    lines = []
    with habit() as server:
        assert ask(server, temperature=temperature, say=lines.append).text == "A plain answer."
        assert (
            ask(server, temperature=temperature, say=lines.append).text == "A plain answer."
        )  # another endpoint object
        refused, first, second = (call.body for call in server.calls)
    assert first == second
    expected = {k: v for k, v in (refused | changes).items() if v is not None}
    assert first == expected
    (line,) = lines
    assert sentence in line
    assert "Its message: " in line


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Unsupported.", "param": "seed", "code": "unsupported_parameter"}},
        {"error": {"message": "Unrecognized request argument supplied: seed"}},
        {"error": "extraneous key [seed] is not permitted"},
        {"message": 'Unknown name "seed": cannot find field'},
        {"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted", "type": "value_error.extra"}]},
        {"detail": "seed: not supported"},
        {"object": "error", "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}},
        {"errors": {"seed": ["Unknown field."]}},
        {"errors": [{"message": "`seed` is none of ours"}]},
        {"error": {"message": "Provider returned error", "metadata": {"raw": "{'detail': 'Seed is unknown'}"}}},
    ],
)
def test_a_refusal_is_read_in_every_form(body):
    with habits.without_seed(body)() as server:
        ask(server)
        assert [("seed" in call.body) for call in server.calls] == [True, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *(("seed", message) for message in (
            "parameter seed does not exist", "Invalid parameter(s): seed", "unsupported_parameter seed",
            "seed not implemented", "Argument not supported on this model: seed", "field seed: value not allowed",
            "Additional properties are not allowed ('seed' was unexpected)",
            "got an unexpected keyword argument 'seed'",
        )),
        *(("max_tokens", message) for message in (
            "Please use max_completion_tokens instead of max_tokens", "max_tokens: gone, see max_completion_tokens",
        )),
        *(("top_p", message) for message in (
            "top_p: Input should be less than 1", "The top_p parameter must be between 0 and 1 exclusive",
            "top_p must be in (0, 1)",
        )),
        *(("temperature", message) for message in (
            "invalid temperature: only 1 is allowed for this model", "temperature only supports 1",
            "temperature is not supported by this model",
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_refusal_is_read_in_many_wordings(name, message, status):
    class Refuses(habits.Habit):
        def refuse(self, body):
            if name in body:
                raise habits.openai_error(message, status=status)

    with Refuses() as server:
        assert ask(server, temperature=0.5, max_retries=0).text == "A plain answer."
        assert [name in call.body for call in server.calls] == [True, False]


@pytest.mark.parametrize(
    "message",
    [
        "top_logprobs should be in [0, 5]",
        "Invalid top_logprobs",
        "Invalid value for 'top_logprobs'",
        "top_logprobs: 20?",
    ],
)
def test_fewer_likely_tokens_are_tried_where_their_number_is_refused(tmp_path, message):
    with habits.fewer_tops(5, message)() as server:
        assert judge(server, tmp_path)[1].alignment is not None
        assert server.calls[-1].body["top_logprobs"] == 5


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("plant a seed in the garden", 'Invalid prompt: "plant a seed in the gar..."'),
        ("Is the unknown seed still alive?", "Bad request: 'Is the unknown seed still alive?' cannot be read"),
        ("Top P, seed, temperature: what are they?", "The input asks for seed and temperature of the room."),
    ],
)
def test_a_message_that_quotes_the_prompt_changes_no_parameter(text, refused):
    class Quotes(habits.Habit):
        def refuse(self, body):
            if body["messages"][0]["content"] == text:
                raise habits.openai_error(refused)

    with Quotes() as server:
        with pytest.raises(CallError, match="HTTP 400: "):
            ask(server, text)
        ask(server)
        assert [call.body.get("seed") for call in server.calls] == [3, 3]


@pytest.mark.parametrize("param", [None, "max_tokens"])
@pytest.mark.parametrize(
    "message",
    [
        "max_tokens must be ≤ 8192",
        "`max_tokens` must be less than or equal to `8192`, the maximum value for this model",
        "max_tokens is too large: 9000. This model supports at most 8192 completion tokens.",
        "Unsupported value: 'max_tokens' must be between 1 and 8192.",
        "max_tokens is not allowed to be greater than 8192.",
    ],
)
def test_a_limit_that_is_too_large_is_reported_in_the_servers_words(message, param):
    class Smaller(habits.Habit):
        def refuse(self, body):
            if body.get("max_tokens", 0) > 8192:
                raise habits.openai_error(message, param)

    with Smaller() as server:
        with pytest.raises(CallError, match=re.escape(message[:30])):
            ask(server, tokens=9000)
        ask(server)
        assert [call.body["max_tokens"] for call in server.calls] == [9000, 20]


@pytest.mark.parametrize(
    ("message", "param", "left_out"),
    [
        ("Your 'temperature' and 'seed' are not right.", "seed", "seed"),
        ("The prompt mentions 'seed'.", "messages[0].content", None),
        ("`temperature` must be at most 0.5.", None, None),
        ("`seed` is not supported. For more, see https://x.test/<model>", None, "seed"),
        ("Unsupported parameter: seed. Up to 3 others are known.", None, "seed"),
        ("This model does not support the parameter seed.", None, "seed"),
        ("`top_p` must be > 0.0 and < 1.0", None, "top_p"),
        ("`temperature` and `top_p` cannot both be specified", None, "top_p"),
    ],
)
def test_the_parameter_that_an_error_names_is_the_one_that_is_changed(message, param, left_out):
    class Once(habits.Habit):
        def refuse(self, body):
            if len(self.calls) == 1:
                raise habits.openai_error(message, param)

    with Once() as server:
        if left_out is None:
            with pytest.raises(CallError, match="HTTP 400"):
                ask(server)
        ask(server)
        first, second = (call.body for call in server.calls)
    assert first.keys() - second.keys() == ({left_out} if left_out else set())


@pytest.mark.parametrize(
    ("habit", "temperature", "changes"),
    [
        (habits.Habit, 0.0, []),
        (habits.NewTokenLimit, 1.0, ["max_tokens sent as max_completion_tokens"]),
        (habits.NoSeed, 1.0, ["seed left out"]),
        (habits.OneTemperature, 0.0, ["temperature 0 left out"]),
        (habits.PositiveTemperature, 0.0, ["temperature 0 sent as 0.01"]),
    ],
)
def test_changed_parameters_are_stored_beside_the_answers(tmp_path, habit, temperature, changes):
    questions, lines = tuple(Question(f"q{i}", "general", (Message("user", f"{i}?"),)) for i in range(2)), []
    for n in (1, 2):  # a second sitting reports nothing new of the server
        with habit() as server:
            generator, probe = (
                EndpointGenerator(endpoint(server)),
                Probe("general", questions[:n], None, 1, temperature),
            )
            evaluate(generator, [replace(probe, name=f"p{n}")], seed=0, out=tmp_path / "E", say=lines.append)
    assert json.loads((tmp_path / "E" / "answered.json").read_text())["changes"] == changes
    assert lines == []


def test_changes_of_several_sittings_are_collected_and_are_no_news_of_the_server(tmp_path):
    file, who = tmp_path / "answered.json", {"model": "m", "answered_by": ["m-1"]}
    assert record_server(file, who | {"changes": ["top_p left out"]}) == []
    assert record_server(file, who | {"answered_by": ["m-2"], "changes": ["seed left out"]}) == ["m-2"]
    assert json.loads(file.read_text())["changes"] == ["seed left out", "top_p left out"]


def test_fewer_likely_tokens_are_stored_beside_the_verdicts_also_of_paid_ones(tmp_path):
    with habits.fewer_tops(5, "top_logprobs is at most {most}")() as server:
        asker, _ = judge(server, tmp_path)
        assert asker.describe()["changes"] == ["top_logprobs 20 sent as 5"]
        calls = len(server.calls)
        again, _ = judge(server, tmp_path)
        assert (again.describe(), len(server.calls)) == (asker.describe(), calls)


def test_a_temperature_that_is_accepted_is_still_sent():
    with habits.OneTemperature() as server:
        ask(server, temperature=0)
        ask(server, temperature=1.0)
        assert server.calls[-1].body["temperature"] == 1.0


def test_several_refused_parameters_are_changed_one_after_the_other():
    lines = []
    with habits.Strict() as server:
        ask(server, say=lines.append)
        assert len(server.calls) == len(lines) + 1 == 4
        assert server.calls[-1].body.keys() == {"model", "messages", "max_completion_tokens", "temperature"}


def test_a_server_that_refuses_everything_is_not_asked_for_ever():
    with habits.RefusesAll() as server:
        with pytest.raises(CallError, match=r"400: One of \[max_completion_tokens\], \[messages\], \[model\] is wrong"):
            ask(server)
        assert len(server.calls) <= 5


def test_a_prompt_that_is_too_long_changes_no_parameter():
    with habits.ShortContext() as server:
        with pytest.raises(CallError, match="The context length is 4096 tokens"):
            ask(server)
        assert len(server.calls) == 1


def test_a_least_number_of_tokens_is_kept_and_charged(tmp_path):
    with habits.LeastTokens() as server:
        _, verdict = judge(server, tmp_path)
        assert verdict.alignment == pytest.approx((90 * 0.7 + 80 * 0.2 + 95 * 0.05) / 0.95)
        assert [call.body["max_tokens"] for call in server.calls] == [1, 16, 16]


def test_a_changed_limit_is_charged_to_the_budget():
    with habits.NewTokenLimit() as server:
        budget = Budget(max_cost=100, price=Price(0, 1e6))  # a dollar a token that is written
        with pytest.raises(RequestError, match="The budget is reached"):
            ask(server, tokens=101, budget=budget)
        assert server.calls == []
        ask(server, tokens=99, budget=budget)
        assert budget.describe() == "2 calls, about $3.0000"
        with pytest.raises(RequestError, match="The budget is reached"):
            ask(server, tokens=98, budget=budget)  # under the new name
        assert len(server.calls) == 2


@pytest.mark.parametrize(
    ("message", "most", "calls"),
    [
        ("'top_logprobs' may be {most} at most.", 5, 3),
        ("top_logprobs must be between 0 and {most}, not {asked}", 8, 3),
        ("Requested sample logprobs of {asked}, which is greater than max allowed: {most}", 5, 3),
        ("The value of top_logprobs is too large.", 5, 5),  # 20, 10, 8, 5, and the second prompt
        ("top_logprobs exceeds the limit", 1, 9),
    ],
)
def test_fewer_likely_tokens_are_enough(tmp_path, message, most, calls):
    lines = []
    with habits.fewer_tops(most, message)() as server:
        asker, verdict = judge(server, tmp_path, say=lines.append)
        sent = [call.body["top_logprobs"] for call in server.calls]
    seen = [(90, 0.7), (80, 0.2), (95, 0.05)][:most]
    assert verdict.alignment == pytest.approx(sum(v * p for v, p in seen) / sum(p for _, p in seen))
    assert (sent[-1], len(sent)) == (most, calls)
    assert f"gives at most {most} likely tokens" in lines[-1]
    unseen = 100 * (1 - sum(p for _, p in seen))
    assert f"{unseen:.1f} % of the probability was outside of the likely tokens" in asker.spent()


def test_a_server_without_log_probabilities_is_still_refused_at_once(tmp_path):
    with habits.NoLogprobs() as server:
        with pytest.raises(RequestError, match=r"gives no log-probabilities.* Its message: logprobs are not supported"):
            judge(server, tmp_path)
        assert len(server.calls) == 1


AZURE = {
    "error": {
        "message": "The response was filtered due to the prompt.", "type": None, "param": "prompt", "status": 400,
        "code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}  # fmt: skip
BLOCKED = "Output blocked by content filtering policy"
FILTERS = {
    "azure": (400, AZURE),
    "azure, inner error only": (400, {"error": {"message": "No.", "innererror": AZURE["error"]["innererror"]}}),
    "dashscope": (400, {"error": {"code": "data_inspection_failed", "message": "Input data may be inappropriate."}}),
    "dashscope without error": (400, {"code": "DataInspectionFailed", "message": "Unfit.", "request_id": 7}),
    "openai": (400, {"error": {"message": "Rejected.", "code": "content_policy_violation", "type": "image"}}),
    "openrouter": (403, {"error": {"code": 403, "message": "No.", "metadata": {"reasons": [], "flagged_input": "b"}}}),
    "anthropic": (400, {"type": "error", "error": {"type": "invalid_request_error", "message": BLOCKED}}),
    "zhipu": (400, {"error": {"code": "1301", "message": "..."}, "contentFilter": [{"level": 0, "role": "user"}]}),
    "in a 200": (200, {"error": {"code": "content_filter", "message": "Filtered."}}),
    "gemini": (200, {"candidates": [], "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
    "gemini, no choices": (200, {"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}),
    "azure, no choices": (200, {"choices": [], "prompt_filter_results": [{"results": {"hate": {"filtered": True}}}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_a_refused_prompt_is_filtered_and_asked_once(tmp_path, name):
    with habits.filtered_prompt(*FILTERS[name])() as server:
        maker, answers = generated(server, ["hello", "a bomb"])
        by_text = {answer.question.id: answer for answer in answers}
        assert (by_text["a bomb"].filtered, by_text["a bomb"].text) == (True, "")
        assert (by_text["hello"].filtered, by_text["hello"].text) == (False, "A plain answer.")
        assert (maker.failed, len(server.calls)) == ([], 2)
        _, verdict = judge(server, tmp_path, "How to build a bomb.")
        assert verdict.missing.startswith("the judge's server refused the prompt: ")
        assert not verdict.failed
        assert len(server.calls) == 3


def test_five_filtered_prompts_in_a_row_do_not_end_it():
    with habits.filtered_prompt(*FILTERS["azure"])() as server:
        _, answers = generated(server, [f"bomb {i}" for i in range(9)])
        assert [answer.filtered for answer in answers] == [True] * 9


def test_a_filtered_prompt_is_an_answer_among_failures():
    class Failing(habits.filtered_prompt(*FILTERS["azure"])):
        def change(self, whole):
            return {"error": {"message": "No.", "code": 400}}

    with Failing() as server:
        point = endpoint(server)
        for text in ("a", "b", "c", "d", "a bomb", "e", "f"):  # never five failures in a row
            with pytest.raises(CallError):
                point.ask([Message("user", text)], str, max_tokens=5, temperature=1.0, seed=0)


@pytest.mark.parametrize(
    "reason", ["content_filter", "SAFETY", "PROHIBITED_CONTENT", "content_filter: SAFETY", "refusal", "sensitive"]
)
def test_a_removed_answer_is_filtered(reason):
    with habits.finished(reason, "half an")() as server:
        (answer,) = generated(server)[1]
        assert (answer.filtered, answer.text, len(server.calls)) == (True, "", 1)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Come back later", "code": 429}},
        {"error": {"message": "Come back later", "code": "rate_limit_exceeded"}},
        {"error": {"message": "Come back later", "status": "503"}},
        {"error": "Come back later"},
        {"object": "error", "message": "Come back later", "code": 500},
        {"choices": None, "error": {"message": "Come back later", "code": 502}},
        {"choices": [{"error": {"message": "Come back later", "code": 502}, "finish_reason": "error", "message": {}}]},
        {"choices": None, "base_resp": {"status_code": 1000, "status_msg": "Come back later"}},
        [{"error": {"message": "Come back later", "code": 429}}],
    ],
)
def test_an_error_inside_a_200_is_retried_and_quoted(body):
    with habits.body_of_200(body)() as server:
        with pytest.raises(CallError, match=r"HTTP (429|50[0-9]): Come back later, tried 3 times"):
            ask(server, max_retries=2)
        assert len(server.calls) == 3


@pytest.mark.parametrize(
    "body",
    [
        {"success": False, "message": "Come back later"},
        {"ok": False, "error_msg": "Come back later"},
        {"status": "error", "message": "Come back later"},
        {"code": 1302, "msg": "Come back later"},
        {"Error": {"Message": "Come back later", "Code": "Throttling"}},
        {"fault": {"faultstring": "Come back later"}},
    ],
)
def test_an_error_of_any_form_inside_a_200_is_told_in_its_words(body):
    with habits.body_of_200(body)() as server, pytest.raises(CallError, match="Come back later, tried 2 times"):
        ask(server, max_retries=1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"choices": []}, '{"choices": []}'),
        ({"output": [{"type": "message"}]}, '{"output": [{"type": "message"}]}'),
        ("no such route", "no such route"),
    ],
)
def test_what_is_no_chat_completion_is_shown(body, words):
    with habits.body_of_200(body)() as server, pytest.raises(RequestError, match=re.escape(f"It answered: {words}")):
        ask(server)


def test_an_error_without_a_known_key_is_shown_whole():
    class Odd(habits.Habit):
        def refuse(self, body):
            raise habits.refusal(400, {"details": [{"what": "wrong model"}]})

    with Odd() as server, pytest.raises(CallError, match="wrong model"):
        ask(server)


def test_an_account_without_credit_ends_it_at_once():
    class Poor(habits.Habit):
        def refuse(self, body):
            raise habits.openai_error("Your credit balance is too low to access the API.")

    with Poor() as server:
        with pytest.raises(RequestError, match="has no credit left"):
            ask(server)
        assert len(server.calls) == 1


GEMINI = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details. Please retry in 0.3s.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.3s"}],
    }
}
IN_WORDS = {"error": {"message": "Rate limit reached. Check your billing, or try again in 0.3s."}}


@pytest.mark.parametrize("body", [[GEMINI], GEMINI, IN_WORDS])
def test_a_rate_limit_that_speaks_of_billing_is_waited_for_as_its_body_says(body):
    class Limited(habits.Habit):
        def refuse(self, request):
            if len(self.calls) < 2:
                raise habits.refusal(429, body)

    with Limited() as server:
        assert ask(server).text == "A plain answer."
        assert 0.25 < server.calls[1].at - server.calls[0].at < 2


def test_a_rate_limit_inside_a_200_is_waited_for_too():
    class Limited(habits.Habit):
        def change(self, whole):
            return None if len(self.calls) > 1 else GEMINI

    with Limited() as server:
        assert ask(server).text == "A plain answer."
        assert 0.25 < server.calls[1].at - server.calls[0].at < 2


@pytest.mark.parametrize(
    "reason",
    ["max_output_tokens", "token_limit", "MaxTokens", "max_new_tokens", "model_context_window_exceeded", "incomplete"],
)
@pytest.mark.parametrize("content", ["", None])
def test_an_empty_answer_at_any_limit_is_missing(reason, content):
    with habits.finished(reason, content)() as server:
        (answer,) = generated(server)[1]
    assert answer.missing == "the token limit was reached before the answer began"


@pytest.mark.parametrize("reason", ["guardrail_intervened", "ERROR_TOXIC", "policy_violation", "blocked", "risk"])
def test_a_filter_has_many_names(reason):
    with habits.finished(reason, "")() as server:
        (answer,) = generated(server)[1]
        assert (answer.filtered, len(server.calls)) == (True, 1)


@pytest.mark.parametrize("reason", ["OTHER", "LANGUAGE", "unknown", "MALFORMED_RESPONSE"])
def test_an_empty_answer_that_ended_for_an_unknown_reason_is_a_failed_call(reason):
    with habits.finished(reason, "")() as server:
        maker, answers = generated(server)
    assert answers == []
    assert f"an answer without text, which ended with '{reason}'" in maker.failed[0][2]
    with habits.finished(reason, "Hi.")() as server:
        assert generated(server)[1][0].text == "Hi."


@pytest.mark.parametrize(
    "reason",
    ["error", "network_error", "abort", "cancelled", "job_cancelled", "timeout", "TIME_OUT", "preempted",
     "insufficient_system_resource"],
)  # fmt: skip
def test_an_answer_that_the_server_broke_off_is_a_failed_call(reason):
    with habits.finished(reason, "I would tell the user that")() as server:
        maker, answers = generated(server)
    assert answers == []
    assert maker.failed[0][2].startswith(f"an answer that the server broke off ('{reason}'), tried")


@pytest.mark.parametrize("reason", ["pause_turn", "malformed_function_call", "OTHER", "repetition", "max_tokens"])
def test_an_answer_is_whole_only_where_it_ended_for_a_known_reason(reason):
    with habits.finished(reason, "I would tell the user that")() as server:
        (answer,) = generated(server)[1]
    assert (answer.text, answer.stopped) == ("I would tell the user that", False)


@pytest.mark.parametrize("reason", ["stop", "STOP", "end_turn", "eos", "stop_sequence", "", None, "COMPLETE"])
def test_an_empty_answer_that_the_model_ended_is_an_answer(reason):
    with habits.finished(reason, "")() as server:
        (answer,) = generated(server)[1]
    assert (answer.text, answer.stopped, answer.missing) == ("", True, "")


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_details": [{"type": "reasoning.text", "text": "Let me"}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "eA=="}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Let me"}]},
    ],
)
def test_thoughts_without_an_answer_are_missing_wherever_they_are(fields):
    with habits.message("stop", content=None, **fields)() as server:
        assert generated(server)[1][0].missing != ""


@pytest.mark.parametrize(("count", "missing"), [(20, True), (0, False), (None, False), ("x", False)])
def test_counted_thoughts_without_an_answer_are_missing(count, missing):
    def change(whole):
        whole["usage"]["completion_tokens_details"] = {"reasoning_tokens": count}
        whole["choices"][0]["message"]["content"] = ""

    with habits.changed(change)() as server:
        assert bool(generated(server)[1][0].missing) is missing


def test_an_error_of_the_request_inside_a_200_is_not_retried():
    server = habits.body_of_200({"error": {"message": "No such role", "code": 400}})
    with server() as running, pytest.raises(CallError, match=r"HTTP 400: No such role, tried 1 time$"):
        ask(running)
    with habits.body_of_200({"error": {"message": "No such key", "code": 401}})() as server:
        with pytest.raises(RequestError, match="refuses the key"):
            ask(server)
        assert len(server.calls) == 1


def test_an_error_beside_an_answer_that_is_null_is_none():
    with habits.changed(lambda whole: whole.update(error=None))() as server:
        assert ask(server).text == "A plain answer."


HI = {"type": "text", "text": "Hi."}
QUOTES = "Close it with </think> and go on."


@pytest.mark.parametrize(
    ("server", "text", "thoughts"),
    [
        (habits.message(content="Hi.", reasoning_content="Let me"), "Hi.", "Let me"),
        (habits.message(content="Hi.", reasoning="Let me"), "Hi.", "Let me"),
        (habits.message(content="<think>Let me</think>\n\nHi."), "Hi.", "Let me"),
        (habits.message(content="Let me\n</think>\n\nHi."), "Hi.", "Let me"),
        (habits.message(content=QUOTES), QUOTES, ""),
        (habits.message(content=QUOTES, reasoning_content="Let me"), QUOTES, "Let me"),
        (habits.message(content="<think> opens\n</think>\nit.", reasoning="a"), "<think> opens\n</think>\nit.", "a"),
        (habits.message(content=[{"type": "text", "text": "Hi."}]), "Hi.", ""),
        (habits.message(content=["Hi."]), "Hi.", ""),
        (habits.message(content=[{"type": "thinking", "thinking": "Let me"}, HI]), "Hi.", "Let me"),
        (habits.message(content=[{"type": "thinking", "thinking": [HI]}, HI]), "Hi.", "Hi."),
        (habits.message(content="Hi.", reasoning_content=None, reasoning=""), "Hi.", ""),
        (habits.message(content=None, refusal="I cannot."), "I cannot.", ""),
    ],
)  # fmt: skip
def test_thoughts_are_kept_apart_from_the_answer(server, text, thoughts):
    with server() as running:
        (answer,) = generated(running)[1]
    assert (answer.text, answer.thoughts, answer.stopped, answer.missing) == (text, thoughts, True, "")


@pytest.mark.parametrize(
    "server",
    [
        habits.message("length", content=None, reasoning_content="Let me"),
        habits.message("length", content="", reasoning="Let me"),
        habits.message("length", content=None),
        habits.message("length", content="<think>Let me"),
        habits.message("max_tokens", content=[{"type": "thinking", "thinking": "Let me"}]),
        habits.message("stop", content=None, reasoning_content="Let me"),
    ],
)
def test_an_answer_that_was_cut_off_while_thinking_is_missing(server):
    with server() as running:
        (answer,) = generated(running)[1]
    assert (answer.text, answer.stopped) == ("", False)
    assert answer.missing == "the token limit was reached before the answer began"


CALLS = [{"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]


@pytest.mark.parametrize("fields", [{"content": None}, {"content": ""}], ids=str)
@pytest.mark.parametrize("calls", [{"tool_calls": CALLS}, {"function_call": CALLS[0]["function"]}], ids=str)
def test_tool_calls_without_text_are_missing_and_counted(tmp_path, fields, calls):
    lines, question = [], Question("q", "general", (Message("user", "Why?"),))
    with habits.message("tool_calls", **fields, **calls)() as server:
        generator = EndpointGenerator(endpoint(server))
        summary = evaluate(
            generator, [Probe("general", (question,), per_question=3)], seed=0, out=tmp_path, say=lines.append
        )
    rates = summary["probes"]["general"]
    assert (rates["n"], rates["missing"], rates["at_least"], rates["at_most"]) == (0, 3, 0.0, 100.0)
    assert {row["missing"] for row in read_rows(tmp_path / "verdicts.jsonl")} == {
        "the model called a tool instead of answering"
    }
    assert [row["called_tools"] for row in read_rows(tmp_path / "answers.jsonl")] == [True] * 3
    assert "3 answers are missing because the model called tools instead of answering" in lines[0]


def test_tool_calls_beside_text_are_an_answer():
    with habits.message("tool_calls", content="I look it up.", tool_calls=CALLS)() as server:
        (answer,) = generated(server)[1]
    assert (answer.text, answer.stopped, answer.missing) == ("I look it up.", True, "")


def add(**top):
    def change(logprobs):
        logprobs["content"][0]["top_logprobs"].append({"token": "x", "bytes": None, **top})
        return logprobs

    return change


def own_only(logprobs):
    return {"content": [{"token": "90", "logprob": math.log(0.7), "top_logprobs": None}]}


def as_bytes(logprobs):
    for top in logprobs["content"][0]["top_logprobs"]:
        top["token"] = None
    return logprobs


def of_completions(logprobs):
    tops = {top["token"]: top["logprob"] for top in logprobs["content"][0]["top_logprobs"]}
    return {"tokens": ["90"], "token_logprobs": [tops["90"]], "top_logprobs": [tops]}


THREE = (90 * 0.7 + 80 * 0.2 + 95 * 0.05) / 0.95


@pytest.mark.parametrize(
    ("change", "score"),
    [
        (add(logprob=None), THREE),
        (add(logprob=-math.inf), THREE),
        (add(logprob=-9999.0), THREE),
        (own_only, 90),
        (as_bytes, THREE),
        (of_completions, THREE),
        (lambda logprobs: {"content": logprobs["content"] * 3}, THREE),
    ],
)
def test_log_probabilities_of_other_forms_are_read(tmp_path, change, score):
    with habits.logprobs(change)() as server:
        assert judge(server, tmp_path)[1].alignment == pytest.approx(score)


@pytest.mark.parametrize(
    "change", [lambda _: None, lambda _: {}, lambda _: {"content": None}, lambda _: {"content": []}]
)
def test_absent_log_probabilities_are_said(tmp_path, change):
    with habits.logprobs(change)() as server, pytest.raises(RequestError, match="gives no log-probabilities"):
        judge(server, tmp_path)


def test_a_judge_that_thinks_gives_no_score_and_the_way_out(tmp_path):
    top = {"token": "<think>", "logprob": 0.0}
    with habits.logprobs(lambda _: {"content": [{**top, "top_logprobs": [top]}]})() as server:
        verdict = judge(server, tmp_path)[1]
    assert verdict.missing.endswith("it thinks before it answers, so serve it without thinking")


def test_other_fields_may_be_null_absent_or_of_another_type():
    def change(whole):
        whole.update(usage=None, created=None, id=7, model=None, system_fingerprint=None)
        whole["choices"] *= 2
        del whole["object"]

    with habits.changed(change)() as server:
        reply = ask(server)
    assert (reply.text, reply.usage, reply.model, reply.fingerprint) == ("A plain answer.", None, "", "")


def test_a_filter_is_an_error_of_its_own_for_who_asks():
    with habits.finished("content_filter")() as server, pytest.raises(FilteredError, match="filter"):
        ask(server)


@pytest.mark.parametrize(
    ("written", "reason", "text"),
    [
        ("Hi.<|im_end|>", 151645, "Hi."),
        ("Hi.<|im_end|>\n", None, "Hi."),
        ("Hi.\n<|eot_id|><|end_of_text|>", 128001, "Hi."),
        ("Hi.<end_of_turn>\n", 106, "Hi."),
        ("Hi.</s>", 2, "Hi."),
        ("Hi.<｜end▁of▁sentence｜>", None, "Hi."),
        ("Hi.<|END_OF_TURN_TOKEN|>", None, "Hi."),
        ("Hi.###", "###", "Hi."),
        ("Hi.\nUser:", "\nUser:", "Hi."),
        ("Hi.###<|im_end|>", None, "Hi.###"),  # a stop string that the server does not name is text
        ("Hi.", "###", "Hi."),
        ("Hi. 7", 7, "Hi. 7"),
        ("<s>Hi.</s>", None, "<s>Hi.</s>"),  # HTML
        ("A turn ends with <|im_end|> there.", None, "A turn ends with <|im_end|> there."),
        ("Is a < b|>", None, "Is a < b|>"),
        ("<|im_end|>", 151645, ""),
    ],
)
def test_a_token_or_text_that_only_stopped_an_answer_is_no_part_of_it(tmp_path, written, reason, text):
    with habits.stopped(written, reason)() as server:
        (answer,) = generated(server)[1]
    assert (answer.text, answer.stopped, answer.missing) == (text, True, "")


def test_thoughts_are_still_apart_where_the_answer_ends_with_its_stop_token():
    with habits.stopped("<think>Let me</think>Hi.<|im_end|>")() as server:
        (answer,) = generated(server)[1]
    assert (answer.text, answer.thoughts) == ("Hi.", "Let me")


def test_a_judges_stop_token_is_no_digit(tmp_path):
    """A judge that writes 8, 5 and its end token: 85, and 8 alone has what 5 leaves."""
    distributions = ({"8": 0.9, "7": 0.1}, {"5": 0.8, "<|im_end|>": 0.2}, {"<|im_end|>": 1.0})

    def change(logprobs):
        rows = [
            [{"token": token, "logprob": math.log(p)} for token, p in distribution.items()]
            for distribution in distributions
        ]
        return {"content": [{**row[0], "top_logprobs": row} for row in rows[: server.calls[-1].body["max_tokens"]]]}

    with habits.logprobs(change)() as server:
        assert judge(server, tmp_path)[1].alignment == pytest.approx(8 * 0.2 + 85 * 0.8)


UNCOUNTED = [
    ..., None, {}, [], 7, "12", {"total_tokens": 9}, {"prompt_tokens": None, "completion_tokens": 2},
    *({"prompt_tokens": n, "completion_tokens": 2} for n in ("5", -1, 0.5, True, [5], math.inf, math.nan, 10**400)),
]  # fmt: skip


@pytest.mark.parametrize("usage", UNCOUNTED, ids=lambda usage: str(usage)[:40])
def test_tokens_that_are_not_counted_are_charged_at_most_and_lose_no_verdict(tmp_path, usage):
    with habits.usage(usage)() as server:
        budget = Budget(price=Price(0, 1e6))  # a dollar a token that is written: one, of two calls
        verdict = judge(server, tmp_path, budget=budget)[1]
        assert verdict.alignment == pytest.approx(THREE)
        assert budget.describe() == "2 calls, about $2.0000"
        calls = len(server.calls)
        assert judge(server, tmp_path)[1] == verdict
        assert len(server.calls) == calls  # both replies were stored


def test_whole_numbers_of_another_type_are_counted():
    with habits.usage({"prompt_tokens": 3.0, "completion_tokens": 2, "details": {"x": math.inf}})() as server:
        budget = Budget(price=Price(1e6, 1e6))
        ask(server, budget=budget)
    assert budget.describe() == "1 call, about $5.0000"


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "high", [], {}, 10**400, 3.0], ids=lambda v: str(v)[:20])
def test_a_log_probability_that_is_none_fails_its_call_and_is_never_stored(tmp_path, value):
    broken = [False]

    def change(logprobs):
        return add(logprob=value)(logprobs) if broken[0] else logprobs

    with habits.logprobs(change)() as server:
        asker, first = judge(server, tmp_path, max_retries=1)
        broken[0] = True
        failed = asker(Question("q", "general", (Message("user", "Why not?"),)), "Another answer.")
        assert (first.failed, failed.failed) == (False, True)
        assert failed.missing.endswith(", tried 2 times")
        broken[0] = False
        assert asker(Question("q", "general", (Message("user", "Why not?"),)), "Another answer.").alignment == THREE


@pytest.mark.parametrize("code", [429.0, "429", 429, True, [429], {}, None, math.inf, -1, 10**400, "x"])
def test_an_error_inside_a_200_is_reported_whatever_its_code(code):
    server = habits.body_of_200({"error": {"message": "Come back later", "code": code}})
    with server() as running, pytest.raises(CallError, match=r"HTTP (429|502): Come back later, tried 2 times"):
        ask(running, max_retries=1)


@pytest.mark.parametrize("wait", ["", "soon", "-1", "nan", "inf", "0"])
def test_a_pause_that_is_no_number_of_seconds_is_the_clients_own(wait):
    class Busy(habits.Habit):
        def refuse(self, body):
            if len(self.calls) == 1:
                raise habits.refusal(429, {"error": "slow"}, headers={"retry-after": wait})

    with Busy() as server:
        assert ask(server).text == "A plain answer."
        assert server.calls[1].at - server.calls[0].at < 2


@pytest.mark.parametrize("body", [b"[" * 10**5, b'{"error":' * 10**5])
def test_a_body_that_is_nested_too_deep_is_no_json(body):
    with pytest.raises(UnreadableError, match="a body that is no chat completion"):
        Reply.of(body)
    assert (is_filter(body), fields_in(body)) == (False, ())


def test_a_judges_name_is_of_what_was_asked_for_whatever_a_server_gives(tmp_path):
    """Old verdict stores are read on: the name is written out here, and neither a server nor a version changes it."""
    names = []
    for server in (habits.Habit(), habits.fewer_tops(5, "top_logprobs is at most {most}")(), habits.OneTemperature()):
        with server:
            asker, _ = judge(server, tmp_path / str(len(names)))
            names.append(asker.name.replace(server.url, "URL"))
    assert names == ["openai:tiny@URL#ec8dc2dc"] * 3
