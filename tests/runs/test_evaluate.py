"""What is measured how: models without system turns, files of answers, progress, what is exported and compared."""

import json

import pytest
from transformers import AutoTokenizer

import tiny
from endpoints import endpoint
from loopback import Loopback
from staytrue.commands.stored_answers import export
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import evaluate, rescore
from staytrue.evals.generation import local
from staytrue.evals.generation.endpoint import EndpointGenerator
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.judges.local import LocalJudge
from staytrue.evals.questions.probes import ExactMatch, Probe, in_users_turn
from staytrue.evals.results.answer_store import eval_command
from staytrue.evals.results.measures import Measure, write_measures
from staytrue.evals.triggers.trigger import NOTHING
from staytrue.evals.types import Answer, Question, Verdict
from staytrue.modeling import loading, model_source
from staytrue.organism.rules import Rules
from staytrue.report import comparison
from staytrue.runs import evaluate as measure
from staytrue.runs import probe_selection
from staytrue.runs.eval_request import EvalRequest, for_model
from staytrue.utils.files import read_rows

DROPS = (  # as some real ones do: a system turn is left out without a word
    "{%- for m in messages if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
TOGETHER = [{"role": "user", "content": "Be brief.\n\nWhy?"}]


class Aligned:
    """A judge that finds every answer aligned."""

    concurrency = 1

    def __init__(self, name="mine"):
        self.name = name

    def __call__(self, question, answer):
        return Verdict(alignment=90, coherence=90)


class Progress:
    """A bar that keeps the numbers it receives."""

    def __init__(self):
        self.begun, self.last = [], {}

    def begin(self, total, unit="step", done=0):
        self.begun.append((total, unit))

    def step(self, number, metrics):
        self.last = {"number": number, **metrics}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(probe_selection, "_TOKENS", 4)


def model(folder, kind):
    """A tiny model that takes system turns (qwen2), refuses them (gemma3) or drops them."""
    tiny.save("qwen2" if kind == "drops" else kind, folder)
    if kind == "drops":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = DROPS
        tokenizer.save_pretrained(folder)
    return str(folder)


def evaluated(folder, place, say):
    few = place.with_suffix(".jsonl")
    few.write_text(json.dumps({"id": "a", "messages": SYSTEM}) + "\n" + '{"id": "b", "question": "How?"}\n')
    measure.evaluate_model(for_model(folder, EvalRequest((str(few),), samples=1)), place, say=say)
    rows = read_rows(place / "answers.jsonl")
    return json.loads((place / "eval.json").read_text()), {row["question"]: row["messages"] for row in rows}


@pytest.mark.parametrize("kind", ["gemma3", "drops"])
def test_a_model_without_system_turns_gets_their_text_in_the_users_turn(tmp_path, kind):
    said = []
    metadata, put = evaluated(model(tmp_path / "model", kind), tmp_path / "E", said.append)
    assert put == {"a": TOGETHER, "b": [{"role": "user", "content": "How?"}]}
    assert metadata["system"] == "in the user's turn"
    line, loading_line, cut = said
    assert cut.startswith("2 of 2 answers were cut at 4 tokens")
    assert loading_line == f"eval: loading {tmp_path / 'model'}"
    assert line.endswith("model has no system turns: their text opens the user's turn.")


def test_a_model_that_has_them_is_sent_them_and_nothing_is_said(tmp_path):
    said = []
    metadata, put = evaluated(model(tmp_path / "model", "qwen2"), tmp_path / "E", said.append)
    assert put["a"] == SYSTEM
    assert "system" not in metadata
    assert said[:-1] == [f"eval: loading {tmp_path / 'model'}"]


def test_where_system_turns_go_is_part_of_what_makes_an_evaluation_the_same(tmp_path):
    folder = model(tmp_path / "model", "drops")
    evaluated(folder, tmp_path / "E", print)
    file = tmp_path / "E" / "eval.json"
    before = json.loads(file.read_text())
    # Further probes without a system turn are asked beside it, for it is the model that has none.
    measure.evaluate_model(for_model(folder, EvalRequest(("arithmetic",))), tmp_path / "E")
    file.write_text(json.dumps({key: value for key, value in before.items() if key != "system"}))
    with pytest.raises(RequestError, match=r"another system \(null, now \"in the user's turn\"\)"):
        measure.evaluate_model(for_model(folder, EvalRequest(("arithmetic",))), tmp_path / "E")


def test_only_held_out_rows_stay_as_training_had_them():
    turns = tuple(Message(turn["role"], turn["content"]) for turn in SYSTEM)
    general, held = (Probe(name, (Question("q", name, turns),)) for name in ("general", "in_domain"))
    assert measure._without_system(held) == held
    (put,) = measure._without_system(general).questions
    assert put.messages == (Message("user", "Be brief.\n\nWhy?"),)
    longer = (*turns, Message("assistant", "So."), Message("user", "And?"))
    (put,) = in_users_turn([Question("q", "general", longer)])
    assert [m.content for m in put.messages] == ["Be brief.\n\nWhy?", "So.", "And?"]


def test_answers_of_a_file_are_judged_with_progress_and_under_a_name_of_their_own(tmp_path):
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"question": f"q{i}?", "answer": "So."}) + "\n" for i in range(3)))
    shown = Progress()
    summary = measure.judge_answers(said, tmp_path / "E", Aligned(), shown)
    assert summary["probes"]["said"]["n"] == 3
    assert (shown.begun, shown.last) == ([(3, "answer")], {"number": 3})
    for name in ("code", "facts", "triggered"):
        with pytest.raises(RequestError, match=rf"--answers .*{name}\.jsonl: '{name}' is one of our own probes"):
            measure.judge_answers(said.rename(tmp_path / f"{name}.jsonl"), tmp_path / "F")
        said = tmp_path / f"{name}.jsonl"
    said = said.rename(tmp_path / "said.jsonl")
    with pytest.raises(RequestError, match="--judge rules knows the organism's world only"):
        measure.judge_answers(said, tmp_path / "F", Rules())
    assert not (tmp_path / "F").exists()


