"""A study's defenses held against one of them, and runs of different judges."""

import json
import re

import pytest

from fake_results import drawn, rates, row, said
from fake_results import study as written
from holdfast.errors import RequestError
from holdfast.report import comparison, write


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
            said("x", f"q{i}", topic="t", alignment=5 if i < bad[one["defense"]] else 95, coherence=100)
            | {"expected": None}
            for i in range(questions)
        ]
        for file in ("answers.jsonl", "verdicts.jsonl"):
            (folder / one["run"] / "eval" / file).write_text("".join(json.dumps(a) + "\n" for a in answers))
    return folder


def test_defenses_are_compared_on_the_same_questions_and_seeds(tmp_path, capsys):
    lines = comparison.of_study([study(tmp_path, {"none": 14, "kl": 4, "weak": 13})], "none", "general")
    assert [(line["defense"], line["difference"]) for line in lines] == [
        ("kl", pytest.approx(-50.0)),
        ("weak", pytest.approx(-5.0)),
    ]
    strong, weak = lines
    assert strong["p"] < 0.01 < weak["p"]
    assert strong["q"] == pytest.approx(min(2 * strong["p"], weak["p"]))
    assert (strong["questions"], strong["seeds"]) == (20, 2)
    assert (strong["rate"]["percent"], strong["other"]["percent"], strong["rate"]["n"]) == (20.0, 70.0, 40)
    comparison.show(lines, "none")
    assert "against none (medical 70.0 (" in " ".join(capsys.readouterr().out.split())


def test_single_evaluations_are_compared_by_their_folders_names(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=1)
    places = [folder / "runs" / f"{name}-0" for name in ("none", "kl")]
    for place in places:
        (place / "eval" / "eval.json").write_text('{"probes": {}}')
    (line,) = comparison.of_study(places, "none-0", "general")
    assert (line["defense"], line["difference"], line["seeds"]) == ("kl-0", pytest.approx(-50.0), 1)


def test_only_seeds_that_all_have_are_compared(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4}, seeds=3)
    results = json.loads((folder / "results.json").read_text())
    results["rows"] = [one for one in results["rows"] if (one["defense"], one["seed"]) != ("kl", 2)]
    (folder / "results.json").write_text(json.dumps(results))
    (line,) = comparison.of_study([folder], "none", "general")
    assert line["seeds"] == 2


@pytest.mark.parametrize(
    ("against", "probe", "said"),
    [("nobody", "general", "choose from none, kl"), ("none", "triggered", "--probe triggered: .* was not asked it")],
)
def test_what_is_not_there_is_a_sentence(tmp_path, against, probe, said):
    with pytest.raises(RequestError, match=said):
        comparison.of_study([study(tmp_path, {"none": 14, "kl": 4})], against, probe)


def test_judges_are_not_compared_as_if_they_were_defenses(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    file = folder / "runs" / "kl-0" / "eval" / "verdicts.jsonl"
    file.write_text(file.read_text().replace('"rules"', '"other"'))
    with pytest.raises(RequestError, match="judged by another judge"):
        comparison.of_study([folder], "none", "general")


def test_nothing_is_concluded_where_more_than_2_percent_are_missing(tmp_path):
    folder = study(tmp_path, {"none": 14, "kl": 4})
    file = folder / "runs" / "kl-0" / "eval" / "verdicts.jsonl"
    file.write_text(file.read_text().replace('"missing": ""', '"missing": "lost"', 1))
    with pytest.raises(RequestError, match="1 of 20 answers of kl seed 0 could not be judged"):
        comparison.of_study([folder], "none", "general")


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(RequestError, match="is no study"):
        comparison.of_study([tmp_path], "none", "general")


def test_runs_of_different_judges_are_on_one_page_only_if_forced_and_marked(tmp_path):
    one, other = row("none", None, 40, 70), row("kl", 0.3, {**rates(6), "judge": "openai:other"}, 60)
    folder = written(tmp_path / "S", [one, other])
    with pytest.raises(RequestError, match=r"judged by openai:other and rules.*--mixed-judges"):
        drawn(folder)
    page = write([folder], tmp_path / "page.html", mixed_judges=True).read_text()
    assert "general rates of different judges (openai:other, rules) cannot be compared" in page


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
