"""The report in a handful of numbers, ready for JSON."""

from collections.abc import Mapping
from typing import Any

from streams.report.data import COMPARED, History, Latency, Points


def summary(history: History, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The headline figures, ready for JSON; None where there is nothing to say. `facts` wins over the archive.

    `after_drift` and `before_drift` are means of a curve's points after and up to the change, taken at the times
    that all compared arms have, so that they are about the same events.
    """
    change = history.changed_ms
    counts = {name: facts.get(name, count) for name, count in history.counts.items()}
    return {
        "task": history.task,
        "metric": history.metric,
        "predictions": facts.get("predictions", history.counts["archived_predictions"]),
        "accepted": facts.get("accepted"),
        **counts,
        "drift_ms": history.drift_ms,
        "changed_ms": change,
        "first_alert_ms": history.first_after_change(history.alerts),
        "first_swap_ms": history.first_after_change(history.swaps),
        "events_until_alert": history.until.get("alert", 0),
        "events_until_swap": history.until.get("swap", 0),
        "before_drift": mean_of(history.curves, None, change),
        "after_drift": mean_of(history.curves, change, None) if change is not None else {},
        "after_drift_log_loss": mean_of(history.losses, change, None) if change is not None else {},
        "latency_ms": {"scored": _latency(history.scored), "archived": _latency(history.archived)},
        "events_per_second": _rates(history.rate),
        "facts": dict(facts),
    }


def mean_of(curves: Mapping[str, Points], after: int | None, until: int | None) -> dict[str, float]:
    """Arm → mean of its points with after < time ≤ until, at the times that the compared arms have in common."""

    def inside(points: Points) -> dict[int, float]:
        return {t: v for t, v in points if (after is None or t > after) and (until is None or t <= until)}

    parts = {arm: part for arm, points in curves.items() if (part := inside(points))}
    compared = [set(parts[arm]) for arm in COMPARED if arm in parts]
    common = set.intersection(*compared) if compared else set()
    means = {}
    for arm, part in parts.items():
        values = [v for t, v in part.items() if arm not in COMPARED or not common or t in common]
        means[arm] = sum(values) / len(values)
    return means


def _latency(latency: Latency | None) -> dict[str, float] | None:
    return (
        None
        if latency is None
        else {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99, "max": latency.longest}
    )


def _rates(rate: list[tuple[float, float, float]]) -> dict[str, float] | None:
    if not rate:
        return None
    predicted = [out for _, _, out in rate]
    return {"mean": sum(predicted) / len(predicted), "peak": max(predicted)}
