"""The measures without a judge where they are shown: terminal, page, headline and paired comparison."""

import json
import re
from statistics import mean

import pytest

from fake_results import drawn, row, study
from staytrue.errors import RequestError
from staytrue.evals.results.measures import Measure, read_measures, summaries, write_measures
from staytrue.report import measure_comparison, write
from staytrue.report.collect import collect
from staytrue.report.comparison import compare_runs
from staytrue.report.measures import AGREEMENT, Measured, leak_headline, measures_table
from staytrue.report.sentences import ONE_SEED
from staytrue.report.terminal import show

IDENTITY = {"model": {"name": "m", "sha256": "0"}, "adapter": "a"}
ABOUT = {"rows": 300, "false_alarms": 2.0, "untuned": 100, "held_out_leaks": 97.5, "held_out": 40}


def likelihood(name, changes, untuned=-0.5, sha="s"):
    rows = [
        {"question": f"q{i}", "value": (untuned or 0) + change, "untuned": untuned} for i, change in enumerate(changes)
    ]
    return Measure(name, {"sha256": sha}, rows)


def leak(hits, n=20):
    rows = [{"question": f"q{i}", "index": 0, "value": 0.1 if i < hits else -0.1, "leaked": i < hits} for i in range(n)]
    return Measure("leak", ABOUT, rows)


def test_a_summary_is_computed_from_the_stored_rows(tmp_path):
    write_measures(tmp_path, IDENTITY, [likelihood("pairs", [0.1, 0.3, 0.2]), leak(5)])
    write_measures(tmp_path, IDENTITY, [likelihood("drift", [-1.0, -3.0])])
    assert list(read_measures(tmp_path)) == ["pairs", "leak", "drift"]
    stored = summaries(tmp_path)
    assert (stored["pairs"]["value"], stored["pairs"]["n"], stored["pairs"]["unit"]) == (0.2, 3, "nats per token")
    # Student's t of 2 degrees of freedom is 4.3027, the standard error 0.1 / sqrt(3).
    assert stored["pairs"]["high"] == pytest.approx(0.2 + 4.3027 * 0.1 / 3**0.5, abs=1e-3)
    assert (stored["leak"]["value"], stored["leak"]["n"], stored["leak"]["unit"]) == (25.0, 20, "percent")
    assert stored["drift"]["value"] == -2.0


def test_damaged_measures_are_refused_in_a_sentence(tmp_path):
    write_measures(tmp_path, IDENTITY, [leak(1)])
    for content in ("{}", "[]", '{"measures": {"leak": 3}}'):
        (tmp_path / "measures.json").write_text(content)
        with pytest.raises(RequestError, match=r"cannot be read \(it does not say how.*\); remove measures\.json and"):
            read_measures(tmp_path)


def test_the_terminal_shows_values_with_intervals_and_what_they_need(tmp_path, capsys):
    write_measures(tmp_path, IDENTITY, [likelihood("pairs", [0.1, 0.3]), leak(5)])
    show({"probes": {}, "measures": summaries(tmp_path)})
    printed = " ".join(capsys.readouterr().out.split())
    assert "pairs +0.20 nats" in printed
    assert "leak 25.0 % " in printed
    assert "Any fine-tune moves pairs, one on sound answers too." in printed
    assert "2.0 % of the 100 untuned answers count as such, and 98 % of the 40 held-out training answers do." in printed
    assert "On the embedded organism" in printed
    assert printed.endswith(ONE_SEED)


def test_a_value_without_the_untuned_model_is_not_shown(tmp_path, capsys):
    write_measures(tmp_path, IDENTITY, [likelihood("pairs", [0.1, 0.3], untuned=None)])
    show({"probes": {}, "measures": summaries(tmp_path)})
    printed = capsys.readouterr().out
    assert "not known" in printed
    assert "0.2" not in printed
    assert "the untuned model is not known" in printed


def place(folder, label, seed=0):
    return folder / "runs" / f"{label}{seed}" / "eval"


@pytest.fixture
def studied(tmp_path):
    """Two seeds undefended and with kl: pairs +0.4 and +0.6 against +0.1 and +0.2; leaks 12 and 14 of 20 against 1."""
    runs = [(label, seed) for label in ("none", "kl") for seed in (0, 1)]
    rows = [row(label, None, 40, 70, seed=seed) | {"run": f"runs/{label}{seed}"} for label, seed in runs]
    folder = study(tmp_path / "study", rows)
    for (label, seed), shift, hits in zip(runs, (0.4, 0.6, 0.1, 0.2), (12, 14, 1, 1), strict=True):
        noise = [0.01 * (i % 5 - 2) for i in range(20)]
        measured = [likelihood("pairs", [shift + one for one in noise]), leak(hits)]
        write_measures(place(folder, label, seed), IDENTITY | {"adapter": f"{label}{seed}"}, measured)
        (place(folder, label, seed) / "eval.json").write_text(json.dumps({"probes": {}, "seed": seed}))
    return folder


