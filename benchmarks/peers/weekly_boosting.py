"""Gradient boosting that is trained anew every week on all labels known by then.

    python weekly_boosting.py ROWS.npz OUT.npz        (in the environment that benchmarks/quality.py makes)

ROWS has `columns` [n, N], `label` [n] (NaN: never known), `day` [n] and `known_day` [n] in days from the start, and
`first_day`. From that day on the rows of each week are scored by the model trained at its start: `score` [n] in OUT.
"""

import sys

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-not-found]

# Small steps and large leaves: with scikit-learn's own settings it overfits the few frauds of the first weeks.
SETTINGS = {
    "max_iter": 100, "learning_rate": 0.05, "max_leaf_nodes": 15, "min_samples_leaf": 200, "l2_regularization": 10.0,
}  # fmt: skip


def main() -> None:
    """Run and write."""
    rows = np.load(sys.argv[1])
    columns, label, day, known = (rows[name] for name in ("columns", "label", "day", "known_day"))
    score = np.full(len(label), np.nan, np.float32)
    for start in np.arange(float(rows["first_day"]), day.max() + 1e-9, 7.0):
        train = (known <= start) & np.isfinite(label)
        test = (day >= start) & (day < start + 7.0)
        model = HistGradientBoostingClassifier(early_stopping=False, random_state=0, **SETTINGS)
        model.fit(columns[train], label[train])
        score[test] = model.predict_proba(columns[test])[:, 1]
    np.savez(sys.argv[2], score=score)


if __name__ == "__main__":
    main()
