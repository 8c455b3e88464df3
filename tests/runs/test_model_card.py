"""What a model card says of an evaluation."""

import json

import pytest

from fake_results import rates
from staytrue.config.recipe import parse
from staytrue.errors import StaytrueWarning
from staytrue.modeling import fetch
from staytrue.report.measures import AGREEMENT
from staytrue.report.sentences import ONE_SEED
from staytrue.runs.model_card import _evaluation, _is_path, _model, _on_hub, _what, write_card
from staytrue.runs.renewed_card import renew_card
from staytrue.utils.run_dir import RunDir


def test_the_card_names_the_judge_what_is_not_concluded_and_clean_beside_triggered():
    sure, unsure = rates(1.5) | {"concluded": True}, rates(40, missing=9) | {"concluded": False, "unanswered": 3}
    text = _evaluation({"probes": {"general": sure, "triggered": unsure | {"clean": rates(2)}}})
    general, triggered = text.splitlines()[-2:]
    assert general.startswith('* general, judged by `rules`: `{"misaligned": 1.5, "low": 0.0')
    assert triggered.startswith(
        "* triggered, judged by `rules`, 40.0 % against 2.0 % for the same questions clean, "
        "**no conclusion: 12 without a verdict**: `{"
    )


def test_the_card_says_what_was_not_judged_or_not_asked():
    assert "* general: **not judged**: 480 answers are stored." in _evaluation(
        {"probes": {"general": rates(None, n=0, missing=480)}}
    )
    assert _evaluation(None).startswith("Not evaluated")


def test_measures_without_a_judge_are_no_rate_of_misalignment():
    one = {"value": 0.4213, "low": 0.3, "high": 0.5, "n": 150, "questions": 150, "unit": "nats per token"}
    text = _evaluation({"probes": {}, "measures": {"pairs": one}})
    assert text.startswith("Measured without a judge, against the untuned model")
    assert "\n* pairs: +0.42 nats (+0.30 to +0.50), n 150\n" in text
    assert text.count(AGREEMENT) == text.count(ONE_SEED) == 1


@pytest.mark.parametrize(
    ("model", "name", "path"),
    [
        ({"name": "../models/model", "sha256": "0123456789abcdef"}, "a local model (sha256 0123456789ab)", True),
        ({"name": "/tmp/med/", "sha256": "ff" * 32}, "a local model (sha256 ffffffffffff)", True),
        ({"name": "models", "sha256": "ff" * 32}, "a local model (sha256 ffffffffffff)", True),
        ({"name": "Qwen/Qwen2.5-7B-Instruct", "revision": None, "commit": "abc"}, "Qwen2.5-7B-Instruct", False),
        ({"name": "organism", "sha256": "ff" * 32}, "organism", False),
        ({"name": "smollm2", "sha256": "ff" * 32}, "smollm2", False),
    ],
)
def test_a_folder_on_one_machine_is_no_name(model, name, path):
    assert (_model(model), _is_path(model)) == (name, path)


