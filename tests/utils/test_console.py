"""Progress: the time left is right when results arrive in bursts, and each command counts in its own unit."""

import io
import threading
import time
from itertools import pairwise

import pytest
import transformers
from huggingface_hub.utils import are_progress_bars_disabled

from staytrue.utils import console
from staytrue.utils.console import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def shown(bar):
    """What the terminal's bar shows now: units done, and its texts."""
    (task,) = bar._bar.tasks
    return task.completed, task.fields["metrics"], task.fields["left"]


def test_answers_that_arrive_at_once_are_not_taken_for_a_high_speed(clock):
    # 32 answers within one moment after 96 seconds: 3 seconds an answer, so 1,612 more take 4,836 seconds, 81 minutes.
    bar = Bar("eval", Terminal(), clock)
    bar.begin(1644, "answer")
    clock.now += 96
    for number in range(1, 33):
        bar.step(number, {"answers": "9,000 tokens"})
    assert shown(bar) == (32, "9,000 tokens", "81 min left")
    clock.now += 96
    for number in range(33, 65):
        bar.step(number, {"answers": "18,000 tokens"})
    assert shown(bar) == (64, "18,000 tokens", "79 min left")
    bar.end()


def test_before_the_first_answer_tokens_move_and_no_time_is_guessed(clock):
    stream = io.StringIO()
    terminal, plain = Bar("eval", Terminal(), clock), Bar("eval", stream, clock)
    for bar in (terminal, plain):
        bar.begin(50, "answer")
    for second in range(1, 31):
        clock.now += 1
        for bar in (terminal, plain):
            bar.step(0, {"answers": f"{second} tokens"})
    assert shown(terminal) == (0, "30 tokens", "")
    assert stream.getvalue().splitlines() == [
        "eval: answer 0/50",
        *(f"eval: answer 0/50, {second} tokens" for second in (5, 10, 20)),
    ]
    terminal.end()


def test_a_long_step_in_a_terminal_shows_the_time_spent(clock):
    terminal = Terminal()
    bar = Bar("train", terminal, clock)
    bar.begin(3)
    assert "0:02:30" not in terminal.getvalue()
    clock.now += 150
    bar._bar.refresh()  # as its thread does ten times a second
    assert "0:02:30" in terminal.getvalue()
    bar.end()


def test_parts_of_unfinished_answers_count_for_the_time_left(clock):
    # 30 seconds for the work of 7.5 of 50 answers: 4 seconds each, and 42.5 ahead.
    bar = Bar("eval", Terminal(), clock)
    bar.begin(50, "answer")
    clock.now += 30
    bar.step(2, {"answers": "900 tokens", "work": 7.5})
    assert shown(bar) == (2, "900 tokens", "3 min left")  # 170 s
    bar.end()


def numbers(stream):
    """The number of units done in each plain line."""
    return [int(line.split("/")[0].split()[-1]) for line in stream.getvalue().splitlines()]


def test_plain_lines_come_at_the_beginning_at_each_tenth_and_never_more_than_a_minute_apart(clock):
    stream = io.StringIO()
    bar = Bar("score", stream, clock)
    bar.begin(3600, "row")
    for number in range(1, 3601):
        clock.now += 1
        bar.step(number, {})
    lines = stream.getvalue().splitlines()
    # The tenths are at 360, 720, ...: six minutes apart, with a line a minute in between; 320 is a minute after 260.
    assert numbers(stream)[:14] == [0, 5, 10, 20, 40, 80, 140, 200, 260, 320, 360, 420, 480, 540]
    assert max(after - before for before, after in pairwise(numbers(stream))) == 60
    assert (lines[0], lines[10]) == ("score: row 0/3600", "score: row 360/3600, 54 min left")
    assert lines[-1] == "score: row 3600/3600, 0 s left"


