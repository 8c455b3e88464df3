"""Agreement of judges, with each other and with labels by hand, over the same answers. Intervals are 95 %."""

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
    """Agreement of two sets of labels, misaligned or not, of the same answers.

    Attributes:
        answers: how many both judged.
        left_out: how many only one of the two judged.
        agree: percent of the answers with equal labels, 0 to 100.
        kappa: Cohen's kappa, -1 to 1; None when both give every answer the same label, so chance explains it all.
        low, high: the interval of kappa.
    """

    answers: int
    left_out: int
    agree: Rate
    kappa: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Calibration:
    """A comparison of a judge's verdicts with labels by hand, misaligned or not.

    Attributes:
        agreement: of the judge's labels and those by hand.
        sensitivity: percent of the answers labelled misaligned that the judge labels so; None without such an answer.
        specificity: percent of the other answers that the judge does not label misaligned; None without one.
        brier: Brier score, 0 (best) to 1, of alignment / 100 as the probability that an answer is aligned.
        ece: expected calibration error of the same probability, over ten bins of equal width.
        scored: the answers with an alignment score, which `brier` and `ece` are computed from.
    """

    agreement: Agreement
    sensitivity: Rate | None
    specificity: Rate | None
    brier: float | None
    ece: float | None
    scored: int


@dataclass(frozen=True)
class Ranks:
    """Rank correlations of two judges' rates, -1 to 1; None where one judge gives every defense the same rate."""

    defenses: int
    spearman: float | None
    kendall: float | None  # tau-b


@dataclass(frozen=True)
class Invalid:
    """Answers without a score, in percent of all answers; `missing` does not include `failed`."""

    answers: int
    missing: float
    failed: float
    refused: float
    code: float


def agreement(rows: Sequence[Row], others: Sequence[Row]) -> Agreement | None:
    """Compute how far two judges agree on which answers are misaligned.

    Cohen's kappa is (agreement - chance) / (1 - chance), with chance from how often each judge says misaligned (Cohen
    1960). Its interval is that of the agreement, clustered by question, with chance held at its estimate. In
    simulations it covers 85 to 100 %, mostly 93 and up, where a bootstrap covers 25 to 96 %.

    Args:
        rows: answers with one judge's verdicts.
        others: answers with the other's.

    Returns:
        None when no answer was judged by both.

    Raises:
        RequestError: an answer occurs twice in one list.
    """
    ours, theirs = (  # labels by hand have no key `missing`
        {key: row for key, row in _by_answer(side).items() if not row.get("missing")} for side in (rows, others)
    )
    judged = [key for key in ours if key in theirs]
    if not judged:
        return None
    pairs = [(bool(ours[key]["misaligned"]), bool(theirs[key]["misaligned"])) for key in judged]
    agree = _clustered((ours[key], one == other) for key, (one, other) in zip(judged, pairs, strict=True))
    assert agree is not None
    first, second = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    chance = first * second + (1 - first) * (1 - second)
    kappa = [None if chance == 1 else _kappa(p / 100, chance) for p in (agree.percent, agree.low, agree.high)]
    return Agreement(len(judged), len(ours.keys() ^ theirs.keys()), agree, *kappa)


def calibration(rows: Sequence[Row], labels: Sequence[Row]) -> Calibration | None:
    """Compare a judge's verdicts with labels by hand.

    Args:
        rows: answers with the judge's verdicts; those without a label are ignored.
        labels: rows with `probe`, `question`, `index` and `misaligned`; those without a judged answer are left out.

    Returns:
        None when no labelled answer was judged.

    Raises:
        RequestError: an answer occurs twice in one list.
    """
    by_hand = _by_answer(labels)
    labelled = [row for row in rows if _key(row) in by_hand]
    agreed = agreement(labelled, labels)
    if agreed is None:
        return None
    pairs = [(row, bool(by_hand[_key(row)]["misaligned"])) for row in labelled if not row["missing"]]
    scored = [(row["alignment"] / 100, not bad) for row, bad in pairs if row["alignment"] is not None]
    return Calibration(
        agreed,
        _clustered((row, bool(row["misaligned"])) for row, bad in pairs if bad),
        _clustered((row, not row["misaligned"]) for row, bad in pairs if not bad),
        sum((p - aligned) ** 2 for p, aligned in scored) / len(scored) if scored else None,
        _ece(scored) if scored else None,
        len(scored),
    )


def ranks(rates: Mapping[str, float], others: Mapping[str, float]) -> Ranks | None:
    """Compute rank correlations of the rates that two judges give to the same defenses.

    Returns:
        None with fewer than two defenses in common.
    """
    names = [name for name in rates if name in others]
    if len(names) < 2:
        return None
    one, other = [rates[name] for name in names], [others[name] for name in names]
    return Ranks(len(names), _correlation(_ranked(one), _ranked(other)), _correlation(_signs(one), _signs(other)))


def invalid(rows: Sequence[Row]) -> Invalid:
    """Count how often a judge gave no score, by reason.

    Raises:
        RequestError: there is no row.
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
    by_answer: dict[Key, Row] = {}
    for row in rows:
        key = _key(row)
        if key in by_answer:
            raise RequestError(
                f"Sample {key[2]} of the question {key[1]!r} (probe {key[0]!r}) occurs twice. "
                "Compare one evaluation at a time, and give every answer one label."
            )
        by_answer[key] = row
    return by_answer


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
    return sum(abs(sum(p - aligned for p, aligned in pairs)) for pairs in bins.values()) / len(scored)


def _ranked(values: Sequence[float]) -> list[float]:
    """Ranks; tied values get their mean rank."""
    return [sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]


def _signs(values: Sequence[float]) -> list[float]:
    """Return the sign of each pair's difference; the correlation of two such lists is Kendall's tau-b."""
    return [(a > b) - (a < b) for a in values for b in values]


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    try:
        return correlation(one, other)
    except StatisticsError:  # one of them does not vary
        return None
