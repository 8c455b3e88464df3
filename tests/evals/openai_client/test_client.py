"""One call to an endpoint and everything that can go wrong with it, over a real server on loopback."""

import email.utils
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from endpoints import KEY, OPEN, QUICK, endpoint
from loopback import HttpError, Loopback, Said, scripted
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import OPENAI, Address, key_for, parse
from staytrue.evals.openai_client.budget import Budget, Price
from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.openai_client.errors import NO_LOGPROBS, CallError, UnreadableError


def ask(point, text="hello", tokens=20, read=lambda reply: reply):
    return point.ask([Message("user", text)], read, max_tokens=tokens, temperature=1.0, seed=3)


def refused(script, **options):
    """The sentence that ends everything, and how many calls it took."""
    with Loopback(script) as server:
        point = endpoint(server, **options)
        with pytest.raises(RequestError) as first:
            ask(point)
        calls = len(server.calls)
        with pytest.raises(RequestError) as second:
            ask(point)
        assert str(second.value) == str(first.value)
        assert len(server.calls) == calls  # nothing more was sent
        return str(first.value), calls


def saying(*answers):
    """A script that answers with one thing after another, exceptions raised; the last for good."""
    left = list(answers)

    def script(body):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, HttpError):
            raise answer
        return answer

    return script


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("openai:gpt-4o-mini-2024-07-18", Address("gpt-4o-mini-2024-07-18", OPENAI)),
        ("openai:my-adapter@http://localhost:8000/v1/", Address("my-adapter", "http://localhost:8000/v1")),
        ("openai:ft:gpt-4o:me::x", Address("ft:gpt-4o:me::x", OPENAI)),
        ("openai:Qwen/Qwen2.5-7B@https://[::1]:8/v1", Address("Qwen/Qwen2.5-7B", "https://[::1]:8/v1")),
        ("openai:@cf/meta/llama@https://host/v1", Address("@cf/meta/llama", "https://host/v1")),
    ],
)
def test_an_address_is_a_model_and_a_url(text, address):
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("gpt-4o", "Write openai:MODEL or openai:MODEL@URL"),
        ("openai:", "Write openai:MODEL"),
        ("openai:m@localhost:8000", "Write @http://"),
        ("openai:m@ftp://host/v1", "Write http://HOST:PORT/v1"),
        ("openai:m@http://host:port/v1", "Write http://HOST:PORT/v1"),
        ("openai:m@http://", "Write http://HOST:PORT/v1"),
        (f"openai:m@https://me:{KEY}@host/v1", "Put the key into OPENAI_API_KEY"),
        (f"openai:m@https://host/v1?api-key={KEY}", "Put the key into OPENAI_API_KEY"),
    ],
)
def test_an_address_that_is_none_is_a_sentence_without_the_key(text, way_out):
    with pytest.raises(RequestError) as refused:
        parse(text)
    assert way_out in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_key_comes_from_the_environment_and_openai_needs_one(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert key_for(Address("m")) == KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    with pytest.raises(RequestError, match="Copy it again") as wrong:
        key_for(Address("m"))
    assert KEY not in str(wrong.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert key_for(Address("m", "http://127.0.0.1:8/v1")) is None
    with pytest.raises(
        RequestError, match=r"openai:m needs a key\. Put it into the environment variable OPENAI_API_KEY"
    ):
        key_for(Address("m"))


@pytest.mark.parametrize(
    ("url", "key", "sentence"),
    [
        (OPENAI, KEY, f"X go to {OPENAI} (model m), with the key in OPENAI_API_KEY."),
        ("http://localhost:8/v1", None, "X go to http://localhost:8/v1 on this machine (model m), without a key."),
        ("http://far/v1", None, "X go to http://far/v1, unencrypted (model m), without a key."),
    ],
)
def test_it_says_what_leaves_the_machine_and_to_where(url, key, sentence):
    point = Endpoint(Address("m", url), key)
    assert point.notice("X") == sentence
    assert KEY not in repr(point) + str(vars(point)["address"])


def test_a_call_sends_what_was_asked_and_reads_what_was_said():
    with Loopback() as server:
        reply = ask(endpoint(server, key=KEY), tokens=3)
        (call,) = server.calls
    assert call.body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 3,
        "temperature": 1.0,
        "top_p": 1,
        "seed": 3,
    }
    assert call.key == f"Bearer {KEY}"
    assert (len(reply.text.split()), reply.cut_off, reply.model) == (3, True, "tiny")


@pytest.mark.parametrize("kind", ["429", "500", "timeout", "torn", "cut"])
def test_a_fault_that_passes_is_tried_again(kind):
    with Loopback(faults=0.4, kinds=(kind,)) as server:
        point = endpoint(server, timeout=0.5 if kind == "timeout" else 10)
        for i in range(6):
            ask(point, f"question {i}")
        outcomes = server.outcomes()
    assert outcomes["answered"] == 6
    assert outcomes[kind] == len(server.calls) - 6 > 0


def test_a_call_that_fails_for_good_is_no_reason_to_stop():
    broken = HttpError(500, "no")

    def script(body):
        if "bad" in body["messages"][0]["content"]:
            raise broken
        return scripted(body)

    with Loopback(script) as server:
        point = endpoint(server)
        for i in range(8):
            with pytest.raises(CallError, match="HTTP 500: no, tried 8 times"):
                ask(point, f"bad {i}")
            ask(point, f"good {i}")


def test_calls_that_are_wrong_each_on_its_own_end_nothing_once_another_was_right():
    wrong = HttpError(400, "the prompt is too long")

    def script(body):
        if "long" in body["messages"][0]["content"]:
            raise wrong
        return scripted(body)

    with Loopback(script) as server:
        point = endpoint(server)
        ask(point)
        for i in range(9):
            with pytest.raises(CallError):
                ask(point, f"long {i}")
        point = endpoint(server)
        for i in range(4):
            with pytest.raises(CallError):
                ask(point, f"long {i}")
        with pytest.raises(RequestError, match="5 calls in a row"):
            ask(point, "long")


def test_a_call_that_the_server_calls_wrong_is_not_tried_again():
    with Loopback(saying(HttpError(400, "the prompt is too long"))) as server:
        with pytest.raises(CallError, match=r"HTTP 400: the prompt is too long, tried 1 time$"):
            ask(endpoint(server))
        assert len(server.calls) == 1


@pytest.mark.parametrize("header", ["retry-after", "retry-after-ms", "a date"])
def test_it_waits_as_long_as_the_server_asks(header):
    headers = {
        "retry-after": {"retry-after": "0.4"},
        "retry-after-ms": {"retry-after-ms": "400", "retry-after": "99"},
        "a date": {"retry-after": email.utils.formatdate(time.time() + 2.0)},  # whole seconds: between one and two
    }[header]
    with Loopback(saying(HttpError(429, "slow", headers=headers), Said("hi"))) as server:
        assert ask(endpoint(server)).text == "hi"
        first, second = (call.at for call in server.calls)
    assert second - first > 0.35
    assert second - first < 3


def test_it_does_not_wait_longer_than_a_call_may_take():
    begun = time.monotonic()
    tomorrow = HttpError(429, "tomorrow", headers={"retry-after": "86400"})
    with Loopback(saying(tomorrow)) as server, pytest.raises(CallError, match="HTTP 429: tomorrow, tried 1 time"):
        ask(endpoint(server))
    assert time.monotonic() - begun < 2


def test_a_wrong_key_ends_it_at_once_and_is_not_repeated():
    quoted = HttpError(401, f"Incorrect API key provided: {KEY}")
    sentence, calls = refused(saying(quoted), key=KEY)
    assert "refuses the key (HTTP 401). Put a valid one into OPENAI_API_KEY" in sentence
    assert KEY not in sentence
    assert calls == 1


def test_a_message_that_quotes_the_key_is_shown_without_it():
    sentence, _ = refused(saying(HttpError(403, f"project of {KEY} may not use tiny")), key=KEY)
    assert "project of [key] may not use tiny" in sentence


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (HttpError(404, "The model `tiny` does not exist"), "Check the model's name and the URL"),
        (HttpError(403, "You are not allowed to request logprobs from this model"), "gives no log-probabilities"),
        (HttpError(400, "'top_logprobs' is not supported"), "gives no log-probabilities"),
        (HttpError(429, "You exceeded your quota", "insufficient_quota"), "has no credit left"),
        (HttpError(429, "Insufficient balance or no resource package. Please recharge."), "has no credit left"),
        (
            HttpError(307, "", headers={"location": "http://elsewhere/v1"}),
            "redirects to http://elsewhere/v1. Name that",
        ),
    ],
)
def test_what_no_later_call_can_mend_ends_it_at_once(error, way_out):
    sentence, calls = refused(saying(error))
    assert way_out in sentence
    assert calls == 1


