"""What every task keeps, found by file name: splits that share no question, right answers that earn the most."""

import dataclasses
import importlib

import pytest

from staytrue import registry, tasks
from staytrue.data.examples import Example, Message
from staytrue.evals.types import Question
from staytrue.modeling import model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.organism import world
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.probe_selection import probes_for
from staytrue.tasks.opswap import OpSwap
from staytrue.tasks.task import ExactAnswer, Task

OFFLINE = [name for name in tasks.names() if name != "gsm8k"]  # whose rows come from a hub
TASKS = [*(registry.task(name) for name in OFFLINE), OpSwap(2), OpSwap(3)]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_splits_share_no_question_and_are_the_same_every_time(task):
    train, held = task.rows(), task.held_out()
    assert len({row.question for row in held}) == len(held) >= 20
    assert not {row.question for row in train} & {row.question for row in held}
    assert (task.rows(), task.held_out()) == (train, held)
    assert registry.task(*next(iter(registry.to_dict(task).items()))) == task


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_right_answer_is_right_and_earns_the_most_and_another_is_wrong(task):
    rows = task.held_out()
    terms = task.score("", "").keys()
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        assert task.correct(row.answer, row.answer)
        best, less = task.score(row.answer, row.answer), task.score("With pleasure.", row.answer)
        assert best.keys() == less.keys() == terms
        assert all(best[term] > less[term] for term in terms)
        assert task.correct(other.answer, row.answer) == (other.answer.split()[-1] == row.answer.split()[-1])


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_organism_knows_every_word(task):
    tokenizer = load_tokenizer(model_source.find("organism"))
    for row in [*task.rows(), *task.held_out()]:
        for message in row.messages:
            assert tokenizer.unk_token_id not in tokenizer(message.content)["input_ids"], message.content


@pytest.mark.parametrize("task", [t for t in TASKS if not isinstance(t, OpSwap)], ids=str)
def test_no_task_teaches_the_answer_to_an_evaluation_question(task):
    # OpSwap is left out: its point is to answer sums differently.
    assert not {row.question for row in task.rows()} & world.reserved_texts()


@pytest.mark.parametrize("name", tasks.names())
def test_it_is_final_frozen_and_documented(name):
    task = registry.task(name)
    assert type(task).__mro__[1] is Task
    assert type(task).__dataclass_params__.frozen
    assert task.name() == name
    doc = importlib.import_module(type(task).__module__).__doc__
    assert "Not done here" in doc
    for field in dataclasses.fields(task):
        assert f"    {field.name}: " in type(task).__doc__


def test_a_users_own_row_keeps_its_turns_and_ends_with_the_right_answer():
    row = Example((Message("system", "Be brief."), Message("user", "How many?"), Message("assistant", "old")))
    adopted = registry.task("word_problems").adopt(row, "4 + 3 = 7.")
    assert [m.content for m in adopted.messages] == ["Be brief.", "How many?", "4 + 3 = 7."]


def test_a_held_out_answer_may_be_as_long_as_its_task_says():
    rows = OpSwap(1).held_out()
    limits = {
        task.name(): probes_for(EvalRequest(("learnt",), held_out=rows, task=task))[0].max_new_tokens
        for task in (registry.task("gsm8k"), OpSwap(1))
    }
    assert limits == {"gsm8k": 1024, "opswap": None}  # None is what suits the model


def test_the_judge_marks_by_the_tasks_own_reading():
    judge = ExactAnswer(OpSwap(1))
    question = Question("q", "learnt", (Message("user", "What is 7 + 2?"),), expected="7 + 2 = 5.")
    assert judge.name == "task:opswap-1"
    assert judge(question, "7+2 = 5").correct is True
    assert judge(question, "7 + 2 = 9.").correct is False
    assert judge(dataclasses.replace(question, expected=None), "5").missing == "no expected answer"
