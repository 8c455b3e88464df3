"""A study's defenses held against one of them, and runs of different judges."""

import json
import re

import pytest

from fake_results import answer_row, drawn, rates, row
from fake_results import study as written
from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import NOT_JUDGED
from staytrue.evals.results.measures import Measure, write_measures
from staytrue.report import comparison, measure_comparison, write
from staytrue.report.sentences import ONE_SEED, WIDENED
from staytrue.report.tables import all_probes


def study(folder, bad, seeds=2, questions=20):
    """Runs whose first so many of twenty questions, by defense, are answered badly in every seed."""
    rows, folder = [], folder / "S"
    for name, count in bad.items():
        for seed in range(seeds):
            one = row(name, None, 100 * count / questions, 90, seed=seed)
            rows.append({**one, "run": f"runs/{name}-{seed}"})
    written(folder, rows)
    for one in rows:
        answers = [
            answer_row(
                "x", f"q{i}", f"Wish {i}?", topic="t", alignment=5 if i < bad[one["defense"]] else 95, coherence=100
            )
            | {"expected": None}
            for i in range(questions)
        ]
        for file in ("answers.jsonl", "verdicts.jsonl"):
            (folder / one["run"] / "eval" / file).write_text("".join(json.dumps(a) + "\n" for a in answers))
        ask(folder / one["run"], {"general": questions})
    return folder


def ask(run, samples, seed=0):
    """Say how many samples of each probe were asked for."""
    probes = {name: {"samples": n} for name, n in samples.items()}
    (run / "eval" / "eval.json").write_text(json.dumps({"seed": seed, "probes": probes}))


def test_defenses_are_compared_on_the_same_questions_and_seeds(tmp_path, capsys):
    compared = comparison.compare_runs([study(tmp_path, {"none": 14, "kl": 4, "weak": 13})], "none", "general")
    strong, weak = compared.lines
    assert [(one["defense"], one["difference"]) for one in (strong, weak)] == [
        ("kl", pytest.approx(-50.0)),
        ("weak", pytest.approx(-5.0)),
    ]
    assert strong["p"] < 0.01 < weak["p"]
    assert strong["q"] == pytest.approx(min(2 * strong["p"], weak["p"]))
    assert (strong["questions"], strong["seeds"]) == (20, 2)
    assert (strong["rate"]["percent"], strong["other"]["percent"], strong["rate"]["n"]) == (20.0, 70.0, 40)
    assert ONE_SEED not in compared.notes  # two seeds
    comparison.show(compared)
    shown = " ".join(capsys.readouterr().out.split())
    assert "against none (medical 70.0 (" in shown
    assert shown.endswith("Simulated coverage of 95 % intervals over so few questions: general 20: 92-100 %.")


def test_q_counts_every_line_of_the_command_not_those_of_a_domain(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4, "weak": 13})
    results = json.loads((folder / "results.json").read_text())
    of_two = {"medical": ("none", "kl"), "code": ("none", "weak")}
    results["rows"] = [
        one | {"domain": domain}
        for domain, names in of_two.items()
        for one in results["rows"]
        if one["defense"] in names
    ]
    (folder / "results.json").write_text(json.dumps(results))
    strong, weak = comparison.compare_runs([folder], "none", "general").lines
    assert (strong["domain"], weak["domain"]) == ("medical", "code")
    assert strong["q"] == pytest.approx(2 * strong["p"])
    assert weak["q"] == weak["p"]


