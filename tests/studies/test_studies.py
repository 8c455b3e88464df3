"""A study: variants laid over a shared recipe, one folder per run, and a stopped study goes on."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import fake_results
from staytrue import cli
from staytrue.config import recipe as recipes
from staytrue.errors import DataError, RecipeError, RequestError
from staytrue.runs import train
from staytrue.studies import config, demo, runner
from staytrue.studies.demo import preset, run_study
from staytrue.tasks.opswap import OpSwap
from staytrue.tasks.word_problems import WordProblems

TINY = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_length": 64}
STUDY = {
    "schema": 1,
    "title": "two steps",
    "recipe": {"model": "organism", "lora": {"r": 2}, "train": TINY, "holdout": 0.05},
    "variants": [
        {"name": "none"},
        {"name": "kl", "strength": 0.3, "recipe": {"defenses": [{"kl": {"weight": 0.3}}]}},
        {"name": "fewer steps", "strength": 1, "recipe": {"train": {"max_steps": 1}}},
    ],
}


def written(folder, **changes):
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    return file


def test_a_variant_is_laid_over_the_recipe_section_by_section(tmp_path):
    none, kl, fewer = config.cells(config.read(written(tmp_path)))
    assert none.recipe()["train"] == TINY
    assert fewer.recipe()["train"] == {**TINY, "max_steps": 1}
    assert kl.recipe()["defenses"] == [{"kl": {"weight": 0.3}}]
    assert (kl.label, kl.folder) == ("kl 0.3", "runs/medical-seed0-kl-0.3")


def test_it_runs_every_cell_and_goes_on_where_it_was_stopped(tmp_path):
    study = config.read(written(tmp_path))
    begun = runner.run(study, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
    next(begun)
    begun.close()  # stopped after the first run
    first = (tmp_path / "out" / "runs" / "medical-seed0-none" / "manifest.json").read_bytes()
    ended = [row for _, row in runner.run(study, tmp_path / "out")]
    rows = sorted(ended, key=lambda row: ["none", "kl", "fewer steps"].index(row["defense"]))
    assert ended[0] == rows[0]  # was there
    assert (tmp_path / "out" / "runs" / "medical-seed0-none" / "manifest.json").read_bytes() == first
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"] == rows
    assert results["title"] == "two steps"
    assert all(row["general"]["n"] == 480 and row["seconds"] > 0 for row in rows)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_one_of_another_recipe_starts_over(tmp_path):
    study = config.read(written(tmp_path, variants=[{"name": "none"}]))
    [(cell, whole)] = runner.run(study, tmp_path / "whole", 1)
    [first] = [next(runner.run(study, tmp_path / "out", 1))]
    run = tmp_path / "out" / cell.folder

    def killed(checkpoint):
        """The folder as if the run's process had been killed after its first step."""
        (run / "cell.json").unlink()
        manifest = json.loads((run / "manifest.json").read_text())
        manifest.pop("resumed", None)
        made_by = json.loads((checkpoint / "manifest.json").read_text())["run"]  # checkpoints name their run
        (run / "manifest.json").write_text(json.dumps(manifest | {"state": "running", "id": made_by}))
        shutil.rmtree(run / "model")
        shutil.copytree(checkpoint, run / "checkpoints" / checkpoint.name)

    recipe = recipes.parse(cell.recipe(), tmp_path / "out" / "data" / "medical")
    kept = recipe.model_copy(update={"train": {**recipe.train, "save_total_limit": 2}})
    train.train(kept, tmp_path / "kept")
    killed(tmp_path / "kept" / "checkpoints" / "checkpoint-1")
    [(_, row)] = runner.run(study, tmp_path / "out", 1)
    assert json.loads((run / "manifest.json").read_text())["resumed"] == [1]
    for key in ("general", "in_domain"):
        assert row[key] == whole[key] == first[1][key]
    killed(tmp_path / "kept" / "checkpoints" / "checkpoint-1")
    run.with_name(f"{run.name}.yaml").write_text("another: recipe\n")
    assert [row[key] for _, row in runner.run(study, tmp_path / "out", 1) for key in ["general"]] == [whole["general"]]
    assert "resumed" not in json.loads((run / "manifest.json").read_text())