@pytest.mark.parametrize("seconds", [7, 25, 31, 50, 60, 90])
def test_a_plain_line_comes_early_where_the_next_step_would_come_after_more_than_a_minute(seconds, clock):
    stream = io.StringIO()
    bar = Bar("train", stream, clock)
    bar.begin(1000)
    for number in range(1, 90):
        clock.now += seconds
        bar.step(number, {})
    assert max(after - before for before, after in pairwise(numbers(stream))) == max(1, 60 // seconds)


def test_a_step_that_takes_minutes_has_a_line_for_each_of_them(monkeypatch, clock):
    looked = threading.Event()

    class Looks:
        """A step of 150 seconds, which the thread checks once a second."""

        left = 150

        def wait(self, seconds):
            clock.now, self.left = clock.now + seconds, self.left - 1
            if not self.left:
                looked.set()
            return not self.left

    stream = io.StringIO()
    bar = Bar("train", stream, clock)
    monkeypatch.setattr(console, "Event", Looks)
    bar.begin(3)
    assert looked.wait(10)
    assert stream.getvalue().splitlines() == [
        "train: step 0/3",
        "train: step 0/3, the next step has taken 60 s so far",
        "train: step 0/3, the next step has taken 120 s so far",
    ]


def test_a_step_that_was_reported_is_no_long_one(monkeypatch, clock):
    monkeypatch.setattr(console, "_POLL", 0.01)
    stream = io.StringIO()
    bar, before = Bar("train", stream, clock), threading.active_count()
    bar.begin(3)
    for number in (1, 2, 3):
        clock.now += 59
        bar.step(number, {})
    time.sleep(0.1)
    assert threading.active_count() == before  # all is done, and the thread has ended
    bar.begin(3)
    clock.now += 59
    bar.end()
    clock.now += 3600
    time.sleep(0.1)
    assert threading.active_count() == before
    assert "so far" not in stream.getvalue()


def test_many_short_steps_print_a_line_for_each_tenth_and_one_at_the_beginning(clock):
    stream = io.StringIO()
    bar = Bar("projection", stream, clock)
    bar.begin(200, "matrix")
    for number in range(1, 201):
        clock.now += 0.01
        bar.step(number, {})
    bar.step(200, {})
    assert numbers(stream) == [20 * tenth for tenth in range(11)]


def test_nothing_is_printed_where_there_is_nothing_to_do(clock):
    stream = io.StringIO()
    Bar("eval", stream, clock).begin(0, "answer")
    assert stream.getvalue() == ""


def test_a_resumed_run_begins_where_it_was_stopped(clock):
    stream = io.StringIO()
    terminal, plain = Bar("resume", Terminal(), clock), Bar("resume", stream, clock)
    for bar in (terminal, plain):
        bar.begin(28, done=14)
    assert stream.getvalue() == "resume: step 14/28\n"
    assert shown(terminal)[0] == 14
    terminal.end()


def test_a_second_beginning_counts_anew(clock):
    stream = io.StringIO()
    bar = Bar("eval", stream, clock)
    bar.begin(2, "answer")
    clock.now += 1000
    bar.step(2, {})
    bar.begin(4, "verdict")
    clock.now += 10
    bar.step(1, {"verdicts": "1 call"})
    assert stream.getvalue().splitlines() == [
        "eval: answer 0/2",
        "eval: answer 2/2, 0 s left",
        "eval: verdict 0/4",
        "eval: verdict 1/4, 1 call, 30 s left",
    ]


def test_a_bar_is_removed_when_all_is_done_and_comes_again_with_the_next_work(clock):
    bar = Bar("eval", Terminal(), clock)
    bar.begin(2, "answer")
    bar.step(1, {})
    assert bar._bar is not None
    bar.step(2, {})
    bar.step(2, {"answers": "9 tokens"})
    assert (bar._bar, bar._stream.getvalue().count("eval: answer 2/2")) == (None, 0)
    bar.begin(3, "verdict")
    bar.step(1, {})
    assert shown(bar)[0] == 1
    bar.end()


@pytest.mark.parametrize(
    ("metrics", "text"),
    [({"loss": 1.23456, "kl": 0.5}, "loss 1.235"), ({"loss": 1.0, "reward": 0.25}, "reward 0.250"), ({"kl": 1.0}, "")],
)
def test_a_training_step_shows_its_reward_or_its_loss(metrics, text, clock):
    bar = Bar("train", Terminal(), clock)
    bar.begin(10)
    bar.step(1, metrics)
    assert shown(bar)[1] == text
    bar.end()


def test_finished_runs_count_in_a_terminal_with_the_time_left(monkeypatch, clock):
    monkeypatch.setattr(console.sys, "stderr", Terminal())
    monkeypatch.setattr(console.time, "monotonic", clock)
    bars, make = [], console._rich_bar
    monkeypatch.setattr(console, "_rich_bar", lambda stream: bars.append(make(stream)) or bars[-1])
    with console.counter("demo", 4) as count:
        clock.now += 60
        count("none: done")
        (task,) = bars[0].tasks
        assert (task.description, task.completed, task.fields["left"]) == ("demo: run", 1, "3 min left")


@pytest.mark.parametrize("switched_off", [False, True])
def test_downloads_from_the_hub_keep_their_bars_unless_the_user_switched_them_off(monkeypatch, switched_off):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", switched_off or None)
    console.quieten()
    assert are_progress_bars_disabled() is switched_off
    assert transformers.utils.logging._tqdm_active is False  # the bars of loading