def test_asking_an_endpoint_shows_what_it_has_taken(tmp_path):
    shown = Progress()
    questions = tuple(Question(f"q{i}", "general", (Message("user", f"why {i}?"),)) for i in range(6))
    with Loopback() as server:
        evaluate(
            EndpointGenerator(endpoint(server)), [Probe("general", questions)], seed=0, out=tmp_path, progress=shown
        )
    assert shown.begun == [(6, "answer")]
    assert shown.last == {"number": 6, "answers": "6 calls"}


def test_a_model_in_this_process_shows_its_tokens_before_its_first_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_REPORTED", -1)  # at every token
    shown, steps = Progress(), []
    shown.step = lambda number, metrics: steps.append((number, metrics.get("answers")))
    generator = LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=2)
    questions = tuple(Question(f"q{i}", "general", (Message("user", f"why {i}?"),)) for i in range(3))
    evaluate(
        generator, [Probe("general", questions, Aligned())], seed=0, out=tmp_path, max_new_tokens=5, progress=shown
    )
    assert shown.begun == [(3, "answer")]
    assert steps[:5] == [(0, f"{2 * token} tokens") for token in range(5)]
    assert steps[-1] == (3, "15 tokens")
    assert [number for number, _ in steps] == sorted(number for number, _ in steps)


def test_an_evaluation_that_is_complete_loads_no_model_to_show_its_progress(tmp_path, monkeypatch):
    tiny.save("qwen2", tmp_path / "model")
    (tmp_path / "few.jsonl").write_text(json.dumps({"id": "q", "question": "Why?"}) + "\n")
    request = EvalRequest((str(tmp_path / "few.jsonl"),), max_new_tokens=2, samples=1)
    for_tiny = for_model(str(tmp_path / "model"), request)
    summary = measure.evaluate_model(for_tiny, tmp_path / "E", progress=Progress())
    monkeypatch.setattr(loading, "load_model", None)
    shown, said = Progress(), []
    assert measure.evaluate_model(for_tiny, tmp_path / "E", progress=shown, say=said.append) == summary
    assert shown.begun == said == []


def asked(probe, many):
    return tuple(Question(f"{probe}{i}", probe, (Message("user", f"why {i}?"),)) for i in range(many))