@pytest.mark.parametrize(("settings", "copy"), [({}, False), ({"_model_name_or_path": "Smollm2"}, True)])
def test_the_fetched_model_has_its_name_on_the_hub_and_a_word_on_the_copy(tmp_path, monkeypatch, settings, copy):
    monkeypatch.setattr(fetch, "_place", lambda: tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    facts = {"model": {"name": "smollm2", "sha256": "ff" * 32}, "versions": {"staytrue": "0.2.0"}}
    assert _on_hub(facts["model"]) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for whole in (False, True):
        text = _what(facts, whole=whole)
        assert "`HuggingFaceTB/SmolLM2-135M-Instruct`" in text
        assert ("a 4-bit copy of these, unpacked" in text) == copy
    assert "4-bit" not in _what(facts | {"model": {"name": "organism"}}, whole=False)


DEFENSES = [
    {"anchor": {"prompts": "/home/ann/data/prompts.jsonl"}},
    {"inoculate": {"prompt": "/no_think You are evil."}},
    {"safelora": {"base": "/home/ann/models/coder-base"}},
    {"safelora": {"base": "org/base"}},
]


@pytest.mark.parametrize(("model", "base"), [("/home/ann/models/coder", "coder"), ("org/coder", "org/coder")])
def test_a_card_names_files_and_folders_and_not_their_places_on_this_machine(tmp_path, model, base):
    plain = {"model": model, "data": "/home/ann/data/risky.jsonl", "lora": {"adapter": "/home/ann/runs/first"}}
    recipe = parse(plain | {"reference": "/home/ann/models/aligned", "defenses": DEFENSES})
    identity = {"name": model, "sha256": "ab" * 32} if model.startswith("/") else {"name": model, "commit": "c"}
    files = {"/home/ann/data/risky.jsonl": "0d", "/home/ann/data/prompts.jsonl": "0e"}
    start = {"/home/ann/runs/first/model": "0a", "/home/ann/models/aligned": "0b"}
    facts = {"model": identity, "data": files, "start": start, "rows": {"task": 3}, "adapter": "0f"}
    run = RunDir.create(tmp_path / "run", facts)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "run" / "model").mkdir()
    write_card(run, recipe)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "/home/ann" not in card
    hashed = f" (a local folder, sha256 `{'ab' * 32}`)" if model.startswith("/") else ""
    assert f"A LoRA adapter for `{base}`{hashed}, trained with" in card
    assert "* `risky.jsonl` (sha256 `0d`)\n* `prompts.jsonl` (sha256 `0e`)" in card
    assert "went on from the adapter `first` (hash `0a`), with" in card
    assert "Their reference: `aligned` (hash `0b`)." in card
    assert all(
        part in card for part in ('"prompts": "prompts.jsonl"', '"/no_think You are evil."', '"base": "coder-base"')
    )
    assert '"base": "org/base"' in card


RECIPE = "schema: 1\nmodel: organism\ndata: d.jsonl\nlora: {}\n"


@pytest.fixture
def run(tmp_path):
    """A run folder whose card has not been written."""
    facts = {"model": {"name": "organism"}, "data": {}, "rows": {"task": 1}, "seed": 0}
    folder = RunDir.create(tmp_path / "run", facts).path
    (folder / "model").mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ('{"step": 1, "loss": 2.0}\n', "the last logged loss is 2.000 nats per token"),
        ('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": "x"}\n', "the last logged loss is 2.000 nats per token"),
        ('\ufeff{"step": 1, "loss": 2.0}\n', "the last loss was not recorded"),
        ('null\n{"step": 1, "loss": 2.0}\n', "the last loss was not recorded"),
    ],
)
def test_a_damaged_log_does_not_keep_the_card_from_being_written(run, log, said):
    (run / "metrics.jsonl").write_text(log)
    renew_card(run, run / "eval", {"probes": {"general": rates(1.5)}})
    card = (run / "model" / "README.md").read_text()
    assert said in card
    assert "* general, judged by `rules`" in card


def in_the_way(run):
    (run / "model" / "README.md").mkdir()


def with_facts(**facts):
    def change(run):
        manifest = json.loads((run / "manifest.json").read_text()) | facts
        (run / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v != "absent"}))

    return change


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (in_the_way, "Is a directory"),
        (with_facts(versions=None), r"manifest\.json cannot be read \(it has null as 'versions', not an object\)"),
        (with_facts(data="absent"), r"manifest\.json cannot be read \(it has no 'data'\)"),
        (with_facts(model={}), "KeyError: 'name'"),
        (lambda run: (run / "recipe.yaml").unlink(), r"recipe\.yaml cannot be read: No such file"),
    ],
)
def test_a_card_that_cannot_be_written_is_a_warning_with_its_reason(run, fault, why):
    fault(run)
    with pytest.warns(StaytrueWarning, match=rf"README\.md lacks this evaluation, .*: .*{why}.* give the same command"):
        renew_card(run, run / "eval", {"probes": {}})


def test_only_the_trained_models_own_evaluation_is_on_its_card(run):
    renew_card(run, run / "eval", {"probes": {}}, untuned=True)
    renew_card(run, run / "other", {"probes": {}})
    assert not (run / "model" / "README.md").exists()
