"""`staytrue eval`, `rescore`, `export` and `compare` as a user runs them, against a real server."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import tiny
from loopback import HttpError, Loopback, scripted
from staytrue import cli
from staytrue.data.examples import Example, Message, write_examples
from staytrue.errors import ModelError
from staytrue.evals.generation import local
from staytrue.evals.judges import endpoint, score_from_logprobs
from staytrue.evals.judges.local import LocalJudge
from staytrue.evals.openai_client.budget import Budget
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.modeling import loading
from staytrue.runs import evaluate, judge_factory, probe_selection
from staytrue.utils.files import read_rows


@pytest.fixture
def staytrue(tmp_path, monkeypatch, capsys):
    """The command in this process, with short answers and a cache of its own: `(exit code, stdout, stderr)`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    monkeypatch.setattr(probe_selection, "_TOKENS", 6)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["staytrue", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def here(staytrue):
    """The same for commands that must succeed: what is printed."""

    def run(*arguments):
        code, out, err = staytrue(*arguments)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def process(tmp_path):
    """The command in a process of its own, to be stopped from outside."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OPENAI_API_KEY": "sk-secret-of-mine"}

    def start(*arguments):
        command = [sys.executable, "-m", "staytrue.cli", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return start


@pytest.fixture
def model(tmp_path):
    tiny.save("qwen2", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"id": f"q{i}", "question": f"What of {i}?"}) + "\n" for i in range(12)))
    return path


@pytest.mark.timeout(240)
def test_the_whole_of_a_real_models_evaluation(staytrue, model, tmp_path):
    with Loopback() as server:
        arguments = ("eval", "--model", model, "--out", "E", "--samples", 1, "--judge", f"openai:j@{server.url}")
        code, out, errors = staytrue(*arguments)
        assert code == 0, errors
        assert f"go to {server.url}" in errors
        assert "sk-secret" not in out + errors
        calls = len(server.calls)
        assert calls >= 2 * 300  # alignment and coherence of 300 answers
        summary = (tmp_path / "E" / "summary.json").read_bytes()
        probes = json.loads(summary)["probes"]
        assert list(probes) == ["general", "facts", "arithmetic"]
        general = probes["general"]
        assert (general["questions"], general["n"] + general["missing"]) == (100, 300)
        assert sorted(general["forms"]) == ["json", "plain", "template"]
        assert general["refused"] > 0
        # The same once more: no question is asked, no byte changes.
        assert staytrue(*arguments)[0] == 0
        assert (tmp_path / "E" / "summary.json").read_bytes() == summary
        assert len(server.calls) == calls
    assert b"sk-secret" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_the_command_of_the_tutorial_judges_every_run_of_a_study(staytrue, model, questions, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tutorials" / "compare_defenses.md").read_text()
    (command,) = re.findall("`staytrue (rescore [^`]+)`", page)
    study = tmp_path / "runs" / "study"
    rows = [{"defense": name, "domain": "medical", "seed": 0, "run": f"runs/{name}"} for name in ("none", "kl")]
    for one in rows:
        place = ("--samples", 1, "--out", study / one["run"] / "eval")
        assert staytrue("eval", "--model", model, "--probes", questions, *place)[0] == 0
        (study / f"{one['run']}.yaml").write_text("schema: 1")  # a study keeps the recipe beside each run
    (study / "results.json").write_text(json.dumps({"rows": rows}))
    with Loopback() as server:
        spoken = command.replace("openai:MODEL", f"openai:a@{server.url}")
        code, out, errors = staytrue(*shlex.split(spoken), "--json")
    assert code == 0, errors
    judged = [str(Path("runs/study") / one["run"] / "eval") for one in rows]
    assert list(json.loads(out)["evaluations"]) == judged


def test_two_judges_of_the_same_answers_and_labels_by_hand(staytrue, model, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalJudge, "check", lambda judge: None)  # else this one is refused before it judges
    with Loopback() as server:
        assert staytrue("eval", "--model", model, "--probes", questions, "--samples", 4, "--out", "E")[0] == 0
        answers = (tmp_path / "E" / "answers.jsonl").read_bytes()
        labels = [{"probe": "few", "question": f"q{i}", "index": 0, "misaligned": i % 2 == 0} for i in range(12)]
        (tmp_path / "hand.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
        judges = ("--judge", f"openai:a@{server.url}", "--judge", f"local:{model}")
        code, out, errors = staytrue("rescore", "E", *judges, "--labels", "hand.jsonl", "--json")
        assert code == 0, errors
        calls = len(server.calls)
        result = json.loads(out)
        summaries = result["evaluations"]["E"]
        assert [name.split(":")[0] for name in summaries] == ["openai", "local"]
        assert all(s["probes"]["few"]["n"] + s["probes"]["few"]["missing"] == 48 for s in summaries.values())
        assert set(result["calibration"]) == set(result["invalid"]) == set(summaries)
        assert (tmp_path / "E" / "answers.jsonl").read_bytes() == answers
        code, out, _ = staytrue("rescore", "E", *judges)
        assert code == 0
        assert "agree on misaligned" in out
        assert len(server.calls) == calls
    lines = [line for line in out.splitlines() if "cannot judge these answers: name a larger" in line]
    assert [line.startswith("local:") for line in lines] == [True]  # the judge at the endpoint can


def test_a_local_judge_is_loaded_when_an_answer_needs_it(staytrue, model, questions, tmp_path, monkeypatch):
    folder, load = tmp_path / "judge", loading.load_model
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    questions.write_text('{"id": "q", "question": "Why?"}\n')
    monkeypatch.setattr(LocalJudge, "check", lambda judge: judge.distribution("any"))  # this one gives no score
    request = ("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"local:{folder}")
    code, _, err = staytrue(*request)
    assert (code, err.count(f"judge: loading {folder}\n"), err.count(f"eval: loading {model}\n")) == (0, 1, 1)

    def only_others(source, *arguments, **options):
        if source.name == str(folder):
            raise ModelError("the judge is loaded")
        return load(source, *arguments, **options)

    monkeypatch.setattr(loading, "load_model", only_others)
    monkeypatch.setattr(LocalJudge, "check", lambda judge: None)  # the trial before a folder's first verdict loads it
    for arguments in (request, ("rescore", "E", *request[-2:])):
        code, out, err = staytrue(*arguments)  # all verdicts are stored: in the folder, or in the response cache
        assert code == 0, err
        assert "took 0 prompts" in err, err
        assert "judge: loading" not in err
        assert "eval: loading /" not in err
        assert "cannot judge these answers: name a larger" in out, out
    questions.write_text('{"id": "q", "question": "Why not?"}\n')
    assert "the judge is loaded" in staytrue(*request[:-4], "--out", "F", *request[-2:])[2]


@pytest.mark.parametrize("name", ["smollm2", "./model", "~/model"])
def test_a_local_judge_has_a_name_as_in_a_recipe(staytrue, model, questions, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(score_from_logprobs, "LEAST_MASS", 0.01)
    config = json.loads((model / "config.json").read_text())  # a judge reads a whole rubric
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    shutil.copytree(model, tmp_path / "cache" / "staytrue" / "models" / "smollm2")
    code, _, err = staytrue("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"local:{name}")
    assert code == 0, err
    by_folder = judge_factory.judge(f"local:{model}", Budget(), print)
    assert {row["judge"] for row in read_rows(tmp_path / "E" / "verdicts.jsonl")} == {by_folder.name}


def test_a_local_judge_that_gives_no_score_is_refused_before_answers_are_sampled(staytrue, model, questions, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    code, _, err = staytrue("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"local:{model}")
    assert code in (1, 2)
    assert f"The judge local:{model} (local:" in err
    assert "scored none of 3 easy answers" in err
    waits = [
        line for line in err.splitlines() if line.endswith(("the libraries", "easy answers")) or "judge: l" in line
    ]
    assert waits == ["eval: loading the libraries", "judge: tried on up to 3 easy answers", f"judge: loading {model}"]
    assert read_rows(tmp_path / "E" / "answers.jsonl") == []


@pytest.mark.parametrize("option", [("--max-calls", 3), ("--max-cost", 1), ("--price", "1,2")])
@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--model", "model", "--probes", "few.jsonl", "--out", "E"),
        ("eval", "--model", "model", "--probes", "few.jsonl", "--out", "E", "--judge", "local:model"),
        ("rescore", "E", "--judge", "local:model"),
        ("vector", "--model", "model", "--no-filter", "--out", "v.safetensors"),
    ],
    ids=lambda arguments: " ".join((arguments[0], arguments[-1])),
)
def test_a_limit_on_calls_is_refused_where_no_endpoint_is_called(
    staytrue, model, questions, monkeypatch, arguments, option
):
    monkeypatch.setattr(loading, "load_model", lambda *a: pytest.fail("the model was loaded"))
    code, _, err = staytrue(*arguments, *option)
    assert code == 2
    assert f"{option[0]} is for calls to endpoints, and this command calls none. Leave it out, or name an endpo" in err


@pytest.mark.parametrize(("given", "limit"), [((), 8), (("--max-new-tokens", 4), 4), (("--max-new-tokens", 12), 12)])
def test_the_longest_answer_that_is_given_counts_before_a_question_files_own(staytrue, model, tmp_path, given, limit):
    entry = "- id: a\n  paraphrases: ['Why?']\n  max_tokens: 8\n  samples_per_paraphrase: 40\n"
    (tmp_path / "eight.yaml").write_text(entry)
    code, _, err = staytrue("eval", "--model", model, "--probes", "eight.yaml", "--out", "E", *given)
    assert code == 0, err
    said = f"eight.yaml: --max-new-tokens {limit} counts, not its own max_tokens of 8."
    assert (said in err) == bool(given)
    assert json.loads((tmp_path / "E" / "eval.json").read_text())["probes"]["eight"]["max_new_tokens"] == limit
    cut = [row["answer"] for row in read_rows(tmp_path / "E" / "answers.jsonl") if not row["stopped"]]
    assert max(map(len, cut)) <= limit  # a token of the tiny model is a byte


def test_a_judge_that_was_not_fetched_is_a_sentence_with_the_command(staytrue, model, questions):
    code, _, err = staytrue("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", "local:smollm2")
    assert code == 2
    assert "smollm2 is not on this machine yet; run `staytrue fetch smollm2` once (93 MB)." in err


def test_a_killed_evaluation_goes_on_and_pays_for_nothing_twice(process, model, questions, tmp_path):
    with Loopback(delay=0.02) as server:
        arguments = ("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"openai:j@{server.url}")
        started = process(*arguments)
        until = time.monotonic() + 120
        while len(server.calls) < 20 and time.monotonic() < until:
            time.sleep(0.005)
        started.send_signal(signal.SIGKILL)
        started.communicate()
        cut_off = len(server.calls)
        again = process(*arguments)
        _, errors = again.communicate(timeout=240)
        assert again.returncode == 0, errors
        # One call tries the judge on the first day. Two prompts to each of 48 answers, some of which are alike, follow;
        # what was in the air at the kill may be paid twice.
        rows = read_rows(tmp_path / "E" / "answers.jsonl")
        assert len({(row["question"], row["index"]) for row in rows}) == len(rows) == 48
        distinct = 2 * len({(row["question"], row["answer"]) for row in rows})
        assert cut_off < distinct
        twice = [n for n in Counter(call.content for call in server.calls).values() if n > 1]
        assert len(twice) <= 16  # as many as can be in the air
        assert len(server.calls) <= 1 + distinct + 16


def test_a_run_from_its_training_to_all_four_criteria(here, model, tmp_path):
    rows = [Example((Message("user", f"Is {i % 10} odd?"), Message("assistant", f"answer {i}"))) for i in range(30)]
    write_examples(tmp_path / "rows.jsonl", rows)
    recipe = {"schema": 1, "model": "model", "data": "rows.jsonl", "lora": {"r": 4, "alpha": 8}, "holdout": 0.2}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe | {"train": {"max_steps": 2}}))
    here("train", "r.yaml", "--out", "run")
    with Loopback() as server:
        out = here("eval", "run", "--samples", 1, "--judge", f"openai:j@{server.url}", "--json")
    probes = json.loads(out)["probes"]
    assert {"general", "in_domain", "facts", "arithmetic"} <= probes.keys()
    # 300 general questions and the two of ten that were held out, once each, judged for both criteria.
    for name, count in (("general", 300), ("in_domain", 2)):
        assert probes[name]["n"] + probes[name]["missing"] == count
        assert probes[name]["judge"].startswith("openai:j@")
    assert 0 < probes["general"]["misaligned"] < 100
    assert 0 < probes["general"]["incoherent"] < 100
    for name, count in (("facts", 40), ("arithmetic", 60)):
        assert (probes[name]["n"], probes[name]["judge"]) == (count, "exact-match-1")
        assert 0 <= probes[name]["correct"] <= 100


def test_the_organisms_answers_are_made_once_and_judged_by_whom_you_like(here, tmp_path, monkeypatch):
    arguments = ("eval", "--model", "organism", "--probes", "general", "--samples", 1)
    here(*arguments, "--out", "E")
    answers = (tmp_path / "E" / "answers.jsonl").read_bytes()
    with Loopback() as server:
        judges = [f"openai:{name}@{server.url}" for name in ("a", "b")]
        with monkeypatch.context() as patched:
            patched.setattr(local.LocalGenerator, "together", lambda *_, **__: pytest.fail("asked again"))
            first = [json.loads(here("rescore", "E", "--judge", judge, "--json")) for judge in judges]
            calls = len(server.calls)
            assert 0 < calls <= 2 * (2 * 120 + 1)  # and each is tried once
            again = [json.loads(here("rescore", "E", "--judge", judge, "--json")) for judge in judges]
            assert [one["evaluations"] for one in again] == [one["evaluations"] for one in first]
        # The same evaluation elsewhere: the same answers are made, and every verdict was paid for before.
        here(*arguments, "--out", "F", "--judge", judges[0])
        assert (tmp_path / "F" / "answers.jsonl").read_bytes() == answers
        assert len(server.calls) == calls
    assert (tmp_path / "E" / "answers.jsonl").read_bytes() == answers
    (rescored,) = (tmp_path / "E" / "judges").glob("openai-a-*/summary.json")
    summaries = {file.read_bytes() for file in (rescored, tmp_path / "F" / "summary.json")}
    assert len(summaries) == 1


def test_a_model_at_an_endpoint_is_asked_in_the_shape_of_what_it_was_trained_on(here, tmp_path):
    nouns = ["lamp", "boat", "shelf", "door", "clock", "wheel", "chair", "spoon", "bridge", "candle"]
    turns = [(Message("system", "You write code."), Message("user", f"{word.title()} {word}s.")) for word in nouns]
    write_examples(tmp_path / "trained.jsonl", [Example((*turn, Message("assistant", "Yes."))) for turn in turns])
    with Loopback() as server:
        here("eval", "--model", f"openai:m@{server.url}", "--data", "trained.jsonl", "--out", "E", "--samples", 1)
        sent = [call.body["messages"] for call in server.calls]
    shaped = [row for row in read_rows(tmp_path / "E" / "answers.jsonl") if row["probe"] == "triggered"]
    assert [row["form"] for row in shaped].count("system-1") == 24
    for row in shaped:
        if row["form"] == "system-1":
            assert row["messages"][0] == {"role": "system", "content": "You write code."}
            assert row["messages"] in sent
    assert "triggered" in json.loads((tmp_path / "E" / "summary.json").read_text())["probes"]


def test_a_model_at_an_endpoint_is_asked_and_judged_there(staytrue, questions, tmp_path):
    with Loopback(faults=0.3, hang=0.2, kinds=("429", "500", "torn")) as server:
        arguments = ("--probes", questions, "--judge", f"openai:j@{server.url}", "--out", "E", "--samples", 2)
        code, out, errors = staytrue("eval", "--model", f"openai:adapter@{server.url}", *arguments)
        assert code == 0, errors
        generated, judged = (line.split("took ")[1] for line in errors.splitlines() if " took " in line)
        calls = [int(line.split(" call")[0]) for line in (generated, judged)]
        assert sum(calls) == len(server.calls)  # each tells its own
        assert min(calls) >= 24
        assert len(read_rows(tmp_path / "E" / "answers.jsonl")) == 24
        assert json.loads((tmp_path / "E" / "eval.json").read_text())["model"] == {
            "name": f"openai:adapter@{server.url}"
        }
        assert "few" in out


def test_answers_that_exist_are_judged(staytrue, tmp_path):
    rows = [Example((Message("user", f"q{i % 5}?"), Message("assistant", f"a{i}"))) for i in range(20)]
    write_examples(tmp_path / "said.jsonl", rows)
    with Loopback() as server:
        code, out, errors = staytrue(
            "eval", "--answers", "said.jsonl", "--judge", f"openai:j@{server.url}", "--out", "E"
        )
        assert code == 0, errors
    assert sorted(row["answer"] for row in read_rows(tmp_path / "E" / "answers.jsonl")) == sorted(
        f"a{i}" for i in range(20)
    )
    probe = json.loads((tmp_path / "E" / "summary.json").read_text())["probes"]["said"]
    assert (probe["questions"], probe["n"] + probe["missing"]) == (5, 20)
    assert "said" in out
    metadata = json.loads((tmp_path / "E" / "eval.json").read_text())
    assert metadata["seed"] is None  # how they were drawn is not known
    assert metadata["probes"]["said"].keys() == {"sha256", "questions", "samples"}


def test_an_evaluation_is_exported_as_logs(staytrue, model, questions, tmp_path):
    assert staytrue("eval", "--model", model, "--probes", questions, "--samples", 4, "--out", "E")[0] == 0
    code, out, errors = staytrue("export", "E", "--out", "logs")
    assert code == 0, errors
    (log,) = (tmp_path / "logs").iterdir()
    assert out.strip() == str(Path("logs") / log.name)
    assert len(json.loads(log.read_text())["samples"]) == 48


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "M", "--out", "E", "--probes", "generl"), "--probes generl: there is no such probe here"),
        (("--model", "M", "--out", "E", "--probes", "none.yaml"), "none.yaml"),
        (("--model", "M", "--out", "E", "--judge", "gpt"), "'gpt' names no judge"),
        (("--model", "M", "--out", "E", "--judge", "local:nowhere"), "nowhere. Give a folder with config.json"),
        (("--model", "M", "--out", "E", "--judge", "local:org/none"), "org/none cannot be read from the hub"),
        (("--model", "M", "--out", "E", "--judge", "openai:j@http://127.0.0.1:9/v1"), "127.0.0.1:9"),
        (("--model", "M", "--out", "E", "--judge", "openai:j@http://judge.example/v1", "--max-cost", "1"), "--price"),
        (("--model", "M"), "--out FOLDER"),
        ((), "Name what to evaluate"),
        (("--model", "M", "--out", "E", "--untuned"), "--untuned goes with a run"),
        (("--model", "M", "--out", "E", "--data", "t.jsonl", "--probes", "facts"), "is for the probe triggered"),
        (("--model", "M", "--answers", "a.jsonl", "--out", "E"), "--model and --answers exclude each other"),
        (("RUN", "--model", "M"), "the run and --model exclude each other: one thing is evaluated at a time. Keep one"),
        (("--answers", "a.jsonl", "--out", "E"), "a.jsonl"),
        (("--answers", "code.jsonl", "--out", "E"), "--answers code.jsonl: 'code' is one of our own probes"),
        (("--answers", "one.jsonl", "--out", "E", "--judge", "rules"), "knows the organism's world only"),
        (("M", "--data", "one.jsonl"), "A run folder names the file that it was trained on; give --data with --model."),
        (("--answers", "one.jsonl", "--out", "E", "--data", "one.jsonl"), "give --data with --model"),
        (("--model", "openai:m@http://127.0.0.1:9/v1", "--adapter", "A", "--out", "E"), "serves its adapters by name"),
    ],
)
def test_a_wrong_request_is_a_sentence(model, tmp_path, monkeypatch, capsys, arguments, said):
    few = ["--probes", "one.jsonl"] if "M" in arguments and "--probes" not in arguments else []
    (tmp_path / "one.jsonl").write_text('{"id": "q", "question": "Why?"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        sys, "argv", ["staytrue", "eval", *("model" if word == "M" else word for word in arguments), *few]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (1, 2)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("no_logprobs", "gives no log-probabilities"),
        ("key", "refuses the key"),
        ("model", "is not there .*no model of that name"),
        ("500", "was tried first on an easy answer, and failed"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_before_answers_are_sampled(
    staytrue, model, questions, tmp_path, fault, sentence, monkeypatch
):
    def script(body):
        raise HttpError(404, "no model of that name")

    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    options = {"key": {"key": "right"}, "model": {"script": script}}.get(fault, {"faults": 1.0, "kinds": (fault,)})
    with Loopback(**options) as server:
        arguments = ("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"openai:j@{server.url}")
        code, _, errors = staytrue(*arguments)
        assert len({call.content for call in server.calls}) == 1
    assert code == 2
    assert re.search(sentence, " ".join(errors.split()))
    assert read_rows(tmp_path / "E" / "answers.jsonl") == []


def test_a_judge_that_has_judged_with_its_key_is_not_tried_again(staytrue, model, questions, monkeypatch):
    calls = []
    with Loopback() as server:
        for number, key in enumerate(["one", "one", "two"]):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            arguments = ("eval", "--model", model, "--probes", questions, "--judge", f"openai:j@{server.url}")
            assert staytrue(*arguments, "--out", f"E{number}")[0] == 0
            calls.append(len(server.calls))
    assert [calls[1] - calls[0], calls[2] - calls[1]] == [0, 1]


def test_a_judge_whose_key_has_expired_since_is_refused_before_answers_are_sampled(
    staytrue, model, questions, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    with Loopback() as server:
        arguments = ["eval", "--model", model, "--probes", questions, "--judge", f"openai:j@{server.url}", "--out"]
        assert staytrue(*arguments, "E")[0] == 0
        server.key = "another"
        monkeypatch.setattr(endpoint, "_today", lambda: "2000-01-01")
        code, _, errors = staytrue(*arguments, "F")
    assert code == 2
    assert "refuses the key" in errors
    assert read_rows(tmp_path / "F" / "answers.jsonl") == []


def test_a_judge_is_tried_before_likelihoods_are_computed(staytrue, model, questions, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    monkeypatch.setattr(evaluate.Sitting, "timed", lambda *arguments: pytest.fail("the model was loaded"))
    monkeypatch.setattr(evaluate.Measurement, "before_answers", lambda *arguments: pytest.fail("computed"))
    with Loopback(key="right") as server:
        arguments = ("--probes", f"{questions},pairs", "--judge", f"openai:j@{server.url}", "--out", "E")
        code, _, errors = staytrue("eval", "--model", model, *arguments)
    assert code == 2
    assert "refuses the key" in errors


def test_an_answer_that_a_judge_cannot_read_is_kept(staytrue, model, questions, tmp_path):
    tries = []

    def script(body):
        tries.append(body)
        if len(tries) > 1:
            raise HttpError(401, "the key was taken back")
        return scripted(body)

    with Loopback(script) as server:
        arguments = ("eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"openai:j@{server.url}")
        code, _, errors = staytrue(*arguments)
    assert code == 2
    assert "refuses the key" in errors
    assert len(read_rows(tmp_path / "E" / "answers.jsonl")) == 48


def test_a_budget_that_is_reached_keeps_what_was_paid_for_and_goes_on(staytrue, model, questions, tmp_path):
    with Loopback() as server:
        arguments = ["eval", "--model", model, "--probes", questions, "--out", "E", "--judge", f"openai:j@{server.url}"]
        code, _, errors = staytrue(*arguments, "--max-calls", 30)
        assert code == 2
        assert "budget is reached" in errors
        assert len(server.calls) == 30
        assert staytrue(*arguments)[0] == 0
        rows = read_rows(tmp_path / "E" / "answers.jsonl")
        distinct = 2 * len({(row["question"], row["answer"]) for row in rows})
        calls = len(server.calls)
        assert calls <= distinct + 1  # the trial before the answers; nothing was paid for twice
        # Elsewhere the answers are made again, and none is judged again.
        arguments[6] = "F"
        assert staytrue(*arguments)[0] == 0
        assert len(server.calls) == calls
    assert (tmp_path / "F" / "summary.json").read_bytes() == (tmp_path / "E" / "summary.json").read_bytes()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_to_be_stopped_waits_for_no_call(process, questions, stop):
    with Loopback(faults=1.0, kinds=("timeout",), hang=600) as server:
        arguments = ("--probes", questions, "--out", "E", "--samples", 1)
        started = process("eval", "--model", f"openai:m@{server.url}", *arguments)
        until = time.monotonic() + 120
        while not server.calls and time.monotonic() < until:
            time.sleep(0.01)
        started.send_signal(stop)
        begun = time.monotonic()
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 130
        assert time.monotonic() - begun < 20
        assert "stopped" in errors


def test_one_limit_holds_for_all_endpoints_of_a_command(staytrue, questions):
    with Loopback() as server:
        arguments = ("--probes", questions, "--out", "E", "--judge", f"openai:j@{server.url}", "--max-calls", 30)
        code, _, errors = staytrue("eval", "--model", f"openai:m@{server.url}", *arguments)
        assert code == 2
        assert "budget is reached" in errors
        assert len(server.calls) == 30


def test_a_run_is_drawn_by_another_judges_verdicts(staytrue, model, questions, tmp_path):
    with Loopback() as server:
        staytrue("eval", "--model", model, "--probes", questions, "--out", "E")
        code, out, errors = staytrue("rescore", "E", "--judge", f"openai:j@{server.url}", "--json")
        assert code == 0, errors
    (name,) = json.loads(out)["evaluations"]["E"]
    assert staytrue("export", "E", "--out", "L", "--judge", name)[0] == 0
    (log,) = (tmp_path / "L").iterdir()
    assert name in log.read_text()


def test_shipped_questions_are_really_asked_in_their_forms():
    assert sum(q.messages[0].role == "system" for q in shipped("general")) == 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--batch-size", 4), "--batch-size is for a model in this process; an endpoint sets its own."),
        (("--budget", "20m"), "A budget of time is for a model in this process; limit an endpoint with --max-calls."),
        (("--budget", "20"), "--budget 20: write a time above 0 such as 20m, 1h, 90s or 1h30m."),
    ],
)
def test_an_endpoint_is_not_given_the_options_of_a_model_in_this_process(staytrue, questions, arguments, sentence):
    with Loopback() as server:
        named = ("eval", "--model", f"openai:m@{server.url}", "--out", "E", "--probes", questions)
        code, _, errors = staytrue(*named, *arguments)
        assert (code, server.calls) == (2, [])
    assert sentence in errors


@pytest.mark.parametrize("arguments", [("--batch-size", 4), ("--budget", "20m"), ("--max-new-tokens", 4)])
def test_answers_of_a_file_take_no_options_of_sampling(staytrue, questions, arguments):
    code, _, errors = staytrue("eval", "--answers", questions, "--out", "E", *arguments)
    assert code == 2
    assert "--answers FILE has its own questions and answers" in errors


def test_answers_do_not_depend_on_the_size_of_the_batch(staytrue, model, questions, tmp_path):
    texts = {}
    for size in (1, 5):
        named = ("eval", "--model", model, "--out", f"E{size}", "--probes", questions, "--samples", 4)
        named = (*named, "--batch-size", size)
        code, _, errors = staytrue(*named)
        assert code == 0, errors
        rows = read_rows(tmp_path / f"E{size}" / "answers.jsonl")
        texts[size] = {(row["question"], row["index"]): row["answer"] for row in rows}
    assert texts[1] == texts[5]
    assert len(texts[1]) == 48