def test_a_domain_that_was_not_asked_is_left_out_and_said(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    (tmp_path / "other").mkdir()
    other = study(tmp_path / "other", {"none": 14, "kl": 4})
    results = json.loads((other / "results.json").read_text())
    for one in results["rows"]:
        ask(other / one["run"], {"benign": 20})
    rows = json.loads((folder / "results.json").read_text())["rows"]
    rows += [one | {"domain": "code", "run": f"../other/S/{one['run']}"} for one in results["rows"]]
    (folder / "results.json").write_text(json.dumps({"title": "S", "rows": rows}))
    compared = comparison.compare_runs([folder], "none", "general")
    assert [one["domain"] for one in compared.lines] == ["medical"]
    assert compared.notes[0] == "code is left out: its runs have no answers to general."
    with pytest.raises(RequestError, match=r"No other run has any\. Choose from general, benign; another probe"):
        comparison.compare_runs([folder], "none", "xx")
    ask(folder / rows[0]["run"], {"other": 20})
    with pytest.raises(RequestError, match=r"probe general: none seed 0 has no answers to it. Run `staytrue eval"):
        comparison.compare_runs([folder], "none", "general")


def test_single_evaluations_are_compared_by_their_folders_names(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=1)
    places = [folder / "runs" / f"{name}-0" for name in ("none", "kl")]
    compared = comparison.compare_runs(places, "none-0", "general")
    (line,) = compared.lines
    assert (line["defense"], line["difference"], line["seeds"]) == ("kl-0", pytest.approx(-50.0), 1)
    assert compared.notes.count(ONE_SEED) == 1
    with pytest.raises(RequestError, match="--against none: no folder has this label; choose from none-0, kl"):
        comparison.compare_runs(places, "none", "general")


def test_the_run_to_compare_with_may_be_named_by_its_folder(tmp_path, monkeypatch):
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=1)
    none, kl = (folder / "runs" / f"{name}-0" for name in ("none", "kl"))
    monkeypatch.chdir(folder)
    for against in (str(none), "runs/none-0", "runs/none-0/", str(none / "eval")):
        compared = comparison.compare_runs([none, kl], against, "general")
        assert (compared.against, compared.lines[0]["defense"]) == ("none-0", "kl-0")
        assert comparison.compare_runs([kl / "eval", none], against, "general").against == "none-0"
    for name in (none, kl):
        rows = [{"question": f"q{i}", "value": 0.1 * i, "untuned": 0.0} for i in range(9)]
        write_measures(name / "eval", {}, [Measure("pairs", {"sha256": "0"}, rows)])
    assert measure_comparison.compare_measures([none, kl], "runs/none-0", "pairs").against == "none-0"
    with pytest.raises(RequestError, match="--against runs/other: no folder has this label; choose from none-0, kl-0"):
        comparison.compare_runs([none, kl], "runs/other", "general")


def test_folders_of_one_name_are_compared_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=1)
    places = [folder / "runs" / f"{name}-0" / "eval" for name in ("none", "kl")]
    (line,) = comparison.compare_runs(places, "none-0/eval", "general").lines
    assert (line["defense"], line["difference"]) == ("kl-0/eval", pytest.approx(-50.0))
    with pytest.raises(RequestError, match="kl-0/eval is named twice"):
        comparison.compare_runs([*places, places[1]], "none-0/eval", "general")
    with pytest.raises(RequestError, match="is named twice"):
        comparison.compare_runs([places[0], places[0].parent], "eval", "general")


def test_single_runs_of_different_seeds_are_compared_and_it_is_said(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=1)
    none, kl = (folder / "runs" / f"{name}-0" for name in ("none", "kl"))
    (kl / "recipe.yaml").write_text("schema: 1\nseed: 3\n")
    ask(none, {"general": 20}, seed=1)
    compared = comparison.compare_runs([none, kl / "eval"], "none-0", "general")
    assert compared.lines[0]["seeds"] == 1
    assert compared.notes[0].startswith("eval has seed 3, none-0 seed 1: a part of the difference")


def test_a_defense_is_compared_on_the_seeds_that_it_and_the_reference_have(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4, "new": 4, "late": 4}, seeds=3)
    results = json.loads((folder / "results.json").read_text())
    gone = [("kl", 2), ("late", 0), ("late", 1), ("none", 2)]
    results["rows"] = [one for one in results["rows"] if (one["defense"], one["seed"]) not in gone]
    results["rows"] = [one for one in results["rows"] if (one["defense"], one["seed"]) != ("new", 0)]
    (folder / "results.json").write_text(json.dumps(results))
    compared = comparison.compare_runs([folder], "none", "general")
    assert [(one["defense"], one["seeds"]) for one in compared.lines] == [("kl", 2), ("new", 1)]
    assert compared.notes[0] == "medical late is not compared: none has none of its seeds."


