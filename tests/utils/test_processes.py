"""Which error of a training on several processes is another process's."""

import pytest

from staytrue.errors import RecipeError, TrainingError
from staytrue.utils import processes

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:530] Connection closed by peer [127.0.0.1]:4242"


@pytest.fixture(autouse=True)
def two(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "failed_elsewhere", lambda: None)


def hiding(cause):
    try:
        raise TrainingError("The checkpoint cannot be written.") from cause
    except TrainingError as error:
        return error


@pytest.mark.parametrize("error", [RuntimeError(CLOSED), hiding(RuntimeError(CLOSED))], ids=["bare", "behind another"])
def test_a_lost_connection_is_the_end_of_another_process(error):
    sentence = r"Another process .* ended without a message.* Connection closed by peer"
    with pytest.raises(TrainingError, match=sentence), processes.explained():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RecipeError("There is no file /home/igloo/a."),
        BrokenPipeError("Broken pipe"),
        RuntimeError("NCCL error: Duplicate GPU detected"),
        ConnectionResetError("Connection reset by peer"),
    ],
    ids=["path", "pipe", "setup", "tracker"],
)
def test_an_error_of_this_process_stays_as_it_is(error):
    with pytest.raises(type(error)) as seen, processes.explained():
        raise error
    assert seen.value is error


def test_the_sentence_of_the_process_that_failed_first_is_the_one(monkeypatch):
    monkeypatch.setattr(processes, "failed_elsewhere", lambda: "This disk is full.")
    with pytest.raises(TrainingError, match=r"^This disk is full\.$"), processes.explained():
        raise RuntimeError(CLOSED)