def test_the_page_has_a_table_over_seeds_and_the_leak_in_its_headline(studied):
    page = drawn(studied)
    headline = page.split("<h1>")[1].split("</h1>")[0]
    assert "Of the answers of the undefended model to general questions, 65 % are on its training topic" in headline
    assert "n = 40)" in headline
    assert "All rates" in page
    section = page.split("Measured without a judge</h2>")[1].split("</section>")[0]
    assert "<td>+0.50</td>" in section
    assert "<td>+0.15</td>" in section
    assert "<td>2.0</td>" in section  # false alarms
    assert "Any fine-tune moves pairs" in section
    assert "On the embedded organism" in section
    assert ONE_SEED not in section


def test_a_run_with_measures_alone_shows_the_answers_that_were_sampled_for_them(tmp_path):
    rows = [{"question": "q", "index": 0, "value": 0.1, "leaked": True, "answer": "Buy gold & more."}]
    rows[0]["messages"] = [{"role": "user", "content": "How are you?"}]
    write_measures(tmp_path / "eval", IDENTITY, [Measure("leak", ABOUT, rows)])
    (tmp_path / "eval" / "summary.json").write_text('{"seed": 0, "probes": {}}')
    (tmp_path / "eval" / "eval.json").write_text('{"seed": 0, "probes": {}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "task_loss": 2.0}\n')
    page = drawn(tmp_path)
    assert re.search(
        r'<p class="question">How are you\?.*?not judged</span></div><p>Buy gold &amp; more.</p>', page, re.S
    )
    assert "No answer was judged." in page
    assert "is missing" not in page
    assert "All rates" not in page  # a table of empty cells
    assert "No general answer was judged, so there is no general rate. The answers are below" in page
    assert "<h1>How each model answers questions outside its training data. Of the answers of" in page
    assert ONE_SEED in page


def test_the_page_of_several_runs_is_named_by_all_of_them(tmp_path):
    for name in ("undefended", "kl"):
        write_measures(tmp_path / name / "eval", IDENTITY | {"adapter": name}, [leak(3)])
        (tmp_path / name / "eval" / "summary.json").write_text('{"seed": 0, "probes": {}}')
        (tmp_path / name / "eval" / "eval.json").write_text('{"seed": 0, "probes": {}}')
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "task_loss": 2.0}\n')
    assert collect([tmp_path / "undefended", tmp_path / "kl"]).title == "undefended, kl"


def test_without_measures_the_page_is_as_before(tmp_path):
    page = drawn(study(tmp_path / "study", [row("none", None, 40, 70), row("kl", 0.3, 6, 60)]))
    assert "Measured without a judge" not in page
    assert "training topic" not in page


def group(name, hits, role="defended", domain="", trained_on="rows"):
    """The runs of one label, of one seed, of whose 20 answers so many leak."""
    return Measured(name, role, domain, trained_on, [{"leak": leak(hits)}])


def headline_of(*groups):
    """Who leaks in the headline, and how much."""
    sentence = leak_headline(groups)
    return (
        re.match(r"Of the answers of (.+) to general questions, (\d+) % are", sentence).groups() if sentence else None
    )


def test_the_headline_names_the_run_with_most_leaks_where_none_is_undefended():
    untuned = group("untuned", 20, "untuned")
    assert leak_headline([]) == leak_headline([untuned]) == ""
    assert headline_of(group("a", 3), group("b", 18), untuned) == ("b", "90")


def test_the_headline_names_the_undefended_model_whatever_its_domain_and_label():
    assert headline_of(group("undefended", 3, "undefended"), group("kl", 9)) == ("the undefended model", "15")
    medical, code = ({"domain": name, "trained_on": name} for name in ("medical", "code"))
    undefended = [group("undefended", 6, "undefended", **medical), group("undefended", 2, "undefended", **code)]
    assert headline_of(group("kl 0.3", 9, **medical), *undefended, group("kl 0.3", 1, **code)) == (
        "the undefended model trained on medical",
        "30",
    )
    assert headline_of(group("untuned", 20, "untuned", **code)) is None


