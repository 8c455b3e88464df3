"""Pictures: every mark and line stands where its numbers put it."""

import json
import re
from itertools import pairwise

from fake_results import drawn, rates, row, study
from staytrue.report.curves import axes, curves
from staytrue.report.rate_plots import highest, learnt, tradeoff
from staytrue.report.svg import looks


def test_a_mark_stands_where_its_numbers_put_it():
    # The plot is 640 x 480 inside margins 58, 24, 18, 52: 558 wide, 410 high.
    # 50 % learnt: x = 58 + 279 = 337. 25 % general: y = 480 - 52 - 102.5 = 325.5.
    # 10 to 40 % is y 387 to 264; 30 to 70 % is x 58 + 167.4 = 225.4 to 58 + 390.6 = 448.6.
    one = row("untuned", None, rates(25, 10, 40), rates(50, 30, 70))
    picture = tradeoff([one], looks([row("untuned")]))
    assert '<circle class="mark f0" cx="337.0" cy="325.5" r="7"/>' in picture
    assert '<line class="bar c0" x1="337.0" y1="387.0" x2="337.0" y2="264.0"/>' in picture
    assert '<line class="bar c0" x1="225.4" y1="325.5" x2="448.6" y2="325.5"/>' in picture


def test_several_seeds_are_a_mean_with_its_interval_among_small_marks():
    # 24, 25 and 26 % general, each known exactly: 25 and t(2) = 4.30265 times 1 / sqrt(3), 2.484, either way, which is
    # y 428 - 4.1 * 22.516 = 335.7 and 315.3. In the domain all say 50 (45 to 55): x 58 + 5.58 * 45 = 309.1 to 364.9.
    rows = [row("untuned", None, rates(g, g, g), rates(50, 45, 55), seed=g) for g in (24, 25, 26)]
    picture = tradeoff(rows, looks([row("untuned")]))
    assert re.findall(r'cy="([\d.]+)" r="(\d)"', picture) == [
        ("329.6", "3"),
        ("325.5", "3"),
        ("321.4", "3"),
        ("325.5", "7"),
    ]
    assert '<line class="bar c0" x1="337.0" y1="335.7" x2="337.0" y2="315.3"/>' in picture
    assert '<line class="bar c0" x1="309.1" y1="325.5" x2="364.9" y2="325.5"/>' in picture


def test_a_mark_is_hollow_above_10_percent_of_incoherent_answers():
    def drawn(*incoherent):
        rows = [row("none", None, rates(1) | {"incoherent": percent}, 90, seed=percent) for percent in incoherent]
        return tradeoff(rows, looks([row("none")]))

    assert 'class="hollow c1"' in drawn(10, 11)
    assert "hollow" not in drawn(10, 10)


def test_the_axis_up_ends_just_above_the_highest_interval():
    rows = [row("none", None, rates(45, 33, 57), 90), row("kl", 0.3, rates(25, 20, 31), 90)]
    assert highest(rows) == 60.0
    picture = tradeoff(rows[:1], looks([row("none")]), highest(rows))
    # 45 of 60 is three quarters of 410: y = 480 - 52 - 307.5 = 120.5; x of 90 is 58 + 502.2 = 560.2.
    assert 'points="553.9,114.2 566.5,114.2 566.5,126.8 553.9,126.8"' in picture
    assert highest([row("none", None, rates(98, 95, 100), 90)]) == 100.0
    # Two seeds: 15 and t(1) = 12.7062 times 7.0711 / sqrt(2) = 63.5, so 78.5.
    assert highest([row("none", None, rates(g, g, g), 90) for g in (10, 20)]) == 80.0
    # Five: 10 and t(4) = 2.7764 times 22.36 / sqrt(5) = 27.8, so 37.8; one run stands at 50.
    assert highest([row("none", None, rates(g, g, g), 90) for g in (0, 0, 0, 0, 50)]) == 60.0


def test_a_name_in_large_letters_stays_inside_the_picture_and_covers_no_other():
    rows = [row("a defense", s, g, 99) for s, g in ((0.1, 9), (0.2, 8), (0.3, 7))]
    picture = tradeoff(rows, looks(rows), 100.0, 19.0)
    drawn = re.findall(r'class="name[^>]* x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', picture)
    for x, _, anchor, text in drawn:
        wide = 0.63 * 19 * len(text)
        assert float(x) + (wide if anchor == "start" else 0) <= 640
    heights = sorted(float(y) for _, y, _, _ in drawn)
    assert len(drawn) == 3
    assert all(b - a >= 1.4 * 19 - 0.11 for a, b in pairwise(heights))


def lined(series):
    rows = [{"label": label, "defense": label} for label in series]
    return curves(series, looks(rows), "Task loss", "nats per token", axes(series))


