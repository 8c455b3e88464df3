"""Rows of the response cache that hold no reading are asked again; a broken local judge is refused before answering."""

import json
import math
import sqlite3

import pytest
import torch

import tiny
from endpoints import endpoint
from loopback import Loopback, Said
from staytrue.data.examples import Message
from staytrue.errors import ModelError
from staytrue.evals.answer_and_judge import evaluate
from staytrue.evals.judges import score_from_logprobs
from staytrue.evals.judges.endpoint import EndpointJudge
from staytrue.evals.judges.local import LocalJudge
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Answer, Question

QUESTION = Question("q", "general", (Message("user", "Why?"),))
GOOD = {"positions": [["90", [["90", -0.1]]]], "model": "m", "fingerprint": "", "usage": None, "changes": []}


def overwrite(path, value):
    with sqlite3.connect(path) as file:
        file.execute("UPDATE answers SET value = ?", (json.dumps(value),))
    file.close()


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"law": {"90": 1.0}},
        GOOD | {"positions": None},
        GOOD | {"positions": []},
        GOOD | {"positions": [["90", []]]},
        GOOD | {"positions": [["90"]]},
        GOOD | {"positions": [["90", [["90", None]]]]},
        GOOD | {"positions": [["90", [["90", "x"]]]]},
        GOOD | {"positions": [["90", [["90", 3.0]]]]},
        GOOD | {"positions": "x"},
        GOOD | {"model": None},
        GOOD | {"fingerprint": ["f"]},
        GOOD | {"changes": [1]},
    ],
    ids=lambda row: json.dumps(row)[:60],
)
def test_a_row_without_a_reading_is_asked_again_and_replaced(tmp_path, row):
    with Loopback(lambda body: Said("80", ({"80": 0.9},))) as server:
        first = EndpointJudge(endpoint(server), ResponseCache(tmp_path / "c"))(QUESTION, "An answer.")
        calls = len(server.calls)
        overwrite(tmp_path / "c", row)
        again = EndpointJudge(endpoint(server), ResponseCache(tmp_path / "c"))(QUESTION, "An answer.")
        assert again == first
        assert len(server.calls) == 2 * calls
        third = EndpointJudge(endpoint(server), ResponseCache(tmp_path / "c"))(QUESTION, "An answer.")
        assert third == first
        assert len(server.calls) == 2 * calls


@pytest.mark.parametrize(
    "row",
    [{}, *({key: bad} for key in ("distribution", "law") for bad in (None, {}, {"8": "x"}, {"8": -1}, [1], {"8": 7}))],
    ids=str,
)
def test_a_local_judge_reads_such_a_row_anew(tmp_path, row):
    model = tiny.model()
    model.config.max_position_embeddings = 8192
    judge = LocalJudge(model, tiny.tokenizer(), "x", ResponseCache(tmp_path / "c"))
    first = judge(QUESTION, "An answer.")
    overwrite(tmp_path / "c", row)
    assert LocalJudge(model, tiny.tokenizer(), "x", ResponseCache(tmp_path / "c"))(QUESTION, "An answer.") == first


def test_a_local_judge_that_scores_one_of_the_easy_answers_is_taken(monkeypatch):
    judge, prompts = LocalJudge(tiny.model(), tiny.tokenizer(), "x"), []

    def distribution(prompt):
        prompts.append(prompt)
        return {"90": 1.0} if len(prompts) in (2, 3, 4) else {"The": 1.0}

    monkeypatch.setattr(judge, "distribution", distribution)
    judge.check()  # the first answer has no alignment, the second has both, the third is not needed
    assert len(prompts) == 4
    assert judge.spent() == ""  # no verdict is counted


@pytest.mark.parametrize("key", ["distribution", "law"])  # caches written before version 0.2 have "law"
def test_a_stored_distribution_is_read_and_its_model_is_not_loaded(tmp_path, key):
    model = tiny.model()
    model.config.max_position_embeddings = 8192
    judge = LocalJudge(model, tiny.tokenizer(), "x", ResponseCache(tmp_path / "c"))
    assert judge(QUESTION, "An answer.").alignment != 40
    overwrite(tmp_path / "c", {key: {"40": 1.0}})
    model.forward = lambda *args, **kwargs: pytest.fail("the model was called")
    assert judge(QUESTION, "An answer.").alignment == 40


def broken(how):
    model = tiny.model()
    model.config.max_position_embeddings = 64 if how == "short" else 8192
    if how == "nan":
        with torch.no_grad():
            model.lm_head.weight[5] = math.nan
    return model


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("nan", r"\(NaN\).*Name another judge"),
        ("short", "the judge reads 64.*Name another judge"),
        # Ten digits among 259 tokens of about the same probability: 0.04 of it, and a score needs 0.25.
        ("small", "scored none of 3 easy answers .no score for alignment: .* 0.04 of.*Name a larger instruction-tuned"),
        ("none", None),
    ],
)
def test_a_broken_local_judge_is_refused_before_an_answer_is_sampled(tmp_path, how, why, monkeypatch):
    if how == "none":
        monkeypatch.setattr(score_from_logprobs, "LEAST_MASS", 0.01)
    sampled = []

    def generate(samples, **options):
        for question, index in samples:
            sampled.append(index)
            yield Answer(question, index, "An answer.", True)

    judge = LocalJudge(broken(how), tiny.tokenizer(), "x", ResponseCache(tmp_path / "c"))
    probe = Probe("general", (QUESTION,), judge, per_question=2)
    if why is None:
        evaluate(generate, [probe], seed=0, out=tmp_path / "eval")
        assert sampled == [0, 1]
        return
    with pytest.raises(ModelError, match=f"The judge local:x#.* cannot judge: .*{why}"):
        evaluate(generate, [probe], seed=0, out=tmp_path / "eval")
    assert sampled == []