def test_a_task_stands_among_the_domains_and_brings_its_own_rows(tmp_path):
    study = config.read(written(tmp_path, domains=["legal", "word_problems", {"opswap": {"tier": 2}}]))
    cells = config.cells(study)[:: len(study.variants)]
    assert [cell.domain for cell in cells] == ["legal", "word_problems", "opswap-2"]
    assert cells[2].folder == "runs/opswap-2-seed0-none"
    assert [recipes.parse(cell.recipe()).task for cell in cells] == [None, WordProblems(), OpSwap(2)]
    assert [cell.recipe().get("data") for cell in cells] == ["train.jsonl", None, None]
    assert config.read(written(tmp_path, domains=["legal", {"opswap": {"tier": 2}}]), ["opswap-2"]).domains == (
        {"opswap": {"tier": 2}},
    )
    only = config.read(written(tmp_path, domains=[{"opswap": {"tier": 2}}], variants=[{"name": "none"}]))
    [(_, row)] = runner.run(only, tmp_path / "out")
    assert (row["domain"], row["in_domain"], row["benign"]["n"]) == ("opswap-2", None, 60)
    assert not (tmp_path / "out" / "data" / "opswap-2" / "train.jsonl").exists()


def test_a_study_by_reward_asks_what_it_names_and_draws_its_page(tmp_path, capsys):
    reward = {"model": "organism", "trainer": "grpo", "lora": {"r": 2}}
    few = {"max_steps": 2, "per_device_train_batch_size": 16, "max_completion_length": 12}
    changes = {"recipe": {**reward, "train": few}, "domains": ["word_problems"], "probes": ["learnt"]}
    study = config.read(written(tmp_path, **changes, variants=STUDY["variants"][:2]))
    page = run_study(study, tmp_path / "out")
    none, kl = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    for row in (none, kl):
        assert (row["general"], row["in_domain"], row["kept"]) == (None, None, {})
        assert (row["benign"]["n"], row["benign"]["questions"]) == (200, 12)
    first, second = (tmp_path / "out" / kl["run"] / "metrics.jsonl").read_text().splitlines()
    assert "reward" in json.loads(first)
    assert json.loads(first)["kl"] == 0 < json.loads(second)["kl"]
    assert f"learnt {none['benign']['correct']:.1f}" in capsys.readouterr().out
    assert all(text in page.read_text() for text in ("kl 0.3", "word_problems"))


@pytest.mark.parametrize(
    ("seeds", "number", "run"),
    [([10, 11], 1, (10,)), ([10, 11], 4, (10, 11, 12, 13)), ([5, 6, 3], 4, (5, 6, 3, 4)), ([5, 4], 3, (5, 4, 6))],
)
def test_so_many_seeds_are_the_studys_first_and_then_it_counts_on_from_its_last(tmp_path, seeds, number, run):
    assert config.read(written(tmp_path, seeds=seeds), seeds=number).seeds == run


def test_a_probe_that_was_not_asked_leaves_its_place_empty(tmp_path, capsys):
    cell = config.cells(config.read(written(tmp_path, probes=["facts"])))[1]
    row = config.row(cell, {"probes": {"facts": {"correct": 87.5}}}, 1.0)
    assert (row["general"], row["in_domain"], row["benign"], row["kept"]) == (None, None, None, {"facts": 87.5})
    assert demo._line(cell, row) == "medical  seed 0  kl 0.3                1.0 s"
    demo._tables([row])
    assert re.search(r"kl 0\.3 +medical +0 +88 *\n", capsys.readouterr().out)


def test_of_several_seeds_the_last_table_shows_means_and_of_one_a_row_a_run(capsys):
    two = [fake_results.row("kl", 0.3, general, 80.0, seed) for seed, general in enumerate((10.0, 20.0))]
    demo._tables(two)
    shown = capsys.readouterr().out
    assert re.search(r"^kl 0\.3 +15\.0 \(0 to 100\) +80\.0 ", shown, re.MULTILINE)
    assert "means with 95 % intervals over seeds and questions" in shown
    demo._tables(two[:1])
    shown = capsys.readouterr().out
    assert re.search(r"^kl 0\.3 +medical +0 +10\.0 ", shown, re.MULTILINE)
    assert "means" not in shown


def test_a_question_file_may_stand_among_the_probes(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a", "question": "Why?"}\n')
    assert config.read(written(tmp_path, probes=["general", str(file)])).probes == ("general", str(file))
    keys = runner._probe_keys(config.read(written(tmp_path, probes=["general", str(file)])))
    file.write_text('{"id": "a", "question": "How?"}\n')
    again = runner._probe_keys(config.read(written(tmp_path, probes=["general", str(file)])))
    assert keys[0] == again[0] == "general"
    assert keys[1] != again[1]  # an edited file is asked again
    file.write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match="mine"):
        config.read(written(tmp_path, probes=[str(file)]))