def test_a_table_shows_small_numbers_too(tmp_path):
    folder = study(tmp_path / "S", [row("kl")])
    lines = [{"step": step, "task_loss": 2.0 / step, "kl": 1.23456e-6 * step} for step in (1, 2)]
    (folder / "runs" / "kl" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = drawn(folder)
    assert "<td>1.235e-06</td>" in page
    assert "1%2C1.235e-06" in page  # as CSV
    assert "0.0000" not in page


def test_a_line_goes_through_its_numbers():
    # 410 x 230 inside margins 48, 14, 14, 40: 348 wide, 176 high, to step 4 and 2 nats.
    # (1, 2.0) is x = 48 + 87 = 135, y = 230 - 40 - 176 = 14; (4, 1.0) is x = 396, y = 190 - 88 = 102.
    picture = lined({"kl 0.1": [(1, 2.0, 2.0, 2.0), (4, 1.0, 1.0, 1.0)]})
    assert 'class="band' not in picture  # of one run
    assert 'points="135.0,14.0 396.0,102.0"' in picture
    assert "kl 0.1 ends at 1." in picture


def test_several_runs_are_a_line_with_a_band_from_the_lowest_to_the_highest():
    # As above; from 0 to 2 the band's high edge stands at y 190 - 88 * high, and comes back along the low edge.
    picture = lined({"kl 0.1": [(2, 1.0, 0.5, 1.5), (4, 1.0, 0.0, 2.0)]})
    assert 'class="band f2" points="222.0,58.0 396.0,14.0 396.0,190.0 222.0,146.0"' in picture


def test_a_reward_below_zero_stays_inside_the_frame():
    # From -1 to 1 over 176: -1 stands on the floor at 190, 0 in the middle at 102.
    picture = lined({"none": [(step, y, y, y) for step, y in ((1, -1.0), (2, 0.0), (4, 1.0))]})
    assert re.findall(r'points="([\d., ]+)"', picture) == ["135.0,190.0 222.0,102.0 396.0,14.0"]


def test_strengths_of_one_defense_are_joined_weakest_first_and_named_once():
    rows = [row("kl", s, g, 100 - g) for s, g in ((1, 10), (0.1, 50), (0.3, 30))] + [row("untuned", None, 0, 0)]
    picture = tradeoff(rows, looks(rows))
    # x is 58 + 5.58 * learnt: 50, 70, 90; y is 428 - 4.1 * general: 50, 30, 10.
    assert '<polyline class="trail c2" points="337.0,223.0 448.6,305.0 560.2,387.0"/>' in picture
    assert sorted(re.findall(r'class="name[^>]*>([^<]+)<', picture)) == ["0.3", "1", "kl 0.1", "untuned"]


def test_what_was_learnt_of_a_task_is_a_mark_at_its_mean_with_an_interval():
    marked = {"correct": 50.0, "low": 40.0, "high": 60.0, "n": 60}
    one = row("kl", 0.3) | {"in_domain": None, "domain": "opswap-2", "benign": marked}
    other = one | {"seed": 1, "benign": {"correct": 50.0, "low": 30.0, "high": 80.0, "n": 60}}
    # 640 wide inside 170 and 24: 50 % is 170 + 223 = 393; the first line is at 12 + 14 = 26.
    # Both runs say 50, so the interval is the mean of theirs: 35 to 70, x 326.1 to 482.2.
    picture = learnt([one, other], looks([row("kl", 0.3)]), "opswap-2")
    assert '<line class="bar c2" x1="326.1" y1="26.0" x2="482.2" y2="26.0"/>' in picture
    assert learnt([row("kl", 0.3)], looks([row("kl", 0.3)]), "medical") == ""


def test_no_defense_looks_like_undefended_or_like_another():
    by_label = looks([row("untuned"), row("none"), *(row(f"defense{i:02}") for i in range(30))])
    assert len(set(by_label.values())) == 32
    assert [label for label, look in by_label.items() if look.colour in (0, 1)] == ["untuned", "none"]


def test_strengths_share_a_look_and_folders_with_a_number_in_their_name_do_not():
    weak, strong = looks([row("kl", 0.1), row("kl", 0.3)]).values()
    assert weak == strong
    first, second = looks([row("lr 1"), row("lr 2")]).values()
    assert first != second


def test_long_numbers_beside_an_axis_fit():
    # To 0.016 by quarters: "0.012" is five letters, so the axis stands at 20 + 35 = 55, and step 4 of 4 at 396.
    picture = lined({"kl 0.1": [(2, 0.0, 0.0, 0.0), (4, 0.016, 0.016, 0.016)]})
    assert 'points="225.5,190.0 396.0,14.0"' in picture
