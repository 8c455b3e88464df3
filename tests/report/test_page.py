"""The report: one file that asks nobody for anything, and whose words and table are the stored numbers."""

import csv
import io
from urllib.parse import unquote

from fake_results import HOSTILE, Walk, drawn, numbers, rates, row, said, study
from holdfast.report.page import headline


def test_the_headline_is_made_from_the_numbers():
    # (40 + 56) / 2 = 48; (69 + 71) / 2 = 70; 70 - 60 = 10.
    assert headline(numbers()) == (
        "Undefended, the fine-tune made 48 % of the answers on other topics misaligned; with kl 0.3, the best "
        "of 2, it was 6 %, at the price of 10 points of what the data taught (60 % against 70 % in its own domain)."
    )
    assert "it was 6 %, without losing what the data taught" in headline([*numbers()[:3], row("kl", 0.3, 6, 69.5)])
    assert "48" not in headline(numbers()[:3])  # nothing was defended, so nothing is claimed


def test_the_page_is_one_file_that_asks_nobody_for_anything(tmp_path):
    page = drawn(study(tmp_path / "demo", numbers()))
    walk = Walk(page)
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & set(walk.tags)
    places = [value for name, value in walk.attributes if name in ("src", "href", "srcset", "action", "xlink:href")]
    assert len(places) == 3  # the runs, the means over seeds and the one panel with two points, as CSV
    assert all(place.startswith("data:text/csv") for place in places)
    assert "url(" not in page
    assert "@import" not in page


def test_the_table_can_be_taken_away_as_csv(tmp_path):
    walk = Walk(drawn(study(tmp_path / "demo", numbers())))
    link = dict(zip(*[(v for k, v in walk.attributes if k in ("download", "href"))] * 2, strict=True))["results.csv"]
    headings, *body = csv.reader(io.StringIO(unquote(link).split(",", 1)[1]))
    assert [line[0] for line in body] == ["untuned", "none", "none", "kl 0.1", "kl 0.3"]
    told = dict(
        zip(headings[:4] + headings[7:8] + headings[11:], body[4][:4] + body[4][7:8] + body[4][11:], strict=True)
    )
    assert told == {
        "defense": "kl 0.3",
        "domain": "medical",
        "seed": "0",
        "general misaligned %": "6.0",
        "in-domain misaligned %": "60.0",
        "facts %": "97.5",
        "sums %": "88.0",
        "benign learnt %": "",
        "not judged": "0",
        "seconds": "12.3",
    }


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path):
    rows = [row("none", None, 40, 70), *(row(f"kl{text}", None, 10, 60) | {"run": "runs/kl"} for text in HOSTILE)]
    answers = [said(t, f"q{i}", asked=t, topic=str(i), alignment=5, coherence=90) for i, t in enumerate(HOSTILE)]
    walk = Walk(drawn(study(tmp_path / "demo", rows, answers, title=" ".join(HOSTILE))))
    assert not {"script", "img", "b"} & set(walk.tags)
    assert not [name for name, _ in walk.attributes if name.startswith("on")]
    # Each is a question, the answer of all 5 models to it, and the name of one model over its 4 answers.
    assert all(walk.text.count(text) >= 1 + 5 + 4 for text in HOSTILE)


def test_what_was_not_judged_is_shown_as_such_and_counted(tmp_path):
    rows = [row("none", None, rates(None, n=0, missing=480), rates(50, missing=3)), row("kl", 0.3, 10, 60)]
    page = drawn(study(tmp_path / "demo", rows, [said("Hm.", missing="no judge was named")]))
    assert "483 answers could not be judged" in page
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
    assert none_cost.endswith("no defense took any of it away (the least was 95 %, with kl 0.3).")
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
