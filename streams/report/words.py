"""The report's numbers, times, alerts and decisions in words: plain text, not yet escaped for a page."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

DAY_MS = 86_400_000
NONE, MINUS = "\u2013", "\u2212"  # an en dash; a minus sign, which is as wide as a plus
UNITS = ((DAY_MS, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms"))
DETECTORS = {
    "ranks": "ranks of the loss",
    "adwin": "ADWIN on the loss",
    "page_hinkley": "Page and Hinkley's test on the loss",
    "ddm": "DDM on the errors",
    "eddm": "EDDM on the errors",
    "kswin": "KSWIN on the loss",
    "psi": "population stability index",
    "missing": "share of missing values",
    "new_values": "share of values never seen before",
    "joint": "change of how inputs hang together",
    "calibration": "calibration error",
}
SAID = ("command_id", "worker", "has", "late_ms", "version")  # what the reason says already, or nobody reads
ACTIONS = {
    "freeze": "frozen copy kept",
    "start": "challenger started",
    "canary": "serves a share",
    "promote": "promoted: swap",
    "recommend": "promotion recommended",
    "reject": "challenger rejected",
    "expire": "challenger gave up",
    "retire": "challenger retired",
    "rollback": "rolled back: swap",
    "confirm": "swap held",
    "refuse": "refused by a worker",
    "straggle": "not yet everywhere",
    "decline": "request declined",
    "tune": "settings tuned",
}
LOSSES = (("log_loss", "log loss"), ("scaled_error", "scaled error"))
MEASURES = (
    ("auc", "AUC"), ("average_precision", "average precision"), ("rmse", "RMSE"), ("mae", "mean absolute error"),
    ("accuracy", "accuracy"), ("macro_f1", "macro F1"),
)  # fmt: skip


def number(value: float, digits: int = 3) -> str:
    """A number for people: "0.873", "1,240", "3.1e+12"; a dash for one that is undefined."""
    if not math.isfinite(value):
        return NONE
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    if abs(value) >= 1e9 or 0 < abs(value) < 10 ** -(digits + 1):
        return f"{value:.{digits}g}"
    return f"{value:,.{digits}f}"


def count(n: int, noun: str) -> str:
    """A number of things: "1 swap", "2 swaps"; the bare number without a noun."""
    return f"{n:,} {noun}{'s' * (n != 1)}" if noun else f"{n:,}"


def signed(value: float) -> str:
    """A difference with its sign, to three digits."""
    return f"{value:+.3f}".replace("-", MINUS)


def moment(ms: int) -> str:
    """An event time to the second: "2018-06-12 14:05:30"."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # far outside the years a calendar has
        return f"{ms} ms"


def duration(ms: float) -> str:
    """A length of time in its two largest units: "3 d 4 h", "12 min 5 s", "850 ms"."""
    left, parts = abs(round(ms)), []
    for length, unit in UNITS:
        n, left = divmod(left, length)
        if n:
            parts.append(f"{n} {unit}")
        if parts and (len(parts) == 2 or not n):  # "1 d 5 s" would be more exact than it looks
            break
    return MINUS * (ms < 0) + (" ".join(parts) or "0 ms")


def axis_time(ms: float, span_ms: float) -> str:
    """An event time as short as an axis of this span allows: "12 Jun", "14:05", "14:05:30"."""
    try:
        when = datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    if span_ms > 3 * DAY_MS:
        return f"{when.day} {when:%b}"
    if span_ms > DAY_MS // 2:
        return f"{when.day} {when:%b %H:%M}"
    return f"{when:%H:%M}" if span_ms > 10 * 60_000 else f"{when:%H:%M:%S}"


def since(ms: int, change_ms: int | None) -> str:
    """When something happened as seen from the drift: "12 min 5 s after the drift"; "" where there was none."""
    if change_ms is None:
        return ""
    if ms == change_ms:
        return "at the drift"
    return f"{duration(abs(ms - change_ms))} {'after' if ms > change_ms else 'before'} the drift"


def milliseconds(value: float) -> str:
    """A latency: "37 ms", "1.2 s", "3 min 5 s"."""
    if value < 999.5:
        return f"{value:.0f} ms"
    return f"{value / 1000:.2g} s" if value < 59_500 else duration(value)