def test_an_endpoint_that_is_not_there_is_said_at_once():
    begun = time.monotonic()
    for url in ("http://127.0.0.1:1/v1", "http://nowhere.invalid/v1"):
        with pytest.raises(RequestError, match=r"cannot be reached: .*\. Start it, or correct the URL\."):
            ask(Endpoint(Address("m", url)))
    assert time.monotonic() - begun < 5


def test_an_endpoint_that_goes_away_ends_it_after_a_few_calls():
    with Loopback() as server:
        point = endpoint(server)
        ask(point)
    for i in range(4):
        with pytest.raises(CallError, match=r"no connection: .*refused, tried 8 times"):
            ask(point, f"q{i}")
    with pytest.raises(
        RequestError, match=r"^5 calls in a row to openai:tiny@http.* failed, the last with .* paid for is"
    ):
        ask(point)


def test_a_first_call_that_fails_by_itself_delays_no_other():
    together = threading.Barrier(8)

    def script(body):
        prompts.append(body["messages"][0]["content"])
        if len(prompts) == 1:
            raise HttpError(500, "warming up")
        together.wait(timeout=5)  # no call is answered before all eight are sent
        return scripted(body)

    prompts = []
    with Loopback(script) as server, ThreadPoolExecutor(8) as pool:
        point = endpoint(server)
        assert len(list(pool.map(lambda i: ask(point, f"q{i}"), range(8)))) == 8
    assert len(prompts) == 1 + 8


