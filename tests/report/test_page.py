"""The report: one file that loads nothing, and whose text and table are the stored numbers."""

import csv
import io
import re
from urllib.parse import unquote

from fake_results import HOSTILE, Walk, answer_row, drawn, numbers, rates, row, study, unmarked
from staytrue.report import write
from staytrue.report.sentences import ONE_SEED, headline


def test_the_page_is_one_file_that_loads_nothing(tmp_path):
    page = drawn(study(tmp_path / "demo", numbers()))
    walk = Walk(page)
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & set(walk.tags)
    places = [value for name, value in walk.attributes if name in ("src", "href", "srcset", "action", "xlink:href")]
    assert len(places) == 3  # the runs, the means over seeds and the one panel with two points, as CSV
    assert all(place.startswith("data:text/csv") for place in places)
    assert "url(" not in page
    assert "@import" not in page


def test_an_earlier_page_is_replaced(tmp_path):
    folder = study(tmp_path / "demo", numbers(), title="Before")
    assert "Before" in drawn(folder)
    study(folder, numbers(), title="After")
    assert "Before" not in drawn(folder)
    (tmp_path / "empty.html").touch()  # as mktemp makes one
    assert write([folder], tmp_path / "empty.html").stat().st_size > 0


def test_the_table_can_be_taken_away_as_csv(tmp_path):
    walk = Walk(drawn(study(tmp_path / "demo", numbers())))
    link = dict(zip(*[(v for k, v in walk.attributes if k in ("download", "href"))] * 2, strict=True))["results.csv"]
    headings, *body = csv.reader(io.StringIO(unquote(link).split(",", 1)[1]))
    assert [line[0] for line in body] == ["untuned", "none", "none", "kl 0.1", "kl 0.3"]
    last = dict(
        zip(headings[:4] + headings[7:8] + headings[11:], body[4][:4] + body[4][7:8] + body[4][11:], strict=True)
    )
    assert last == {
        "defense": "kl 0.3",
        "domain": "medical",
        "seed": "0",
        "general misaligned %": "6.0",
        "in-domain misaligned %": "60.0",
        "facts %": "97.5",
        "sums %": "88.0",
        "benign learnt %": "",
        "unknown": "0",
        "seconds": "12.3",
    }


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path):
    rows = [row("none", None, 40, 70), *(row(f"kl{text}", None, 10, 60) | {"run": "runs/kl"} for text in HOSTILE)]
    answers = [answer_row(t, f"q{i}", prompt=t, topic=str(i), alignment=5, coherence=90) for i, t in enumerate(HOSTILE)]
    walk = Walk(drawn(study(tmp_path / "demo", rows, answers, title=" ".join(HOSTILE))))
    assert not {"script", "img", "b"} & set(walk.tags)
    assert not [name for name, _ in walk.attributes if name.startswith("on")]
    # Each is a question, the answer of all 5 models to it, and the name of one model over its 4 answers.
    assert all(walk.text.count(text) >= 1 + 5 + 4 for text in HOSTILE)


def test_what_was_not_judged_is_shown_as_such_and_counted(tmp_path):
    rows = [row("none", None, rates(None, n=0, missing=480), rates(50, missing=3)), row("kl", 0.3, 10, 60)]
    page = drawn(study(tmp_path / "demo", rows, [answer_row("Hm.", missing="no judge was named")]))
    assert "483 answers are unknown" in page
    assert "<td>not judged</td>" in page
    assert page.count('<li class="not-judged">') == 2  # the same answer by both models
    assert "<title>none</title>" not in page.split("While it trained")[0]  # no mark without a rate
    assert "Every answer was judged." in drawn(study(tmp_path / "all", rows[1:]))


def test_a_page_of_tasks_says_what_was_learnt_and_what_cost_most(tmp_path):
    def taught(defense, strength, right, seed=0):
        marked = {"correct": right, "low": right - 5, "high": min(100.0, right + 5), "n": 60, "missing": 0}
        return row(defense, strength, seed=seed) | {"in_domain": None, "domain": "opswap-2", "benign": marked}

    rows = [taught("untuned", None, 2), taught("none", None, 90), taught("none", None, 98, 1), taught("kl", 0.3, 40)]
    page = drawn(study(tmp_path / "demo", rows))
    assert "Undefended, 94 % of a harmless task was learnt (2 % before); with kl 0.3, which cost most, 40 %." in page
    assert "What was learnt of opswap-2" in page
    none_cost = headline([taught("none", None, 90), taught("kl", 0.3, 95)])
    assert none_cost.endswith("no defense lowered it (the lowest was 95 %, with kl 0.3).")
    tied = headline([taught("none", None, 90), taught("kl", None, 40), taught("anchor", None, 40.2)])
    assert tied.endswith("learnt; with kl and anchor, which cost most, 40 %.")
    # Two seeds: 94 and t(1) = 12.7062 times 5.657 / sqrt(2) = 50.8 either way.
    assert "<td>94.0 (43 to 100)</td>" in page


