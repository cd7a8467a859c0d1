"""How good scores are: exact metrics of labels and scores, for each kind of task, and the log loss of each example."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_PROBABILITY = (
    1e-6  # a score is as sure as this at most; also what a score that is not a number counts as
)
CALIBRATION_BINS = 10

Floats = NDArray[np.float64]


def log_loss(label: NDArray[Any], score: NDArray[np.floating[Any]]) -> Floats:
    """Log loss in nats of each example [n], from labels (0 or 1) and probabilities.

    Always finite for such labels: probabilities are kept 1e-6 away from 0 and 1, and a model whose score is
    not a number is taken to be as wrong as can be (13.8 nats).
    """
    scores = np.asarray(score, np.float64)
    right = np.where(np.asarray(label) > 0.5, scores, 1.0 - scores)
    losses: Floats = -np.log(np.clip(np.nan_to_num(right, nan=0.0), SMALLEST_PROBABILITY, 1.0))
    return losses


def metrics(label: NDArray[Any], score: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Metrics of labels [n] and probabilities [n], exact, ties counted half.

    Keys: n, positives, auc, average_precision, log_loss, ece. Those that are undefined are NaN: all but n and
    positives without examples, auc and average_precision without both classes. A score that is not a number
    counts as the lowest for the ranking and as wrong for the loss; it is left out of ece.
    """
    count, positive = len(label), np.asarray(label) > 0.5
    positives = int(positive.sum())
    row = {"n": float(count), "positives": float(positives)}
    row |= dict.fromkeys(("auc", "average_precision", "log_loss", "ece"), math.nan)
    if not count:
        return row
    ranked = np.nan_to_num(np.asarray(score, np.float64), nan=-1.0)
    order = np.argsort(ranked, kind="stable")
    ranked, hits = ranked[order], positive[order]
    starts = np.flatnonzero(
        np.concatenate([[True], ranked[1:] != ranked[:-1]])
    )  # first of each group of ties
    stops = np.concatenate([starts[1:], [count]])
    group_hits = np.add.reduceat(hits.astype(np.int64), starts)
    row["log_loss"] = float(log_loss(label, score).mean())
    row["ece"] = _calibration_error(ranked, hits, starts, stops)
    if 0 < positives < count:
        row["auc"] = _auc(group_hits, stops - starts)
        row["average_precision"] = _average_precision(group_hits, starts, count)
    return row


def _auc(hits: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Chance that a positive ranks above a negative, ties half (Mann-Whitney); groups of ties rise."""
    misses = sizes - hits
    below = np.cumsum(misses) - misses
    return float(np.sum(hits * (below + misses / 2.0)) / (hits.sum() * misses.sum()))


def _average_precision(hits: NDArray[np.int64], starts: NDArray[np.int64], count: int) -> float:
    """Sum over thresholds of precision times the gain in recall, a threshold for each distinct score."""
    caught = np.cumsum(hits[::-1])
    taken = count - starts[::-1]
    return float(np.sum(hits[::-1] * (caught / taken)) / caught[-1])


def _calibration_error(
    ranked: Floats, hits: NDArray[np.bool_], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> float:
    """Expected calibration error: mean distance of rate and mean score over bins with equally many examples.

    Bins of equal width would hold nearly all of a stream of rare events in one. Tied scores share a bin, so
    that the order of examples does not matter.
    """
    known = int(np.searchsorted(ranked, 0.0, side="left"))  # those before are not numbers
    count = len(ranked) - known
    if not count:
        return math.nan
    place = np.repeat(starts, stops - starts)[known:] - known
    bins = place * CALIBRATION_BINS // count
    rate = np.bincount(bins, hits[known:], CALIBRATION_BINS)
    mean = np.bincount(bins, ranked[known:], CALIBRATION_BINS)
    return float(np.abs(rate - mean).sum() / count)


def class_losses(label: NDArray[Any], score: NDArray[np.floating[Any]]) -> Floats:
    """Log loss in nats of each example [n], from numbers of classes [n] and probabilities [n, K]; as `log_loss`."""
    right = np.asarray(score, np.float64)[np.arange(len(label)), np.asarray(label, np.int64)]
    losses: Floats = -np.log(np.clip(np.nan_to_num(right, nan=0.0), SMALLEST_PROBABILITY, 1.0))
    return losses


def class_metrics(label: NDArray[Any], score: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Metrics of numbers of classes [n] and probabilities [n, K].

    Keys: n, positives (0), accuracy, macro_f1 (the mean of each class's F1, over those that were predicted or were
    there), log_loss, and ece: the expected calibration error of the winning class's probability (Guo et al. 2017), over
    ten bins with equally many examples. All but n are NaN without examples. Scores that are no numbers are wrong.
    """
    row = {"n": float(len(label)), "positives": 0.0}
    row |= dict.fromkeys(("accuracy", "macro_f1", "log_loss", "ece"), math.nan)
    if not len(label):
        return row
    truth, known = np.asarray(label, np.int64), np.isfinite(score).all(axis=1)
    winner = np.where(known, np.nan_to_num(score).argmax(axis=1), -1)
    hit = winner == truth
    right = np.bincount(truth[hit], minlength=score.shape[1])
    both = np.bincount(truth, minlength=score.shape[1]) + np.bincount(winner[known], minlength=score.shape[1])
    row["accuracy"] = float(hit.mean())
    row["macro_f1"] = float((2.0 * right[both > 0] / both[both > 0]).mean())
    row["log_loss"] = float(class_losses(label, score).mean())
    row["ece"] = metrics(hit, np.where(known, np.nan_to_num(score).max(axis=1), np.nan))["ece"]
    return row


def regression_metrics(label: NDArray[Any], score: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Metrics of labels [n] and predicted values [n], in the label's unit.

    Keys: n, positives (0), mae (mean absolute error), rmse (root of the mean squared error) and r2 (the share of the
    labels' variance that is explained; below 0 where their mean would have been nearer). Those that are undefined are
    NaN: all without examples, r2 where all labels are equal. A value that is not a number is left out of all of them.
    """
    known = np.isfinite(score)
    labels, values = np.asarray(label, np.float64)[known], np.asarray(score, np.float64)[known]
    row = {"n": float(len(label)), "positives": 0.0} | dict.fromkeys(("mae", "rmse", "r2"), math.nan)
    if not len(labels):
        return row
    errors = values - labels
    squared, variance = float(np.mean(errors**2)), float(labels.var())
    row |= {"mae": float(np.abs(errors).mean()), "rmse": math.sqrt(squared)}
    row["r2"] = 1.0 - squared / variance if variance > 0.0 else math.nan
    return row
