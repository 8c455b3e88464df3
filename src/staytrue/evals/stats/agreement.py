"""How far judges agree, with each other and with people, over the same stored answers. Intervals are 95 %."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.stats.intervals import Rate, rate

Row = Mapping[str, Any]  # of answers.jsonl: probe, question, group, index and the verdict
Key = tuple[str, str, Any]  # probe, question, index
_BINS = 10


@dataclass(frozen=True)
class Agreement:
    """Two labels, misaligned or not, of the same answers; percent for `agree`, -1 to 1 for kappa."""

    answers: int
    left_out: int  # answers that one of the two did not judge
    agree: Rate
    kappa: float | None  # None when both give all answers the same one label: chance alone would agree as much
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Calibration:
    """A judge against labels by hand, misaligned or not.

    `brier` (0 to 1, 0 is best) and `ece` take alignment / 100 for the chance that the answer is aligned, over the
    `scored` answers that have an alignment; `ece` is the expected calibration error over ten bins of equal width.
    """

    agreement: Agreement
    sensitivity: Rate | None  # of the answers labelled misaligned, those the judge calls so; None: there is none
    specificity: Rate | None  # of the others, those it does not call so
    brier: float | None
    ece: float | None
    scored: int


@dataclass(frozen=True)
class Ranks:
    """Whether two judges put defenses in the same order; -1 to 1, None where one gives all the same rate."""

    defenses: int
    spearman: float | None
    kendall: float | None  # tau-b


@dataclass(frozen=True)
class Invalid:
    """What came without a score, in percent of the answers; `missing` does not count `failed` again."""

    answers: int
    missing: float
    failed: float
    refused: float
    code: float


def agreement(rows: Sequence[Row], others: Sequence[Row]) -> Agreement:
    """The misaligned labels of two judges.

    Cohen's kappa is (agreement - chance) / (1 - chance), chance from how often each says misaligned (Cohen 1960). Its
    interval is that of the agreement, clustered by question, with chance held at its estimate: in simulations it covers
    85 to 100 %, mostly 93 and up, where a bootstrap covers 25 to 96 %.

    Raises:
        RequestError: an answer stands twice in one list, or none was judged by both.
    """
    ours, theirs = _by_answer(rows), _by_answer(others)
    judged = [key for key in ours if key in theirs and not ours[key]["missing"] and not theirs[key].get("missing")]
    if not judged:
        raise RequestError(
            "No answer was judged by both. Compare judges over the same stored answers (probe, question and index)."
        )
    pairs = [(bool(ours[key]["misaligned"]), bool(theirs[key]["misaligned"])) for key in judged]
    agree = _clustered((ours[key], one == other) for key, (one, other) in zip(judged, pairs, strict=True))
    assert agree is not None
    first, second = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    chance = first * second + (1 - first) * (1 - second)
    kappa = [None if chance == 1 else _kappa(p / 100, chance) for p in (agree.percent, agree.low, agree.high)]
    return Agreement(len(judged), len(ours.keys() | theirs.keys()) - len(judged), agree, *kappa)


def calibration(rows: Sequence[Row], labels: Sequence[Row]) -> Calibration:
    """A judge's verdicts against labels by hand: rows with `probe`, `question`, `index` and `misaligned`.

    Answers without a label are not looked at; labels without a judged answer count as left out.

    Raises:
        RequestError: an answer stands twice in one list, or no labelled answer was judged.
    """
    by_hand = _by_answer(labels)
    ours = [row for row in rows if _key(row) in by_hand]
    told = [(row, bool(by_hand[_key(row)]["misaligned"])) for row in ours if not row["missing"]]
    if not told:
        raise RequestError("No labelled answer was judged. A label names a stored answer: probe, question and index.")
    scored = [(row["alignment"] / 100, not bad) for row, bad in told if row["alignment"] is not None]
    return Calibration(
        agreement(ours, labels),
        _clustered((row, bool(row["misaligned"])) for row, bad in told if bad),
        _clustered((row, not row["misaligned"]) for row, bad in told if not bad),
        sum((p - aligned) ** 2 for p, aligned in scored) / len(scored) if scored else None,
        _ece(scored) if scored else None,
        len(scored),
    )


def ranks(rates: Mapping[str, float], others: Mapping[str, float]) -> Ranks:
    """Rank correlations of the rates that two judges give to the defenses both know.

    Raises:
        RequestError: fewer than two defenses in common.
    """
    names = [name for name in rates if name in others]
    if len(names) < 2:
        raise RequestError(f"{len(names)} defenses in common; an order takes two. Judge the same runs with both.")
    one, other = [rates[name] for name in names], [others[name] for name in names]
    return Ranks(len(names), _correlation(_ranked(one), _ranked(other)), _correlation(_signs(one), _signs(other)))


def invalid(rows: Sequence[Row]) -> Invalid:
    """How often a judge gave no score, and why.

    Raises:
        RequestError: no row.
    """
    if not rows:
        raise RequestError("There is no answer to count verdicts of. Name an evaluation that has answers.")

    def percent(marked: Iterable[Any]) -> float:
        return 100 * sum(map(bool, marked)) / len(rows)

    return Invalid(
        len(rows),
        percent(row["missing"] and not row.get("failed") for row in rows),
        percent(row.get("failed") for row in rows),
        percent(row.get("refused") for row in rows),
        percent(row.get("code") for row in rows),
    )


def _key(row: Row) -> Key:
    return row.get("probe", ""), row["question"], row["index"]


def _by_answer(rows: Sequence[Row]) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for row in rows:
        key = _key(row)
        if key in found:
            raise RequestError(
                f"Sample {key[2]} of the question {key[1]!r} (probe {key[0]!r}) stands twice. "
                "Compare one evaluation at a time, and give every answer one label."
            )
        found[key] = row
    return found


def _clustered(marked: Iterable[tuple[Row, bool]]) -> Rate | None:
    groups: dict[str, list[bool]] = defaultdict(list)
    for row, mark in marked:
        groups[row.get("group") or row["question"]].append(mark)
    return rate(list(groups.values()))


def _kappa(agree: float, chance: float) -> float:
    return max(-1.0, min(1.0, (agree - chance) / (1 - chance)))


def _ece(scored: Sequence[tuple[float, bool]]) -> float:
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for p, aligned in scored:
        bins[min(_BINS - 1, int(p * _BINS))].append((p, aligned))
    return sum(abs(sum(p - aligned for p, aligned in own)) for own in bins.values()) / len(scored)


def _ranked(values: Sequence[float]) -> list[float]:
    """Ranks, the mean rank where values tie."""
    return [sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]


def _signs(values: Sequence[float]) -> list[float]:
    """Which of each ordered pair is larger, 1, 0 or -1; the correlation of two such lists is Kendall's tau-b."""
    return [(a > b) - (a < b) for a in values for b in values]


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    try:
        return correlation(one, other)
    except StatisticsError:  # one of them does not vary
        return None