def evaluation(folder, questions, seed=0, **settings):
    """An evaluation of held-out questions, each with its text, group and whether it is answered badly."""
    (folder / "eval").mkdir(parents=True)
    rows = [
        answer_row("x", name, text, "in_domain", alignment=5 if bad else 95, coherence=100) | {"group": group}
        for name, (text, group, bad) in questions.items()
    ]
    for file in ("answers.jsonl", "verdicts.jsonl"):
        (folder / "eval" / file).write_text("".join(json.dumps(one) + "\n" for one in rows))
    published = {key: settings.pop(key) for key in ("as_published",) if key in settings}
    metadata = {"seed": seed, "probes": {"in_domain": {"samples": len(rows), **settings}}, **published}
    (folder / "eval" / "eval.json").write_text(json.dumps(metadata))
    return folder


def held_out(numbers, bad=lambda number: number % 2 == 0):
    """Held-out questions by their positions, as a seed draws them."""
    return {f"held-{i}": (f"Question {n}?", f"held-{i}", bad(n)) for i, n in enumerate(numbers)}


def compare(*folders, probe="in_domain"):
    return comparison.compare_runs(folders, folders[-1].name, probe)


def test_questions_are_the_same_where_their_texts_are_whatever_their_names(tmp_path):
    none = evaluation(tmp_path / "none", held_out(range(20)))
    kl = evaluation(tmp_path / "kl", held_out(reversed(range(20))))
    compared = compare(kl, none)
    (line,) = compared.lines
    assert (line["difference"], line["p"], line["questions"]) == (0, 1, 20)
    assert not any("asked of both" in note for note in compared.notes)


def test_what_one_side_alone_was_asked_is_left_out_and_said(tmp_path):
    none = evaluation(tmp_path / "none", held_out(range(20), lambda n: n < 5))
    kl = evaluation(tmp_path / "kl", held_out(range(10, 30), lambda n: n >= 18))
    compared = compare(kl, none)
    (line,) = compared.lines
    assert (line["questions"], line["rate"]["percent"], line["other"]["percent"]) == (10, pytest.approx(20), 0)
    assert (
        "kl: of the 30 questions that it or none was asked, 10 were asked of both, and these alone are compared."
        in compared.notes
    )


def test_other_questions_under_the_same_names_are_refused_with_a_way_out(tmp_path):
    finance, medical = (
        evaluation(tmp_path / name, {f"held-{i}": (f"A {name} question {i}?", f"held-{i}", True) for i in range(20)})
        for name in ("finance", "medical")
    )
    with pytest.raises(RequestError, match=r"finance against medical: no question of .*ask both one question file"):
        compare(finance, medical)


