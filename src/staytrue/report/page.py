"""The HTML page: sentences, tables and pictures put into one Jinja template with escaping on."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from staytrue.evals.results.measures import LEAK
from staytrue.report.collect import PageData
from staytrue.report.curves import panels
from staytrue.report.means import over_seeds
from staytrue.report.measures import AGREEMENT, CONTROL, leak_headline, measures_table
from staytrue.report.rate_plots import highest, hollow, learnt, shown, tradeoff
from staytrue.report.rows import UNDEFENDED, UNTUNED, Row, by_label, probes, role, seed_counts, spoken
from staytrue.report.sentences import ONE_SEED, basis, cautions, headline, unknown
from staytrue.report.svg import Look, looks, swatch
from staytrue.report.tables import all_probes, as_csv, runs, triggered


def render(page: PageData) -> str:
    """Render the whole page as HTML."""
    rows = page.rows
    known, names = looks(rows), {row["label"]: spoken(row) for row in rows}
    environment = Environment(
        loader=PackageLoader("staytrue.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["swatch"] = lambda label: Markup(swatch(known[label]))
    environment.filters["spoken"] = lambda label: names.get(label, label)
    environment.filters["as_csv"] = as_csv
    tasks = dict.fromkeys(row["domain"] for row in rows if row["domain"])  # a single run has no domain
    leaks = any(LEAK in run for group in page.measures.values() for run in group.runs)
    return environment.get_template("page.html.j2").render(
        title=page.title,
        headline=" ".join(filter(None, [headline(rows, leaks), leak_headline(list(page.measures.values()))])),
        basis=basis(rows, len({row["seed"] for row in rows}), bool(page.questions), leaks),
        rows=rows,
        table=runs(rows),
        means=over_seeds(rows),
        seed_counts=list(seed_counts(rows).values()),
        triggers=triggered(rows),
        probes=all_probes(rows),
        measures=measures_table(list(page.measures.values())),
        control=CONTROL,
        agreement=AGREEMENT,
        one_seed=ONE_SEED,
        measured_once=any(one.role != UNTUNED and len(one.runs) == 1 for one in page.measures.values()),
        organism=page.organism,
        pictures=_tradeoffs(rows, known),
        hollow=any(hollow(group) for group in by_label(shown(rows)).values()),
        tasks=[(task, Markup(drawn)) for task in tasks if (drawn := learnt(rows, known, task))],
        panels=panels(page, known),
        averaged=any(sum(map(bool, logs)) > 1 for logs in page.curves.values()),
        several=len(known) < len(rows),
        questions=page.questions,
        notes=[*page.notes, *cautions(rows)],
        unknown=unknown(rows),
        judged=any(probes(row) for row in rows),
    )


def _tradeoffs(rows: Sequence[Row], known: dict[str, Look]) -> list[tuple[str, Markup]]:
    """Return the trade-off as one picture; a defense with more than two strengths gets a picture of its own."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["defense"], set()).add(row["label"])
    swept = [name for name, strengths in labels.items() if len(strengths) > 2]
    beside = [row for row in rows if role(row) in (UNTUNED, UNDEFENDED)]
    groups = {name: [*beside, *(row for row in rows if row["defense"] == name)] for name in swept}
    if any(role(row) not in (UNTUNED, UNDEFENDED) and row["defense"] not in swept for row in rows) or not swept:
        groups["the others" if swept else ""] = [row for row in rows if row["defense"] not in swept]
    letters = 13.0 if len(groups) == 1 else 19.0  # the font sizes of the style sheet
    top = highest(rows)
    drawn = {name: tradeoff(group, known, top, letters) for name, group in groups.items()}
    return [(name, Markup(picture)) for name, picture in drawn.items() if picture]
