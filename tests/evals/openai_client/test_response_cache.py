"""The cache of paid answers and the budget: nothing is paid for twice, and nothing beyond the limit."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from endpoints import kept
from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.budget import Budget, Price, known_price, parse_price
from staytrue.evals.openai_client.response_cache import ResponseCache, key


def test_a_key_is_of_everything_that_decides_an_answer():
    whole = {"judge": "a", "rubric": "b", "how": {"seed": 0, "tokens": 1}, "prompt": "c"}
    assert key(**whole) == key(**dict(reversed(whole.items())))
    others = [whole | change for change in ({"judge": "x"}, {"rubric": "x"}, {"prompt": "x"}, {"how": {"seed": 1}})]
    assert len({key(**whole), *(key(**other) for other in others)}) == 5


def test_what_was_put_is_there_for_the_next_one(tmp_path):
    first = ResponseCache(tmp_path / "deep" / "cache.sqlite")
    first.put("k", {"positions": [["8", [["8", -0.1]]]], "said": "ä"})
    second = ResponseCache(tmp_path / "deep" / "cache.sqlite")  # while the first has it open
    assert second.get("k") == {"positions": [["8", [["8", -0.1]]]], "said": "ä"}
    assert second.get("other") is None
    assert kept(second) == 1


def test_sixteen_threads_that_want_the_same_answer_pay_for_it_once(tmp_path):
    ledger, calls = ResponseCache(tmp_path / "c"), []
    start = threading.Barrier(16)

    def want(i):
        start.wait()
        return ledger.once(key(prompt=i % 4), lambda: calls.append(i % 4) or {"answer": i % 4})

    with ThreadPoolExecutor(16) as pool:
        assert [row["answer"] for row in pool.map(want, range(16))] == [i % 4 for i in range(16)]
    assert sorted(calls) == [0, 1, 2, 3]
    assert (ledger.calls, ledger.hits, kept(ledger)) == (4, 12, 4)


def test_what_failed_is_not_kept(tmp_path):
    ledger = ResponseCache(tmp_path / "c")
    with pytest.raises(ZeroDivisionError):
        ledger.once(key(a=1), lambda: {"x": 1 / 0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.once(key(a=1), lambda: {"x": float("nan")})
    assert (kept(ledger), ledger.calls) == (0, 0)
    assert ledger.once(key(a=1), lambda: {"x": 1}) == {"x": 1}


WRITER = """
import sys; from pathlib import Path; from staytrue.evals.openai_client.response_cache import ResponseCache, key
ledger = ResponseCache(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), 100000):
    ledger.once(key(i=i % int(sys.argv[3])), lambda: {"i": i}); print(i, flush=True)