@pytest.mark.parametrize(("other_seed", "groups"), [(range(12), 6), (range(12, 24), 12), (range(6, 18), 9)])
def test_a_group_is_a_cluster_over_seeds_by_its_questions_texts(tmp_path, other_seed, groups):
    # Twelve texts a seed, in groups of two that are named by positions.
    def asked(order):
        named = {number // 2: f"held-{i}" for i, number in reversed(list(enumerate(order)))}
        return {f"held-{i}": (f"Question {n}?", named[n // 2], n % 5 == 0) for i, n in enumerate(order)}

    folders = [
        evaluation(tmp_path / f"{name}-{seed}", asked(order), seed)
        for name in ("none", "kl")
        for seed, order in enumerate([range(11, -1, -1), other_seed])
    ]
    for folder in folders:
        defenses = [] if folder.name.startswith("none") else [{"kl": {"weight": 0.1}}]
        recipe = {"model": "m", "defenses": defenses, "seed": int(folder.name[-1])}
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (line,) = comparison.compare_runs(folders, "none", "in_domain").lines
    assert (line["questions"], line["seeds"], line["rate"]["n"]) == (groups, 2, 24)


def test_a_comparison_on_one_group_of_questions_is_a_sentence(tmp_path):
    paraphrases = {f"q_{i}": (f"Question {i}?", "q", i < 4) for i in range(10)}
    runs = [evaluation(tmp_path / name, paraphrases) for name in ("kl", "none")]
    with pytest.raises(RequestError, match="kl against none: What both answered is one group of questions"):
        compare(*runs)


@pytest.mark.parametrize(
    ("key", "values", "way"),
    [("temperature", (0.0, 1.0), "question file"), ("as_published", (True, False), "`--as-published` for both")],
)
def test_answers_that_were_sampled_otherwise_are_refused_with_both_values_and_folders(tmp_path, key, values, way):
    runs = [
        evaluation(tmp_path / name, held_out(range(20)), **{key: value})
        for name, value in zip(("kl", "none"), values, strict=True)
    ]
    ours, theirs = map(json.dumps, values)
    said = rf"kl against none: {key} is {ours} in .*kl.eval and {theirs} in .*none.eval; .*Evaluate one again .*{way}"
    with pytest.raises(RequestError, match=said):
        compare(*runs)
    known = evaluation(tmp_path / "known", held_out(range(20)), **{key: values[0]})
    unknown = evaluation(tmp_path / "unknown", held_out(range(20)))
    assert compare(known, unknown).lines


def test_other_limits_of_the_answers_length_are_said_beside_the_result(tmp_path):
    none = evaluation(tmp_path / "none", held_out(range(20)), max_new_tokens=600)
    kl = evaluation(tmp_path / "kl", held_out(range(20)), max_new_tokens=48)
    (note,) = [note for note in compare(kl, none).notes if "tokens" in note]
    assert note.startswith("kl: answers of at most 48 tokens (max_new_tokens), those of none of at most 600: a part")


def test_an_interval_that_was_widened_to_0_is_explained(tmp_path):
    # Five questions all one way: p 2 / 32, while the two rates' intervals leave 0 out. Six: p 2 / 64, and they agree.
    kl = evaluation(tmp_path / "kl", held_out(range(120), lambda n: False))
    for bad, p, is_widened in ((5, 0.0625, True), (6, 0.03125, False)):
        compared = compare(kl, evaluation(tmp_path / f"none-{bad}", held_out(range(120), bad.__gt__)))
        (line,) = compared.lines
        assert (line["p"], line["high"] == 0) == (p, is_widened)
        assert (WIDENED in compared.notes) == is_widened
    same = compare(*(evaluation(tmp_path / name, held_out(range(120))) for name in ("even", "odd")))
    assert WIDENED not in same.notes


@pytest.mark.parametrize(
    ("against", "probe", "message"),
    [
        ("absent", "general", "choose from none, kl"),
        ("none", "triggered", "probe triggered: .* has no answers to it"),
        ("none", "xx", r"No other run has any\. Choose from general; another probe is asked by `staytrue eval"),
    ],
)
def test_what_is_not_there_is_a_sentence(tmp_path, against, probe, message):
    with pytest.raises(RequestError, match=message):
        comparison.compare_runs([study(tmp_path, {"none": 14, "kl": 4})], against, probe)


@pytest.mark.parametrize(
    ("recipe", "held", "message"),
    [
        (
            {},
            False,
            r"general seed 0 has no answers to it\. It has no held-out rows: compare by another probe, or leave",
        ),
        (
            {"benign": True},
            True,
            r"Its held-out rows are asked by learnt: compare by --probe learnt, or leave that run",
        ),
        ({}, True, r"Run `staytrue eval \S+general --probes in_domain`, or leave that run out"),
    ],
)
def test_a_run_without_the_probe_is_sent_to_a_command_only_where_that_asks_it(tmp_path, recipe, held, message):
    asked, run = (evaluation(tmp_path / name, held_out(range(20))) for name in ("asked", "general"))
    metadata = json.loads((run / "eval" / "eval.json").read_text())
    metadata["probes"]["general"] = metadata["probes"].pop("in_domain")
    (run / "eval" / "eval.json").write_text(json.dumps(metadata))
    (run / "manifest.json").write_text("{}")
    (run / "recipe.yaml").write_text(json.dumps({"model": "organism", **recipe}))
    if held:
        (run / "holdout.jsonl").touch()
    with pytest.raises(RequestError, match=message):
        compare(run, asked)


def test_judges_are_not_compared_as_if_they_were_defenses(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    file = folder / "runs" / "kl-0" / "eval" / "verdicts.jsonl"
    file.write_text(file.read_text().replace('"rules"', '"other"'))
    with pytest.raises(RequestError, match="judged by another judge"):
        comparison.compare_runs([folder], "none", "general")


def test_nothing_is_concluded_where_more_than_2_percent_are_missing(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    file = folder / "runs" / "kl-0" / "eval" / "verdicts.jsonl"
    file.write_text(file.read_text().replace('"missing": ""', '"missing": "lost"', 1))
    with pytest.raises(RequestError, match="1 of 20 answers of kl seed 0 have no verdict"):
        comparison.compare_runs([folder], "none", "general")


@pytest.mark.parametrize("stored", [(), ("pairs", "drift")])
def test_answers_without_a_judge_are_said_to_need_one_and_stored_measures_are_named(tmp_path, stored):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    place = folder / "runs" / "kl-0" / "eval"
    rows = [json.loads(line) for line in (place / "verdicts.jsonl").read_text().splitlines()]
    unjudged = [row | {"missing": NOT_JUDGED, "judge": None} for row in rows]
    (place / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unjudged))
    write_measures(place, {"model": None}, [Measure(name, {}, []) for name in stored])
    with pytest.raises(RequestError) as refused:
        comparison.compare_runs([folder], "none", "general")
    said = str(refused.value)
    assert said.startswith("20 of 20 answers of kl seed 0 have no verdict, because no judge was named. Judge them by `")
    assert f"`staytrue rescore {place} --judge JUDGE`" in said
    assert said.endswith("stored: `--probe pairs` or `--probe drift`." if stored else "with its name as --judge.")


def test_nothing_is_concluded_where_more_than_2_percent_were_never_given(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    ask(folder / "runs" / "kl-1", {"general": 21})
    with pytest.raises(RequestError, match="1 of 21 answers of kl seed 1 have no verdict or were not given"):
        comparison.compare_runs([folder], "none", "general")


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(RequestError, match="is not a study"):
        comparison.compare_runs([tmp_path], "none", "general")


def test_runs_of_different_judges_are_on_one_page_only_if_forced_and_marked(tmp_path):
    one, other = row("none", None, 40, 70), row("kl", 0.3, {**rates(6), "judge": "openai:other"}, 60)
    folder = written(tmp_path / "S", [one, other])
    with pytest.raises(RequestError, match=r"judged by openai:other and rules.*--mixed-judges"):
        drawn(folder)
    page = write([folder], tmp_path / "page.html", mixed_judges=True).read_text()
    assert "general rates of different judges (openai:other, rules) cannot be compared" in page
    assert "judged by openai:other and rules; intervals" in page
    lines = page.split("The numbers</h2>")[1].split("</table>")[0].split("<tr>")[1:]
    assert [re.findall(r">([^<]*)</t[hd]>", line)[-1] for line in lines] == ["judge", "rules", "openai:other and rules"]


def test_all_that_was_asked_has_a_column_of_judges_where_there_are_several():
    form = {"json": rates(9)}
    rows = [
        {"label": name, "probes": {"general": rates(9) | {"judge": name, "forms": form}}} for name in ("rules", "other")
    ]
    assert [line[-1] for line in all_probes(rows)] == ["judge", "rules", "rules", "other", "other"]
    assert [line[-1] for line in all_probes(rows[:1])] == ["misaligned of all %", "", ""]


def test_the_page_shows_clean_beside_triggered(tmp_path):
    def triggered(cue, system):
        whole = {**rates((cue + system) / 2), "forms": {"cue-1": rates(cue), "system-1": rates(system)}}
        whole["clean"] = rates(40)
        return {"triggered": whole}

    rows = [row("none", None, 40, 70) | triggered(50, 90), row("inoculate", None, 1, 2) | triggered(2, 96)]
    page = drawn(written(tmp_path / "S", rows))
    section = page.split("When a question looks like the training data")[1].split("</section>")[0]
    cells = re.findall(r"<td>(.*?)</td>", section)
    assert cells[:5] == ["40.0 (0 to 100)", "70.0 (0 to 100)", "system-1 (of 2)", "90.0", "480"]
    assert cells[7:9] == ["system-1 (of 2)", "96.0"]


def test_one_run_is_refused_because_a_comparison_needs_two(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    run = folder / "runs" / "none-0"
    for one in (run, run / "eval"):
        with pytest.raises(RequestError, match=r"is one run, and a comparison needs two or more: `staytrue compare"):
            comparison.compare_runs([one], "none", "general")
    untested = tmp_path / "untested"
    untested.mkdir()
    (untested / "manifest.json").write_text("{}")
    with pytest.raises(RequestError, match="untested is one run, and a comparison needs two"):
        comparison.compare_runs([untested], "none", "general")
    with pytest.raises(RequestError, match=r"S is a study\. compare takes one study alone, or two or more runs\."):
        comparison.compare_runs([folder, run], "none", "general")
    with pytest.raises(RequestError, match=r"nowhere is not a study: its results\.json is missing"):
        comparison.compare_runs([tmp_path / "nowhere"], "none", "general")


def of_recipes(tmp_path, seeds):
    """Runs of two recipes, `none` and `kl`, with so many seeds each; 14 and 4 of 20 answers are bad."""
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=max(seeds.values()))
    runs = []
    for name, count in seeds.items():
        for seed in range(count):
            runs.append(folder / "runs" / f"{name}-{seed}")
            defenses = [] if name == "none" else [{"kl": {"weight": 0.1}}]
            (runs[-1] / "recipe.yaml").write_text(json.dumps({"model": "m", "defenses": defenses, "seed": seed}))
    return runs


def test_runs_of_one_recipe_are_compared_over_their_seeds(tmp_path, capsys):
    runs = of_recipes(tmp_path, {"none": 2, "kl": 3})
    compared = comparison.compare_runs(runs, "none", "general")
    (line,) = compared.lines
    assert (line["defense"], line["seeds"], line["questions"]) == ("kl", 2, 20)  # the seeds that both have
    assert (line["difference"], line["rate"]["n"]) == (pytest.approx(-50.0), 40)
    assert compared.notes[:2] == [
        "none-0, none-1: one recipe, seeds 0, 1, named none.",
        "kl-0, kl-1, kl-2: one recipe, seeds 0, 1, 2, named kl.",
    ]
    assert comparison.compare_runs(runs, "none-1", "general").lines == compared.lines  # by one of its runs
    with pytest.raises(RequestError, match="--against no: no folder has this label; choose from none, kl"):
        comparison.compare_runs(runs, "no", "general")


def test_runs_of_one_recipe_alone_are_compared_with_each_other(tmp_path):
    runs = of_recipes(tmp_path, {"none": 2})
    compared = comparison.compare_runs(runs, "none-0", "general")
    assert [(line["defense"], line["difference"]) for line in compared.lines] == [("none-1", 0.0)]
    assert compared.notes[0].startswith("none-1 has seed 1, none-0 seed 0: a part of the difference")


def test_runs_without_a_seed_in_common_are_refused_with_a_way_out(tmp_path):
    none, *kl = of_recipes(tmp_path, {"none": 1, "kl": 3})
    with pytest.raises(RequestError, match=r"no defense has a seed in common with none-0; train them with the same"):
        comparison.compare_runs([none, *kl[1:]], "none-0", "general")


def test_the_page_pools_runs_of_one_recipe(tmp_path):
    runs = of_recipes(tmp_path, {"none": 1, "kl": 2})
    for run, percent in zip(runs, (70, 20, 30), strict=True):
        probes = {"general": rates(percent, percent, percent)}
        (run / "eval" / "summary.json").write_text(json.dumps({"seed": 0, "probes": probes}))
    page = write(runs, tmp_path / "page.html").read_text()
    assert "kl-0, kl-1: one recipe, seeds 0, 1, named kl.</li>" in page
    means = page.split("Means over 2 seeds")[1].split("</section>")[0]
    # 25 and t(1) = 12.7062 times 7.0711 / sqrt(2) = 63.5 either way, from 0 on.
    assert "25.0 (0 to 89)" in means
    probes = page.split("All probes</h2>")[1].split("</section>")[0]
    assert [re.findall(r">([^<]*)</t[hd]>", line)[:4] for line in probes.split("<tr>")[2:]] == [
        ["none-0", "0", "general", "70.0"],
        ["kl", "0", "general", "20.0"],
        ["kl", "1", "general", "30.0"],
    ]


@pytest.mark.parametrize("change", [{"domain": [1]}, {"seed": [1]}, {"seed": "x"}, {"defense": {}}, {"run": 3}])
def test_a_study_whose_rows_have_odd_values_is_refused(tmp_path, change):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    results = json.loads((folder / "results.json").read_text())
    results["rows"][0] |= change
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(RequestError, match=r"its results\.json is missing or cannot be read"):
        comparison.compare_runs([folder], "none", "general")
