"""Pictures: every mark and line stands where its numbers put it."""

import re

from fake_results import rates, row
from holdfast.report.pictures import curves, looks, tradeoff


def test_a_mark_stands_where_its_numbers_put_it():
    # The plot is 640 x 480 inside margins 58, 24, 18, 52: 558 wide, 410 high.
    # 50 % learnt: x = 58 + 279 = 337. 25 % general: y = 480 - 52 - 102.5 = 325.5.
    # 10 to 40 % is y 387 to 264; 30 to 70 % is x 58 + 167.4 = 225.4 to 58 + 390.6 = 448.6.
    one = row("untuned", None, rates(25, 10, 40), rates(50, 30, 70))
    picture = tradeoff([one], looks(["untuned"]))
    assert '<circle class="mark f0" cx="337.0" cy="325.5" r="7"/>' in picture
    assert '<line class="bar c0" x1="337.0" y1="387.0" x2="337.0" y2="264.0"/>' in picture
    assert '<line class="bar c0" x1="225.4" y1="325.5" x2="448.6" y2="325.5"/>' in picture


def test_several_seeds_are_a_mean_among_small_marks_without_an_interval():
    # 20 and 30 % general are y 346 and 305, their mean 325.5 as above.
    picture = tradeoff([row("untuned", None, g, 50, seed=g) for g in (20, 30)], looks(["untuned"]))
    assert re.findall(r'cy="([\d.]+)" r="(\d)"', picture) == [("346.0", "3"), ("305.0", "3"), ("325.5", "7")]
    assert 'class="bar' not in picture


def test_a_line_goes_through_its_numbers():
    # 410 x 230 inside margins 48, 14, 14, 40: 348 wide, 176 high, to step 4 and 2 nats.
    # (1, 2.0) is x = 48 + 87 = 135, y = 230 - 40 - 176 = 14; (4, 1.0) is x = 396, y = 190 - 88 = 102.
    picture = curves({"kl 0.1": [(1, 2.0), (4, 1.0)]}, looks(["kl 0.1"]), "Task loss", "nats per token")
    assert 'points="135.0,14.0 396.0,102.0"' in picture
    assert "kl 0.1 ends at 1." in picture
