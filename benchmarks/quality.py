"""How well frauds are found: the continuous deep model beside weekly gradient boosting and single River models.

Labels become known seven days after the transaction, and nobody learns one before. All see the same features as of the
event, boosting those of the Fraud Detection Handbook among them. What counts is the average precision of the scores
from day 30 on. Without --data it is a simulated stream, on which the figures say little about real ones.
"""

import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import ROOT, finish, parser, scratch, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks._stream import Features

DATA = ROOT.parent / "shared" / "data" / "transactions-2018-04_07.parquet"
TASK = Path(__file__).with_name("transactions.toml")
FIRST_DAY = 30
HANDBOOK = (
    r"TX_AMOUNT|(hour|weekday)_(sin|cos)|customer_TX_AMOUNT_mean_\d+d|(customer|terminal)_count_\d+d"
    r"|terminal_label_rate_(1|7|30)d"
)
NOTES = """\
continuous        `driftline backtest benchmarks/transactions.toml`, policy continuous: a dcn, as live, in event time.
weekly boosting   scikit-learn's histogram boosting, trained anew each week on all labels known by then; the Handbook's
                  columns: amount, time of day and week, count and mean amount of the customer, count and fraud rate of
                  the terminal, each over 1, 7 and 30 days.
River             logistic regression (scaled, sgd 0.01), Gaussian naive Bayes and a Hoeffding tree, all columns, each
                  label learned when it is known."""


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--data", type=Path, default=DATA, help="the Handbook's transactions as a Parquet file")
    made.add_argument(
        "--events", type=int, default=0, help="of the simulation; default: 300,000, quick 60,000"
    )
    made.add_argument("--seed", type=int, default=1, help="of the simulation (default: 1)")
    made.add_argument(
        "--task", default=str(TASK), help="another task for the same fields (transactions.toml)"
    )
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run all, print the table, return the figures."""
    import torch

    from benchmarks._stream import features
    from infra.errors import UserError

    torch.set_num_threads(1)
    file = None if args.quick or not args.data.exists() else args.data
    found = features(args.task, file, args.events or (60_000 if args.quick else 300_000), args.seed)
    first_day = FIRST_DAY if found.days > 2 * FIRST_DAY else found.days / 4
    scores = {"continuous": found.served}
    try:
        with scratch() as home:
            scores["weekly boosting"] = _boosting(home, found, first_day)
    except UserError as error:
        print(f"boosting is left out: {error}\n")
    scores |= {f"river {name}": score for name, score in _river(found).items()}
    source = "a simulated stream" if file is None else file.name
    print(
        f"{source}: {len(found.label):,} transactions in {found.days:.0f} days; from day {first_day:g} on\n"
    )
    return _report(found, scores, first_day)


def _report(
    found: "Features", scores: Mapping[str, "NDArray[np.float32]"], first_day: float
) -> Mapping[str, float]:
    import numpy as np

    from learners.prequential import metrics

    at = (found.day >= first_day) & np.isfinite(found.label)
    rows: list[list[str | float]] = []
    precision: dict[str, float] = {}
    for name, score in scores.items():
        values = metrics(found.label[at], score[at])
        precision[name] = values["average_precision"]
        rows.append([name, values["average_precision"], values["auc"], values["log_loss"]])
    print(table(["model", "average precision", "AUC", "log loss"], rows))
    print(f"\n{NOTES}")
    best = max(value for name, value in precision.items() if name.startswith("river"))
    figures = {"ap_continuous": precision["continuous"], "ap_best_river": best}
    if "weekly boosting" in precision:
        figures["ap_weekly_boosting"] = precision["weekly boosting"]
    return figures


def _boosting(home: Path, found: "Features", first_day: float) -> "NDArray[np.float32]":
    import numpy as np

    from benchmarks._peers import run_peer, scikit_learn_python

    handbook = [i for i, name in enumerate(found.names) if re.fullmatch(HANDBOOK, name)]
    rows, out = home / "rows.npz", home / "scores.npz"
    np.savez(
        rows, columns=found.numbers[:, handbook], label=found.label, day=found.day,
        known_day=found.known_day, first_day=np.array(first_day),
    )  # fmt: skip
    run_peer(scikit_learn_python(), "weekly_boosting.py", [rows, out], 3600.0)
    score: NDArray[np.float32] = np.load(out)["score"]
    return score


def _river(found: "Features") -> dict[str, "NDArray[np.float32]"]:
    """Scores of the River models, each by what it knew at the event; unknown numbers are 0 to them."""
    import numpy as np
    from river import linear_model, naive_bayes, preprocessing, tree

    models: dict[str, Any] = {
        "logistic regression": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        "naive Bayes": naive_bayes.GaussianNB(),
        "Hoeffding tree": tree.HoeffdingTreeClassifier(),
    }
    scores = {name: np.full(len(found.label), np.nan, np.float32) for name in models}
    names, numbers = list(found.names), np.nan_to_num(found.numbers)
    labelled = np.flatnonzero(np.isfinite(found.label))
    waiting = iter(labelled[np.argsort(found.known_day[labelled], kind="stable")].tolist())
    next_one = next(waiting, None)
    for i, day in enumerate(found.day.tolist()):
        while next_one is not None and found.known_day[next_one] <= day:
            row = dict(zip(names, numbers[next_one].tolist(), strict=True))
            for model in models.values():
                model.learn_one(row, bool(found.label[next_one]))
            next_one = next(waiting, None)
        row = dict(zip(names, numbers[i].tolist(), strict=True))
        for name, model in models.items():
            scores[name][i] = model.predict_proba_one(row).get(True, 0.0)
    return scores


if __name__ == "__main__":
    main()