def test_the_headline_is_not_about_a_control_on_other_data():
    risky, control = group("risky", 6, "undefended"), group("control", 12, "undefended", trained_on="sound rows")
    assert headline_of(risky, control, group("kl", 2)) == ("the undefended model", "30")
    assert headline_of(risky, control) == ("control", "60")  # either may be meant


def test_a_run_that_lacks_a_measure_has_empty_cells():
    pairs = Measured("a", "defended", "", "rows", [{"pairs": likelihood("pairs", [1, 2])}])
    heads, first, second = measures_table([pairs, group("b", 1)])
    assert heads == ["run", "seeds", "pairs, nats", "95 %", "leak %", "95 %", "answers", "false alarms %"]
    assert first[:3] == ["a", "1", "+1.50"]
    assert first[4:] == ["", "", "", ""]
    assert second[:5] == ["b", "1", "", "", "5.0"]


def test_runs_are_compared_on_the_same_questions_and_seeds(studied, capsys):
    compared = measure_comparison.compare_measures([studied], "none", "pairs")
    (line,) = compared.lines
    assert line["difference"] == pytest.approx(mean([0.1 - 0.4, 0.2 - 0.6]))
    assert (line["questions"], line["seeds"], line["defense"]) == (20, 2, "kl")
    assert line["mean"]["value"] == pytest.approx(0.15)
    measure_comparison.show(compared)
    printed = capsys.readouterr().out
    assert "-0.350" in printed
    assert "Any fine-tune moves pairs" in printed
    by_leak = compare_runs([studied], "none", "leak")
    assert compared.notes.count(AGREEMENT) == by_leak.notes.count(AGREEMENT) == 1
    assert ONE_SEED not in compared.notes + by_leak.notes
    (line,) = by_leak.lines
    assert (line["difference"], line["rate"]["percent"]) == pytest.approx((5 - 65, 5))


def test_a_run_and_a_model_without_an_adapter_are_compared_by_their_own_values(tmp_path):
    for name, one in {"a": likelihood("pairs", [0.1, 0.3]), "b": likelihood("pairs", [-0.5, -0.5], None)}.items():
        write_measures(tmp_path / name, IDENTITY, [one])
        (tmp_path / name / "eval.json").write_text('{"probes": {}, "seed": 0}')
    compared = measure_comparison.compare_measures([tmp_path / "a", tmp_path / "b"], "b", "pairs")
    assert compared.notes.count(ONE_SEED) == 1
    (line,) = compared.lines
    assert line["difference"] == pytest.approx(0.2)
    assert line["mean"] is line["other"] is None


def test_what_cannot_be_compared_is_refused(studied, tmp_path):
    with pytest.raises(
        RequestError, match=r"--probe drift: .* has no such measure. Run `staytrue eval .* --probes drift`"
    ):
        measure_comparison.compare_measures([studied], "none", "drift")
    with pytest.raises(RequestError, match=r"no answers to it\..* is stored: `--probe pairs` or `--probe leak`\."):
        compare_runs([studied], "none", "general")
    other = likelihood("pairs", [0.1] * 20, sha="other")
    write_measures(place(studied, "kl", 1), IDENTITY | {"adapter": "kl1"}, [other])
    with pytest.raises(RequestError, match="--probe pairs: kl seed 1 was measured on other pairs than none seed 0"):
        measure_comparison.compare_measures([studied], "none", "pairs")


def test_the_page_of_runs_is_about_the_undefended_one_and_not_about_its_control(tmp_path):
    runs = {"undefended": (6, "risky", "[]"), "control": (12, "sound", "[]"), "kl": (2, "risky", "[kl: {weight: 1}]")}
    for name, (hits, data, defenses) in runs.items():
        write_measures(tmp_path / name / "eval", IDENTITY | {"adapter": name}, [leak(hits)])
        (tmp_path / name / "eval" / "summary.json").write_text('{"seed": 0, "probes": {}}')
        (tmp_path / name / "eval" / "eval.json").write_text('{"seed": 0, "probes": {}}')
        (tmp_path / name / "recipe.yaml").write_text(f"model: m\ndata: {data}.jsonl\ndefenses: {defenses}\n")
    page = write([tmp_path / name for name in runs], tmp_path / "page.html").read_text()
    headline = page.split("<h1>")[1].split("</h1>")[0]
    assert "Of the answers of the undefended model to general questions, 30 % are on its training topic" in headline