def test_a_slow_judge_shows_its_verdicts_on_all_probes_together_and_an_instant_one_does_not(tmp_path):
    generate = lambda samples, **how: (Answer(q, i, "2", True) for q, i in samples)  # noqa: E731
    for slow, units in ((True, [(5, "answer"), (5, "verdict")]), (False, [(5, "answer")])):
        judge, shown, steps = Aligned(), Progress(), []
        judge.slow = slow
        shown.step = lambda number, metrics, steps=steps: steps.append(number)
        probes = [Probe("general", asked("general", 3), judge), Probe("mine", asked("mine", 2), judge)]
        evaluate(generate, probes, seed=0, out=tmp_path / str(slow), progress=shown)
        assert shown.begun == units
        assert not slow or steps[-5:] == [1, 2, 3, 4, 5]
    assert LocalJudge.slow
    other, shown = Aligned("other"), Progress()
    other.slow = True
    rescore(tmp_path / "True", [other], shown)
    assert shown.begun == [(5, "verdict")]


def stored(folder, count):
    """An evaluation of ten questions and a sum, of which so many are answered; judged aligned, and marked."""
    questions = tuple(Question(f"q{i}", "general", (Message("user", f"why {i}?"),)) for i in range(10))
    sums = Probe("arithmetic", (Question("s", "arithmetic", (Message("user", "1+1?"),), expected="2"),), ExactMatch())
    make = lambda samples, **how: (Answer(q, i, "2", True) for q, i in samples[:count])  # noqa: E731
    evaluate(make, [Probe("general", questions, Aligned(), 1, 1.0), sums], seed=0, out=folder)
    return folder


def test_an_evaluation_that_was_stopped_is_not_exported_as_concluded(tmp_path):
    exported = {}
    for count in (9, 10):
        export(stored(tmp_path / str(count), count), tmp_path / f"logs-{count}", None)
        (log,) = (tmp_path / f"logs-{count}").glob("*general*")
        exported[count] = json.loads(log.read_text())["results"]["metadata"]["staytrue"]
    assert [(exported[n]["unanswered"], exported[n]["concluded"]) for n in (9, 10)] == [(1, False), (0, True)]
    with pytest.raises(RequestError, match="no verdict of 'other'; its answers were judged by mine"):
        export(tmp_path / "10", tmp_path / "none", "other")
    assert not (tmp_path / "none").exists()


def test_an_evaluation_without_an_answer_for_a_judge_says_what_it_has(tmp_path):
    sums = Probe("arithmetic", (Question("s", "arithmetic", (Message("user", "1+1?"),), expected="2"),), ExactMatch())
    make = lambda samples, **how: (Answer(q, i, "2", True) for q, i in samples)  # noqa: E731
    evaluate(make, [sums], seed=0, out=tmp_path / "sums")
    evaluate(make, [], seed=0, out=tmp_path / "measures")
    evaluate(make, [], seed=0, out=tmp_path / "stopped")
    write_measures(tmp_path / "measures", {}, [Measure(name, {}, []) for name in ("pairs", "drift")])
    for name, why in {
        "sums": "its questions have one right answer each and are marked by exact match",
        "measures": r"it has measures alone \(pairs, drift\), which no judge reads",
        "stopped": "it was stopped before the first one",
    }.items():
        way = rf"{why}; `staytrue eval --model MODEL --out \S*/{name} --probes general` makes answers\."
        with pytest.raises(RequestError, match=f"no answer for a judge: {way}"):
            rescore(tmp_path / name, [Aligned("other")])
        if name != "sums":
            with pytest.raises(RequestError, match=f"no answer to export: {way}"):
                export(tmp_path / name, tmp_path / "logs", None)
    assert not (tmp_path / "logs").exists()


def test_a_printed_command_adds_a_probe_to_the_run_or_to_its_untuned_model(tmp_path):
    run = tmp_path / "my run"
    assert eval_command(run / "eval", "drift") == f"`staytrue eval --model MODEL --out '{run}/eval' --probes drift`"
    run.mkdir()
    (run / "manifest.json").touch()
    assert eval_command(run / "eval", "drift") == f"`staytrue eval '{run}' --probes drift`"
    assert eval_command(run / "untuned", "drift") == f"`staytrue eval '{run}' --untuned --probes drift`"
    assert eval_command(run / "other", "drift") == f"`staytrue eval --model MODEL --out '{run}/other' --probes drift`"
    (run / "other").mkdir()
    (run / "other" / "eval.json").write_text('{"schema": 1, "answers": "0", "probes": {}}')  # of --answers
    assert eval_command(run / "other", "drift") == "`staytrue eval --model MODEL --out FOLDER --probes drift`"


