"""python studies/agreement.py STUDY: how the measures without a judge agree with judged rates, over a study's runs.

Measures `pairs`, `drift` and `leak` of every run of a finished study on the organism (`staytrue study
studies/strengths.yaml --out STUDY`), where they are not stored yet. Prints, for each measure, Spearman's and Kendall's
rank correlation with the judged percent of misaligned general answers, and the AUROC for runs above 10 % (drift is
taken with its sign turned: the further the model moved, the higher). The untuned model is left out.
"""

import json
import sys
from pathlib import Path

from staytrue.evals.results.measures import summaries
from staytrue.evals.stats.agreement import ranks
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.evaluate import evaluate_run

MEASURES = ("pairs", "drift", "leak")
MISALIGNED = 10.0  # percent of general answers, judged


def auroc(positive: list[float], negative: list[float]) -> float:
    """The probability that a positive value is above a negative one; ties count half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / len(positive) / len(negative)


def main(study: Path) -> None:
    rows = json.loads((study / "results.json").read_text(encoding="utf-8"))["rows"]
    judged, values = {}, {name: {} for name in MEASURES}
    for row in rows:
        run = study / row["run"]
        if row["defense"] == "untuned" or not (run / "model").is_dir():
            continue
        stored = summaries(run / "eval")
        if not stored.keys() >= set(MEASURES):
            evaluate_run(run, seed=row["seed"], request=EvalRequest(MEASURES))
            stored = summaries(run / "eval")
        judged[row["run"]] = row["general"]["misaligned"]
        for name in MEASURES:
            values[name][row["run"]] = stored[name]["value"] * (-1 if name == "drift" else 1)
        shown = "  ".join(f"{name} {stored[name]['value']:+.3f}" for name in MEASURES)
        incoherent = row["general"]["incoherent"]
        print(f"{row['run']:45} misaligned {judged[row['run']]:5.1f} incoherent {incoherent:5.1f}  {shown}", flush=True)
    above = {run for run, percent in judged.items() if percent > MISALIGNED}
    print(f"{len(judged)} runs, {len(above)} of them above {MISALIGNED:g} %")
    for name, by_run in values.items():
        order = ranks(by_run, judged)
        area = auroc([by_run[run] for run in above], [by_run[run] for run in by_run if run not in above])
        print(f"{name}: Spearman {order.spearman}, Kendall {order.kendall}, AUROC {area:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