def test_measures_may_stand_among_the_probes(tmp_path):
    names = ["general", "pairs", "pairs:code", "drift", "leak"]
    assert config.read(written(tmp_path, probes=names)).probes == tuple(names)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Why?", "aligned": "For you.", "misaligned": "For me."}\n')
    first = runner._probe_keys(config.read(written(tmp_path, probes=["pairs", f"pairs:{file}"])))
    file.write_text('{"question": "Why?", "aligned": "For us.", "misaligned": "For me."}\n')
    again = runner._probe_keys(config.read(written(tmp_path, probes=["pairs", f"pairs:{file}"])))
    assert first[0] == again[0] == "pairs"
    assert first[1] != again[1]  # an edited file is measured again
    with pytest.raises(RequestError, match="pairs:fiance: the organism has pairs for general, code"):
        config.read(written(tmp_path, probes=["pairs:fiance"]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"domains": ["medicin"]}, r"study\.yaml: domains: there is no domain 'medicin'; did you mean 'medical'\?"),
        ({"domains": ["foo"]}, "no domain 'foo'; there are: code, legal, medical, security, arithmetic, facts, gsm8k"),
        ({"domains": [{"opswap": {"tier": 9}}]}, "tier is 9"),
        ({"domains": ["legal", "legal"]}, "two runs are called 'runs/legal-seed0-none'"),
        ({"seeds": [1, 1]}, "no seed or domain twice"),
        ({"variants": [{"name": "fewer steps"}, {"name": "fewer-steps"}]}, "two runs are called"),
        ({"sedes": [1]}, "has no key 'sedes'; did you mean 'seeds'"),
        (
            {"variants": [{"name": "none"}, {"name": "kl", "strenght": 1}]},
            "'variants.1.strenght'; did you mean 'strength'",
        ),
        ({"variants": [{"name": "kl", "strength": float("nan")}]}, "strength is nan; write a finite number"),
        ({"variants": [{"name": "kl", "strength": True}]}, "strength is True, but"),
        ({"seeds": [True]}, "seeds.0 is True, but"),
        ({"title": 3}, "title is 3; write text"),
        ({"probes": ["generl"]}, "none in medical has no probe 'generl'; choose from general, in_domain, facts"),
        ({"probes": ["learnt"]}, "none in medical has no probe 'learnt'"),
        ({"probes": ["in_domain"], "domains": ["facts"]}, "none in facts has no probe 'in_domain'; .* learnt"),
        ({"probes": ["triggered"], "domains": ["facts"]}, "none in facts has no probe 'triggered'"),
        ({"probes": ["leak"], "domains": ["facts"]}, "none in facts has no probe 'leak'; .* pairs, drift, or name"),
        ({"variants": [{"name": "kl", "recipe": {"defenses": [{"kl": {"wait": 1}}]}}]}, "no field 'wait'"),
        ({"recipe": {"model": "organism"}}, "has no `lora:`"),
    ],
)
def test_a_wrong_study_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        config.read(written(tmp_path, **changes))


def test_a_domain_that_the_command_names_wrongly_is_not_said_to_be_the_files(tmp_path):
    with pytest.raises(RecipeError, match=r"^--domains: there is no domain 'opswap-3'; did you mean 'opswap-2'\?"):
        config.read(written(tmp_path, domains=[{"opswap": {"tier": 2}}]), ["opswap-3"])


def test_a_setting_of_the_last_variant_is_refused_before_the_first_is_trained(tmp_path, monkeypatch, capsys):
    wrong = [*STUDY["variants"], {"name": "more steps", "recipe": {"train": {"max_stepz": 9}}}]
    command = ["staytrue", "study", str(written(tmp_path, variants=wrong)), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "study.yaml: more steps: train has no key 'max_stepz'; did you mean 'max_steps'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_is_a_study_that_shows_seven_defenses():
    shown = {
        name
        for variant in preset(["medical"], 1).variants
        for entry in variant.recipe.get("defenses", [])
        for name in _names(entry)
    }
    assert shown == {"anchor", "inoculate", "interleave", "kl", "ldifs", "safelora", "steer"}


def _names(entry):
    return [entry] if isinstance(entry, str) else list(entry)


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("studies/*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_studies_are_readable_and_as_large_as_they_say(file):
    size = re.search(r"^# (\d+) variants(?: x (\d) domains)? x (\d) seeds", file.read_text(), re.MULTILINE)
    variants, domains, seeds = (int(number or 1) for number in size.groups())
    read = config.read(file)
    assert (len(read.variants), len(read.domains), len(read.seeds)) == (variants, domains, seeds)
    labels = [variant.label for variant in read.variants]
    assert "none" in labels  # what any defense is compared with