"""


def test_a_row_outlives_a_process_that_is_killed_right_after_it(tmp_path):
    path = tmp_path / "c"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, "0", "100000"], stdout=subprocess.PIPE, text=True)
    numbers = [int(writer.stdout.readline()) for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    numbers += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    ledger = ResponseCache(path)
    assert all(ledger.get(key(i=i)) == {"i": i} for i in numbers)
    assert kept(ledger) - len(numbers) in (0, 1)


def test_several_processes_share_one_file_from_its_making_on(tmp_path):
    command = [sys.executable, "-c", WRITER.replace("100000", "300"), tmp_path / "c"]
    writers = [
        subprocess.Popen([*command, str(i), "200"], stderr=subprocess.PIPE, stdout=-3, text=True) for i in range(4)
    ]
    assert [(w.wait(), w.stderr.read()) for w in writers] == [(0, "")] * 4
    assert kept(ResponseCache(tmp_path / "c")) == 200


def test_a_damaged_file_is_a_sentence_with_a_way_out(tmp_path):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"this is no database at all, though it is long enough to be one" * 50)
    with pytest.raises(
        RequestError, match=r"cache\.sqlite is damaged: file is not a database\. Move it away, with .*-wal"
    ):
        ResponseCache(path)


def test_damage_within_is_reported_when_it_is_read(tmp_path):
    path = tmp_path / "c"
    ledger = ResponseCache(path)
    for i in range(40):
        ledger.put(key(i=i), {"i": "x" * 3000})
    ledger.close()
    whole = bytearray(path.read_bytes())
    whole[8192:] = b"\xff" * (len(whole) - 8192)
    path.write_bytes(whole)
    with pytest.raises(RequestError, match="is damaged"):
        [ResponseCache(path).get(key(i=i)) for i in range(40)]


def test_a_value_that_is_no_json_is_damage(tmp_path):
    ResponseCache(tmp_path / "c").close()
    with sqlite3.connect(tmp_path / "c") as file:
        file.execute("INSERT INTO answers VALUES ('k', 'half of {')")
    file.close()
    with pytest.raises(RequestError, match="is damaged"):
        ResponseCache(tmp_path / "c").get("k")


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "bookmarks") as file:
        file.execute("CREATE TABLE pages (url TEXT)")
    file.close()
    before = (tmp_path / "bookmarks").read_bytes()
    with pytest.raises(RequestError, match="is a database of something else"):
        ResponseCache(tmp_path / "bookmarks")
    assert (tmp_path / "bookmarks").read_bytes() == before


def test_a_place_that_cannot_be_used_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "c"):
        with pytest.raises(RequestError, match="cannot be used here"):
            ResponseCache(place)


def test_the_budget_adds_up_what_the_server_says():
    budget = Budget(price=Price(150_000, 600_000))
    for usage in ({"prompt_tokens": 1000, "completion_tokens": 1}, {}, {"prompt_tokens": 2000, "completion_tokens": 4}):
        budget.end(budget.begin(4000, 8), usage)
    assert budget.describe() == "3 calls, about $453.0000"  # 3,000 tokens read at $0.15 and 5 written at $0.60


@pytest.mark.parametrize("usage", [None, {"total_tokens": 5}, {"prompt_tokens": "7", "completion_tokens": 1}])
def test_a_call_of_unknown_cost_counts_in_full(usage):
    budget = Budget(price=Price(1e6, 2e6))
    budget.end(budget.begin(4000, 8), usage)
    assert budget.describe() == "1 call, about $4016.0000"


def test_without_a_price_calls_are_counted_and_the_cost_is_unknown():
    budget = Budget(max_calls=2)
    budget.end(budget.begin(10, 1), {"prompt_tokens": 3, "completion_tokens": 1})
    assert budget.describe() == "1 call"
    budget.begin(10, 1)
    with pytest.raises(
        RequestError, match=r"The budget is reached: 2 calls\. Everything paid for is kept; .* --max-calls"
    ):
        budget.begin(10, 1)


def test_sixteen_threads_never_overrun_a_budget_and_use_all_of_it():
    price, budget = Price(1e6, 0), Budget(max_cost=100, price=Price(1e6, 0))  # a hundred tokens
    most, lock, air = [0.0], threading.Lock(), [0.0]

    def call(_):
        try:
            reserved = budget.begin(20, 0)  # at most 20 tokens; it will be 7
        except RequestError:
            return 0
        with lock:
            air[0] += price.of(20, 0)
            most[0] = max(most[0], air[0])
        with lock:
            air[0] -= price.of(13, 0)
        budget.end(reserved, {"prompt_tokens": 7, "completion_tokens": 0})
        return 1

    with ThreadPoolExecutor(16) as pool:
        allowed = sum(pool.map(call, range(200)))
    assert most[0] <= 100  # what was spent and what was in flight, at the worst
    assert allowed == 12  # 84 tokens spent; a thirteenth might have cost 104
    assert budget.describe() == "12 calls, about $84.0000"


def test_a_call_waits_for_those_in_flight_before_it_is_refused():
    budget = Budget(max_cost=0.000_100, price=Price(1, 0))
    first = budget.begin(60, 0)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(budget.begin, 60, 0)
        time.sleep(0.05)
        assert not second.done()  # both together might cost 120
        budget.end(first, {"prompt_tokens": 7, "completion_tokens": 0})
        assert second.result(5) == pytest.approx(60e-6)
    budget.end(60e-6, {"prompt_tokens": 50, "completion_tokens": 0})
    with pytest.raises(RequestError, match=r"2 calls, about \$0\.0001\. .* --max-cost"):
        budget.begin(60, 0)


@pytest.mark.parametrize(
    ("limits", "way_out"),
    [
        ({"max_calls": 0}, r"--max-calls 0"),
        ({"max_cost": -1.0, "price": Price(1, 1)}, r"--max-cost -1"),
        ({"max_cost": float("nan"), "price": Price(1, 1)}, r"--max-cost nan"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits, way_out):
    with pytest.raises(RequestError, match=way_out):
        Budget(**limits)


@pytest.mark.parametrize(
    ("address", "price"),
    [
        (Address("gpt-4o-mini-2024-07-18"), Price(0.15, 0.60)),
        (Address("gpt-4o-mini"), Price(0.15, 0.60)),
        (Address("gpt-4o-2024-08-06"), Price(2.50, 10.00)),
        (Address("gpt-4o-2024-05-13"), Price(5.00, 15.00)),
        (Address("gpt-4.1-nano-2025-04-14"), Price(0.10, 0.40)),
        (Address("gpt-4o-audio-preview"), None),
        (Address("ft:gpt-4o-mini-2024-07-18:me::x"), None),
        (Address("gpt-4o", "https://elsewhere.example/v1"), None),
        (Address("gpt-4o", "http://127.0.0.1:8000/v1"), Price(0, 0)),
        (Address("mine", "http://localhost:8000/v1"), Price(0, 0)),
        (Address("mine", "http://[::1]:8000/v1"), Price(0, 0)),
    ],
)
def test_prices_are_of_a_family_and_its_snapshots_at_openai_and_nothing_on_this_machine(address, price):
    assert known_price(address) == price


def test_each_endpoint_tells_its_own_calls_and_the_limit_is_of_all_together():
    limits = Budget(max_calls=3, max_cost=100)
    generator, judge = (
        limits.for_endpoint(Address("mine", "http://localhost:8/v1")),
        limits.for_endpoint(Address("gpt-4o")),
    )
    generator.end(generator.begin(1000, 1000), {"prompt_tokens": 1000, "completion_tokens": 1000})
    for _ in range(2):
        judge.end(judge.begin(10_000, 0), {"prompt_tokens": 10_000, "completion_tokens": 0})
    assert generator.describe() == "1 call"  # on this machine: no dollars
    assert judge.describe() == "2 calls, about $0.0500"  # $2.50 a million
    for endpoint in (generator, judge):
        with pytest.raises(RequestError, match=r"The budget is reached: 3 calls, about \$0\.0500\."):
            endpoint.begin(1, 1)
    assert limits.describe() == "3 calls, about $0.0500"
    with pytest.raises(
        RequestError, match=r"--max-cost 100 needs the price of openai:m@http://h/v1\. Add --price IN,OUT"
    ):
        limits.for_endpoint(Address("m", "http://h/v1"))
    priced = Budget(max_cost=0.001, price=Price(1, 1)).for_endpoint(Address("mine", "http://localhost:8/v1"))
    with pytest.raises(RequestError, match="--max-cost"):
        priced.begin(1001, 0)  # a price that is given holds on this machine too


def test_a_price_is_read_from_two_numbers():
    assert parse_price("0.15,0.6") == Price(0.15, 0.6)
    for wrong in ("0.15", "a,b", "1,2,3", "-1,2", "nan,1", "inf,1"):
        with pytest.raises(RequestError, match="IN,OUT in dollars per million tokens"):
            parse_price(wrong)


def test_a_value_that_cannot_be_read_is_made_again_and_replaced(tmp_path):
    cache = ResponseCache(tmp_path / "c")
    for value in ({}, {"p": None}, {"p": "x"}, {"p": []}):
        cache.put("k", value)
        assert cache.once("k", lambda: {"p": "0.5"}, lambda row: float(row["p"])) == 0.5
        assert cache.get("k") == {"p": "0.5"}
        cache._remove("k")
    assert (cache.calls, cache.hits) == (4, 0)
    cache.put("k", {"p": 1})
    assert cache.once("k", lambda: {"p": 1 / 0}, lambda row: float(row["p"])) == 1.0
    assert (cache.calls, cache.hits) == (4, 1)
    with pytest.raises(ValueError, match="could not convert"):  # a fresh value is the caller's fault
        cache.once("new", lambda: {"p": "x"}, lambda row: float(row["p"]))