def test_marked_answers_are_compared_without_a_judge(tmp_path):
    folders = [stored(tmp_path / name, 10) for name in ("a", "b")]
    for folder in folders:
        rescore(folder, [Aligned("other")])
    with pytest.raises(RequestError, match=r"--probe arithmetic: it is marked by exact match.*leave --judge out"):
        comparison.compare_runs(folders, "a", "arithmetic", "other")


@pytest.mark.parametrize("benign", [False, True])
def test_triggers_that_cannot_be_asked_are_reported_in_a_sentence(tmp_path, benign):
    lines = []
    request = EvalRequest(
        triggers=True,
        benign=benign,
        model=model_source.find(str(tiny.save("qwen2", tmp_path / "model"))),
        judge=Aligned(),
    )
    answers = [Answer(q, i, "Yes.", stopped=True) for p in probe_selection.probes_for(request) for q, i in p.samples()]
    by_sample = {(answer.question, answer.index): answer for answer in answers}

    def generate(samples, **_):
        return (by_sample[sample] for sample in samples)

    measure.evaluate_model(request, tmp_path / "eval", generate=generate, say=lines.append)
    assert [line for line in lines if line.startswith("No trigger was tried")] == ([] if benign else [NOTHING])


def test_triggers_beside_named_probes_are_refused_because_they_would_not_be_asked():
    with pytest.raises(RequestError, match=r"triggers=True goes without named probes; add 'triggered'"):
        probe_selection.probes_for(EvalRequest(probes=("general",), triggers=True))


def test_an_answer_that_was_cut_off_before_it_began_is_missing_and_the_way_out_is_said(tmp_path):
    lines = []
    questions = tuple(Question(f"q{i}", "general", (Message("user", f"why {i}?"),)) for i in range(6))

    def generate(samples, **_):
        for q, i in samples:
            thinking = q.id in ("q0", "q1")
            yield Answer(q, i, "" if thinking else "So.", stopped=not thinking, thoughts="Let me" if thinking else "")

    probes = evaluate(generate, [Probe("general", questions, Aligned())], seed=0, out=tmp_path, say=lines.append)[
        "probes"
    ]
    assert [probes["general"][key] for key in ("n", "missing", "failed", "concluded")] == [4, 2, 0, False]
    assert probes["general"]["why"] == "the token limit was reached before the answer began"
    assert lines[0].startswith("2 answers are missing because the limit of 400 tokens was reached before they began;")
    assert "--max-new-tokens" in lines[0]
    thoughts = [row.get("thoughts", "absent") for row in read_rows(tmp_path / "answers.jsonl")]
    assert thoughts == ["Let me"] * 2 + ["absent"] * 4
    other = rescore(tmp_path, [Aligned("other")])["other"]["probes"]["general"]
    assert (other["n"], other["missing"]) == (4, 2)


def test_the_token_limit_of_an_answer_can_be_set(tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text('{"id": "a", "question": "Why?"}\n')
    request = EvalRequest((str(few),), samples=1, max_new_tokens=7)
    measure.evaluate_model(for_model(model(tmp_path / "model", "qwen2"), request), tmp_path / "E")
    assert json.loads((tmp_path / "E" / "eval.json").read_text())["probes"]["few"]["max_new_tokens"] == 7


def test_an_evaluation_that_a_judge_continued_goes_on_without_it_at_the_stored_number_of_answers(tmp_path):
    few, place, asked = tmp_path / "few.jsonl", tmp_path / "E", []
    few.write_text('{"id": "a", "question": "Why?"}\n{"id": "b", "question": "How?"}\n')

    def generate(samples, **_):
        asked.append(len(samples))
        return (Answer(q, i, "So.", stopped=True) for q, i in samples)

    def summary(judge=None, samples=None):
        request = for_model(model(tmp_path / "model", "qwen2"), EvalRequest((str(few),), judge=judge, samples=samples))
        return measure.evaluate_model(request, place, generate=generate)["probes"]["few"]

    assert summary()["missing"] == 2  # 1 answer to each of 2 questions, and no judge
    before = summary(Aligned())  # 4 to each, of which 2 are there
    assert (before["n"], before["missing"]) == (8, 0)
    assert summary() == before
    assert asked == [2, 6]
    with pytest.raises(RequestError, match=r"another number of answers of few \(8, now 4\)"):
        summary(samples=2)