def size(count: float) -> str:
    """Bytes: "812 B", "41 kB", "1.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit fits everything")


def alert_title(row: Mapping[str, Any]) -> str:
    """What moved: "alarm: input TX_AMOUNT"."""
    return (
        "alarm: loss"
        if row["level"] == "loss"
        else f"alarm: {row['level']} {row['subject']}".removesuffix(" score")
    )


def alert_evidence(row: Mapping[str, Any]) -> list[str]:
    """How strong it was, since when, and who noticed."""
    unit = " nats" if row["level"] == "loss" and row["subject"] == "log_loss" else ""
    detector = DETECTORS.get(row["detector"], row["detector"])
    moved = [
        f"{each.get('name')} is {each.get('change')} (severity {number(float(each.get('severity', 0)))})"
        for each in row["features"]
    ]
    kept = [f"what it rests on is in {row['evidence']}"] if row["evidence"] else []
    return [
        f"severity {number(row['severity'])}, from 0 to 1",
        f"{detector}: {number(row['strength'])}{unit}, raised above {number(row['threshold'])}{unit}",
        *moved,
        *kept,
        f"since event {row['since_event_id']} at {moment(row['since_ms'])}, while {row['version']} was live",
    ]


def decision_title(row: Mapping[str, Any]) -> str:
    """What was done to whom: "promoted: swap, L1 → L2"."""
    action = ACTIONS.get(row["action"], row["action"])
    if row["action"] in ("promote", "rollback") and row["champion"] != row["lineage"]:
        return f"{action}, {row['champion']} → {row['lineage']}"
    return f"{action}, {row['lineage']}"


def decision_evidence(evidence: Mapping[str, Any]) -> list[str]:
    """The evidence as sentences: those whose keys we know in our words, the others as they are."""
    if "guarded" in evidence:
        return guard_evidence(evidence)
    left = {key: value for key, value in evidence.items() if value is not None}
    lines = []
    if left.get("n", 1) == 0:  # a test that has not begun has only its settings
        alpha = left.get("alpha")
        for key in ("e_value", "e_value_worse", "alpha", "min_effect", "n"):
            left.pop(key, None)
        return [f"wrong promotion with probability at most {alpha:g}"] if alpha else []
    n = left.pop("n", None)
    for key, name in LOSSES + MEASURES:
        champion, challenger = left.pop(f"champion_{key}", None), left.pop(f"challenger_{key}", None)
        if champion is not None and challenger is not None:
            lines.append(f"{name}: challenger {number(challenger, 4)}, champion {number(champion, 4)}")
    if n is not None:
        lines.append(f"judged on {number(n)} events that neither had learned from")
    alpha, value, worse = left.pop("alpha", None), left.pop("e_value", None), left.pop("e_value_worse", None)
    if value is not None and alpha:
        text = f"e-value {value:.3g} that it is better"
        text += f", {worse:.3g} that it is worse" if worse is not None else ""
        lines.append(f"{text}; {1 / alpha:.3g} decides (wrong with probability at most {alpha:g})")
    for key in ("mean_difference", "kind", "alert_id"):  # said by the losses, the reason and the link
        left.pop(key, None)
    least = left.pop("min_effect", None)
    if least:
        unit = "of a usual error" if "champion_scaled_error" in evidence else "nats"
        lines.append(f"it must gain more than {least:g} {unit} an event")
    if "by_hand" in left:
        lines.append(_by_hand(left.pop("by_hand")))
    lines += segment_evidence(left.pop("segments", []))
    lines += canary_evidence(left.pop("canary", {}))
    for key in SAID:
        left.pop(key, None)
    lines += [f"{key.replace('_', ' ')}: {_value(value)}" for key, value in left.items()]
    return lines


def segment_evidence(segments: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is known of each large segment, as sentences."""
    return [
        f"where {each['segment']} is {each['segment_value']}: e-value {each['e_value_harm']:.3g} that it does harm, "
        f"{each['e_value_no_harm']:.3g} that it does none, on {number(each['n'])} events"
        for each in segments
    ]


def canary_evidence(canary: Mapping[str, Any]) -> list[str]:
    """What a canary served, and what was served beside it, as sentences."""
    if not canary.get("n"):
        return [f"for {canary['share']:.0%} of the entities"] if canary else []
    own, other = canary["loss"], canary["other_loss"]
    return [
        f"served: loss {number(own, 4)} on {number(canary['n'])} events of its arm"
        + (f", {number(other, 4)} on {number(canary['other_n'])} of the other" if other is not None else ""),
        f"e-value {canary['e_value_harm']:.3g} that it does harm, {canary['e_value_no_harm']:.3g} that it does not",
    ]


def guard_evidence(evidence: Mapping[str, Any]) -> list[str]:
    """What the guard of a swap saw, as sentences."""
    lines = []
    if evidence.get("n"):
        key, name = next(each for each in LOSSES if f"champion_{each[0]}" in evidence)
        own, its = evidence[f"champion_{key}"], evidence[f"former_{key}"]
        lines.append(f"{name} since the swap: {number(own, 4)}, of the replaced model {number(its, 4)}")
        own, its = evidence["champion_bias"], evidence["former_bias"]
        if own is not None:
            lines.append(f"mean score less mean label: {signed(own)}, of the replaced model {signed(its)}")
        value, needed = evidence["e_value_worse"], 1 / evidence["alpha"]
        lines.append(f"e-value {value:.3g} that it is worse; {needed:.3g} takes it back")
    if "scored" in evidence:
        psi = evidence.get("score_psi")
        lines.append(
            f"workers scored {number(evidence['scored'])} events, {number(evidence['broken'])} without a number"
        )
        lines.append(f"{number(evidence['slow'])} of {number(evidence['batches'])} batches took too long")
        lines += [f"PSI of the scores before and after: {number(psi, 2)}"] if psi is not None else []
    if "by_hand" in evidence:
        lines.append(_by_hand(evidence["by_hand"]))
    return lines


def _by_hand(reason: object) -> str:
    return f"asked for by a person: {reason or 'no reason given'}"


def _value(value: object) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