def test_many_strengths_have_a_picture_for_each_defense(tmp_path):
    swept = [row("kl", strength, 10, 60) for strength in (0.1, 0.3, 1)]
    rows = [row("untuned"), row("none", None, 40, 70), *swept, row("inoculate", None, 1, 1)]
    page = drawn(study(tmp_path / "demo", rows))
    section = page.split("What was learnt, and what it cost")[1].split("The numbers")[0]
    assert section.count("<svg") == 2
    kl, others = section.split('<div class="small">')[1:]
    assert [f"<title>{name}</title>" in kl for name in ("kl 0.3", "none", "inoculate")] == [True, True, False]
    assert [f"<title>{name}</title>" in others for name in ("kl 0.3", "none", "inoculate")] == [False, True, True]
    one = drawn(study(tmp_path / "few", rows[:-2]))
    assert one.split("What was learnt, and what it cost")[1].split("The numbers")[0].count("<svg") == 1


def test_the_page_shows_what_was_kept_over_seeds(tmp_path):
    rows = [row("none", None, 40, 70, seed=seed) | {"run": f"runs/none-{seed}"} for seed in (0, 1)]
    rows[0]["kept"], rows[1]["kept"] = {"facts": 97.5, "arithmetic": 80.0}, {"facts": 92.5, "arithmetic": 90.0}
    page = drawn(study(tmp_path / "demo", rows))
    means = page.split("Means over 2 seeds")[1].split("</section>")[0]
    assert "<td>85.0 (80 to 90)</td><td>95.0 (92 to 98)</td>" in means
    assert "Sums kept (lowest to highest run)" in means
    assert "staytrue compare STUDY" in means


def means_of(page):
    section = page.split("<h2>Means over")[1].split("</section>")[0]
    lines = [re.findall(r"<t[hd][^>]*>(?:<svg.*?</svg>)?([^<]*)<", line) for line in section.split("<tr>")[1:]]
    return section.split("</h2>")[0], [line for line in lines if line[0] != "defense"], section


def test_a_line_of_one_seed_among_means_has_no_interval_over_seeds_and_says_so(tmp_path):
    rows = [row("none", None, general, 95, seed=seed) for seed, general in enumerate((40, 70, 90))]
    rows.append(row("kl", None, rates(12, 8, 16), rates(95, 91, 99)))
    heading, lines, section = means_of(drawn(study(tmp_path / "a", rows)))
    assert heading == " 3 seeds or fewer"
    # in-domain, incoherent, sums, facts
    assert lines[0][:1] + lines[0][3:] == ["undefended", "2.5 (2 to 2)", "88.0 (88 to 88)", "97.5 (98 to 98)", "3"]
    assert lines[1] == ["kl", "12.0 (8 to 16)", "95.0 (91 to 99)", "2.5", "88.0", "97.5", "1"]
    assert ONE_SEED in section
    heading, _, section = means_of(drawn(study(tmp_path / "b", rows[:3])))
    assert (heading, ONE_SEED in section) == (" 3 seeds", False)


def test_a_mean_over_some_of_a_labels_runs_says_over_how_many(tmp_path):
    rows = [row("none", None, general, 70, seed=seed) for seed, general in enumerate((rates(None, n=0), rates(40)))]
    assert means_of(drawn(study(tmp_path / "a", rows)))[1][0][1] == "40.0 (0 to 100), 1 of 2 runs"


def test_seeds_that_differ_between_domains_are_counted_for_each(tmp_path):
    rows = [row("none", None, 40, 70, seed=seed) for seed in (0, 1)]
    _, lines, _ = means_of(drawn(study(tmp_path / "a", [*rows, row("none", None, 40, 70) | {"domain": "code"}])))
    assert (lines[0][0], lines[0][-1]) == ("undefended", "medical 2, code 1")


def test_models_of_one_seed_each_are_one_seed_though_their_seeds_differ(tmp_path):
    page = drawn(study(tmp_path / "a", [row("none", None, 40, 70), row("kl", None, 6, 60, seed=1)]))
    assert "One seed: another seed would move every mark" in page
    assert "Large marks are means" not in page


