"""deep-river's multilayer perceptron, a row at a time, as its documentation shows it.

    python deep_river_mlp.py STREAM.npz SECONDS OUT.npz        (in the environment that benchmarks/learn.py makes)

The stream has `columns` [n, N] and `label` [n]. Each row is scored, then learned, until the seconds of processor time
are over; `score` [rows] and `seconds` go to OUT. The settings are the best of a few tried (Adam is far behind).
"""

import sys
import time

import numpy as np
import torch
from deep_river.classification import MultiLayerPerceptron  # type: ignore[import-not-found]
from river import preprocessing

SETTINGS = {"n_width": 64, "n_layers": 2, "optimizer_fn": "sgd", "lr": 0.05, "loss_fn": "cross_entropy"}


def run(columns: "np.ndarray", label: "np.ndarray", seconds: float) -> tuple[list[float], float]:
    """The score of each row before it was learned, and the seconds of processor time from the second row on."""
    model = preprocessing.StandardScaler() | MultiLayerPerceptron(
        n_features=columns.shape[1], n_init_classes=2, seed=1, **SETTINGS
    )
    names = [f"c{i}" for i in range(columns.shape[1])]
    rows = [dict(zip(names, row, strict=True)) for row in columns.tolist()]
    answers, scores = [bool(each) for each in label], [0.5]
    model.learn_one(rows[0], answers[0])
    begin = time.process_time()
    for row, answer in zip(rows[1:], answers[1:], strict=True):
        scores.append(float(model.predict_proba_one(row).get(True, 0.5)))
        model.learn_one(row, answer)
        if time.process_time() - begin > seconds:
            break
    return scores, time.process_time() - begin


def main() -> None:
    """Run and write."""
    torch.set_num_threads(1)
    stream = np.load(sys.argv[1])
    scores, seconds = run(stream["columns"], stream["label"], float(sys.argv[2]))
    np.savez(sys.argv[3], score=np.array(scores, np.float32), seconds=np.array(seconds))


if __name__ == "__main__":
    main()