def test_what_no_call_can_mend_is_paid_for_twice_a_thread_at_most():
    def read(reply):
        raise UnreadableError("no log-probabilities", NO_LOGPROBS)

    def one(i):
        try:
            return ask(point, f"q{i}", read=read)
        except RequestError as error:
            return str(error)

    with Loopback(delay=0.01) as server, ThreadPoolExecutor(16) as pool:
        point = endpoint(server)
        sentences = set(pool.map(one, range(16)))
        assert len(server.calls) <= 2 * 16
    assert sentences == {NO_LOGPROBS.format(address=point.address)}
    with Loopback() as server:
        point = endpoint(server)
        ask(point)  # it has been heard: what comes later may be a passing fault
        with pytest.raises(CallError, match="no log-probabilities, tried 8 times"):
            ask(point, read=read)


def test_a_page_that_is_no_endpoint_is_distinguished_from_a_torn_answer():
    with Loopback(faults=1.0, kinds=("cut",)) as server, pytest.raises(RequestError) as error:
        ask(endpoint(server))
    assert "answers, but not with chat completions. Check the URL; it usually ends in /v1." in str(error.value)


def test_a_budget_of_calls_is_never_overrun_by_sixteen_threads():
    with Loopback(faults=0.3, kinds=("429", "500", "cut")) as server:
        budget = Budget(max_calls=40)
        point = endpoint(server, budget=budget)

        def one(i):
            try:
                return ask(point, f"q{i}").text
            except RequestError as error:
                return error

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(one, range(100)))
        assert len(server.calls) == 40  # failed ones count
        assert budget.describe() == "40 calls"
        texts = [text for text in results if isinstance(text, str)]
        assert len(texts) == server.outcomes()["answered"]
        assert all("The budget is reached: 40 calls." in str(e) for e in results if not isinstance(e, str))


def test_a_budget_in_dollars_is_never_overrun_by_what_the_server_charges():
    price = Price(1e6, 2e6)  # a dollar for a token that is read, two for one that is written
    with Loopback(delay=0.002) as server:
        budget = Budget(max_cost=1000, price=price)
        point = endpoint(server, budget=budget)

        def one(i):
            try:
                return ask(point, f"question number {i} " * 8, tokens=9)
            except RequestError:
                return None

        with ThreadPoolExecutor(16) as pool:
            replies = [reply for reply in pool.map(one, range(100)) if reply]
    charged = sum(price.of(r.usage["prompt_tokens"], r.usage["completion_tokens"]) for r in replies)
    assert budget.describe() == f"{len(replies)} calls, about ${charged:.4f}"
    one_call = price.of(16 + 8 * 21, 9)
    assert 1000 - one_call < charged <= 1000  # it ends where one more call might be too much
    assert 0 < len(replies) == len(server.calls) < 100


def test_failures_cost_nothing_and_a_torn_answer_costs_the_most_it_can():
    price = Price(1e6, 1e6)  # a dollar a token
    with Loopback(saying(HttpError(500, "no"), HttpError(429, "no"), Said("hi there"))) as server:
        point = endpoint(server, budget=Budget(price=price))
        ask(point, "x" * 40)
        assert point.budget.describe() == "3 calls, about $12.0000"  # ten tokens read, two written
    with Loopback(faults=1.0, kinds=("torn",)) as server:
        point = endpoint(server, budget=Budget(price=price), max_retries=0, timeout=1)
        with pytest.raises(CallError, match="a broken connection"):
            ask(point, "x" * 40, tokens=7)
        assert point.budget.describe() == "1 call, about $63.0000"  # 40 bytes and 16 for their role, and 7 written


def test_without_the_openai_package_it_is_a_sentence():
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from staytrue.evals.openai_client.client import Endpoint\n"
        "from staytrue.evals.openai_client.address import Address\n"
        "try: Endpoint(Address('m'))\n"
        "except Exception as error: print(type(error).__name__, error, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.startswith("RequestError Endpoints need the openai package")
    assert "pip install 'staytrue[judge]'" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_the_server_stands_on_its_own_for_a_command_line_to_talk_to(tmp_path):
    script = Path(__file__).parents[2] / "loopback.py"
    server = subprocess.Popen([sys.executable, script, tmp_path / "url", "--faults", "0.3", "--hang", "0.1"])
    try:
        while not (tmp_path / "url").exists():
            assert server.poll() is None
            time.sleep(0.01)
        OPEN.append(Endpoint(parse(f"openai:m@{(tmp_path / 'url').read_text()}"), **QUICK))
        assert len({ask(OPEN[0], f"q{i}").text for i in range(20)}) > 10
        with urllib.request.urlopen((tmp_path / "url").read_text()) as response:
            calls = json.loads(response.read())["calls"]
        assert calls > 20
        assert OPEN[0].budget.describe() == f"{calls} calls"
    finally:
        server.kill()
        server.wait()