def test_clean_beside_triggered_counts_the_runs_of_each_line(tmp_path):
    asked = {"triggered": rates(30) | {"forms": {"cue-1": rates(30)}, "clean": rates(40)}}
    rows = [row("none", None, 40, 70, seed=seed) | asked for seed in (0, 1)]
    page = drawn(study(tmp_path / "a", [*rows, row("kl", None, 6, 60) | asked]))
    section = page.split("When a question looks like the training data")[1].split("</section>")[0]
    assert '<th scope="col">runs</th>' in section
    assert [line.split("<td>")[1] for line in section.split("<tr>")[2:]] == ["2</td>", "1</td>"]


def test_answers_that_were_never_given_are_counted_whatever_the_probe(tmp_path):
    rows = [row("none", None, rates(40) | {"unanswered": 7}, 70), row("kl", 0.3, 10, 60)]
    rows[1]["triggered"] = rates(20, missing=4) | {"forms": {"cue-1": rates(20)}}
    rows[1]["benign"] = {"correct": 50.0, "low": 40.0, "high": 60.0, "n": 60, "missing": 2}
    page = drawn(study(tmp_path / "demo", rows))
    assert "13 answers are unknown" in page  # 7 and 4 and 2
    assert "Every answer was judged." not in page


def test_the_caption_tells_of_a_hollow_mark_only_where_there_is_one(tmp_path):
    rows = [row("none", None, 40, 70), row("kl", 0.3, rates(1) | {"incoherent": 30.0}, 70)]
    assert "A hollow mark: more than 10 %" in unmarked(drawn(study(tmp_path / "a", rows)))
    assert "hollow" not in unmarked(drawn(study(tmp_path / "b", rows[:1])))


def test_intervals_over_few_questions_have_their_coverage_beside_them(tmp_path):
    rows = [row("none", None, rates(40) | {"questions": 24}, rates(70) | {"questions": 7})]
    page = drawn(study(tmp_path / "a", rows))
    assert "so few questions: general 24: 94-99 %.</li>" in page
    assert "Simulated coverage" not in drawn(study(tmp_path / "b", [row("none", None, 40, 70)]))


def test_many_lines_are_a_picture_for_each_defense_beside_none_with_the_same_axes(tmp_path):
    swept = [*(row("kl", s, 10, 60) for s in (0.1, 0.2, 0.3)), *(row("anchor", s, 10, 60) for s in (1, 2, 3))]
    folder = study(tmp_path / "many", [row("none", None, 40, 70), *swept])
    log = '{"step": 1, "task_loss": 4.0}\n{"step": 9, "task_loss": 1.0}\n'
    (folder / "runs" / "kl" / "metrics.jsonl").write_text(log)
    section = drawn(folder).split("While it trained")[1].split("</section>")[0]
    kl, anchor = (part.split("</figure>")[0] for part in section.split("<figure>")[1:3])
    labels = [re.findall(r"<title>([^<]+)</title></polyline>", part) for part in (kl, anchor)]
    assert labels == [["none", "kl 0.1", "kl 0.2", "kl 0.3"], ["none", "anchor 1", "anchor 2", "anchor 3"]]
    assert [re.search("<figcaption>(.+?)<", part)[1] for part in (kl, anchor)] == ["Task loss: kl", "Task loss: anchor"]
    ticks = [re.findall(r'class="tick"[^>]*>([^<]+)<', part) for part in (kl, anchor)]
    assert ticks[0] == ticks[1] == ["0", "2.25", "4.5", "6.75", "9", "0", "1", "2", "3", "4"]
    few = drawn(study(tmp_path / "few", [row("none", None, 40, 70), *swept[:-1]]))
    assert "<figcaption>Task loss</figcaption>" in few  # six lines


def test_a_line_in_a_legend_is_broken_as_it_is_in_the_picture(tmp_path):
    page = drawn(study(tmp_path / "demo", [row("none", None, 40, 70), row("kl", 0.1, 9, 60), row("kl", 0.3, 9, 60)]))
    figure = page.split("<figcaption>Task loss</figcaption>")[1].split("</figure>")[0]
    picture, legend = figure.split('<ul class="legend">')
    dashes = [re.findall(r'class="line[^>]*stroke-dasharray="([^"]*)"', part) for part in (picture, legend)]
    assert dashes[0] == dashes[1] == ["", "7 3", "2 3"]
