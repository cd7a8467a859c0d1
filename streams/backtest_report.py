"""backtest.html: the policies' metrics over time and in a table, alarms and decisions, in one file without links."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from learners.target import SMALLER_IS_BETTER
from streams.backtest_engine import Backtest, Lane
from streams.report.style import CSS, JS
from streams.report.svg import (
    Frame,
    both,
    clip_path,
    cross,
    event_axis,
    hover,
    hover_data,
    label,
    line,
    nice_ticks,
    picture,
    spread,
    tag,
    y_axis,
)
from streams.report.tables import run_facts, section
from streams.report.words import NONE, alert_title, decision_title, duration, moment, number

TITLES = {
    "auc": "area under the ROC curve",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "ece": "calibration error",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "r2": "share of variance explained",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
}
POINTS = 120
TIMELINE_ROWS = 200
ABOUT = {
    "static": "learns in the warm-up only",
    "periodic": "learns at intervals from what became known since",
    "continuous": "learns from every labelled example",
    "drift": "learns for a while after an alarm",
    "full": "champion, challengers and promotions: what runs live",
}
STYLE = """
.line.static { stroke: var(--frozen); stroke-width: 2.2; stroke-dasharray: 7 4; }
.line.periodic { stroke: var(--challenger); stroke-width: 2; stroke-dasharray: 2 3; }
.line.drift { stroke: var(--drift); stroke-width: 2; stroke-dasharray: 10 3 2 3; }
.line.full { stroke: var(--served); stroke-width: 3.6; stroke-opacity: .75; }
svg .end.static { fill: var(--frozen); } svg .end.periodic { fill: var(--challenger); }
svg .end.drift { fill: var(--drift); } svg .end.full { fill: var(--served); }
td.best { font-weight: 700; color: var(--good); }
"""
Curves = dict[str, list[dict[str, float]]]


def rolling_window(backtest: Backtest) -> int:
    """Over how many evaluated events a point of a curve is: a 25th of them, but enough for some positives."""
    at = backtest.evaluated()
    positives = max(1, backtest.positives(at)) if backtest.task.kind == "binary" else len(at)
    return int(min(max(1000, len(at) // 25, 30 * len(at) // max(1, positives)), max(1, len(at) // 2)))


def curves(backtest: Backtest) -> tuple[list[int], Curves]:
    """Event times, and for each policy all metrics of the window of evaluated events that ends at each of them."""
    at, window = backtest.evaluated(), rolling_window(backtest)
    if len(at) < 2:
        return [], {}
    ends = np.unique(np.linspace(window, len(at), POINTS).astype(np.int64))
    times = [int(backtest.times_ms[at[end - 1]]) for end in ends]
    rows = {
        lane.name: [backtest.metrics(lane, at[end - window : end]) for end in ends] for lane in backtest.lanes
    }
    return times, rows


def page(backtest: Backtest, figures: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    title = f"Driftline backtest: {backtest.task.name}"
    times, rows = curves(backtest)
    shown = dict.fromkeys((backtest.task.metric, _second(backtest)))
    sections = [
        tag("header", tag("h1", escape(title)), tag("p", escape(_story(figures)), class_="lead")),
        _table(backtest, figures),
        *(_chart(backtest, key, times, rows) for key in shown if times),
        _timeline(backtest),
        run_facts({key: value for key, value in figures.items() if not _is_of_a_policy(backtest, key)}),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{STYLE}</style>"
    )
    body = f'<main>{"".join(sections)}</main><div id="tip" class="tip"></div><script>{JS}</script>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _second(backtest: Backtest) -> str:
    """The metric of the chart below the first: what models learn by."""
    return "mae" if backtest.task.schema.target.is_value else "log_loss"


def _is_of_a_policy(backtest: Backtest, key: str) -> bool:
    return any(key.startswith(f"{lane.name}_") for lane in backtest.lanes)


def _story(figures: Mapping[str, Any]) -> str:
    if not figures["evaluated"]:
        return "Nothing could be evaluated: the stream ended in the warm-up, or no label came after it."
    span = duration(figures["evaluated_to_ms"] - figures["evaluated_from_ms"])
    return (
        f"{number(figures['events'])} events: {figures['source']}. The {number(figures['evaluated'])} of them after "
        f"the warm-up that have a label, over {span}, are evaluated with the score that each would have been served."
    )


def _table(backtest: Backtest, figures: Mapping[str, Any]) -> str:
    names = (
        "policy",
        "",
        *(TITLES[key] for key in backtest.task.schema.target.metrics),
        "alarms",
        "swaps",
        "events/s",
    )
    head = tag("tr", *(tag("th", escape(n), class_="n" if i > 1 else None) for i, n in enumerate(names)))
    rows = [_row(backtest, lane, figures) for lane in backtest.lanes]
    note = "Over all evaluated events. Events/s: the policy alone, with features and join, a second of processor time."
    return section("The policies", tag("div", tag("table", head, *rows), class_="scroll"), note=note)


def _row(backtest: Backtest, lane: Lane, figures: Mapping[str, Any]) -> str:
    def of(key: str) -> Any:
        return figures[f"{lane.name}_{key}"]

    cells = [tag("td", tag("b", lane.name)), tag("td", escape(ABOUT[lane.name]))]
    for key in backtest.task.schema.target.metrics:
        values = [figures[f"{other.name}_{key}"] for other in backtest.lanes]
        known = [value for value in values if value is not None]
        best = len(known) > 1 and of(key) == (min(known) if key in SMALLER_IS_BETTER else max(known))
        text = number(of(key), 4) if of(key) is not None else NONE
        cells.append(tag("td", text, class_="n best" if best else "n"))
    counts = (of("alerts"), of("swaps"), round(of("events_per_second") or 0))
    return tag("tr", *cells, *(tag("td", number(value), class_="n") for value in counts))


def _chart(backtest: Backtest, key: str, times: list[int], rows: Curves) -> str:
    values = {
        name: [(float(t), row[key]) for t, row in zip(times, found, strict=True) if np.isfinite(row[key])]
        for name, found in rows.items()
    }
    values = {name: points for name, points in values.items() if points}
    if not values:
        return ""
    keys = []
    for name in values:
        stroke = tag("line", x1=0, x2=34, y1=6, y2=6, class_=f"line {name}")
        keys.append(tag("li", tag("svg", stroke, viewBox="0 0 34 12", aria_hidden="true"), escape(name)))
    series = {
        name: [float(row[key]) if np.isfinite(row[key]) else None for row in found]
        for name, found in rows.items()
    }
    better = "lower" if key in SMALLER_IS_BETTER else "higher"
    return section(
        f"{TITLES[key].capitalize()} over time".replace("roc", "ROC"),
        tag("ul", *keys, class_="legend"),
        both(lambda width: _picture(key, values, width, times)),
        hover_data(key, times, [moment(t) for t in times], series),
        note=f"Each point is over the last {rolling_window(backtest):,} evaluated events; {better} is better.",
    )


def _picture(key: str, values: Mapping[str, list[tuple[float, float]]], width: int, times: list[int]) -> str:
    every = [value for points in values.values() for _, value in points]
    pad = max((max(every) - min(every)) * 0.08, 0.002)
    right, height = width - (8 if width < 600 else 128), (210 if width < 600 else 290)
    frame = Frame(width, 66, right, 40, 40 + height, times[0], times[-1], min(every) - pad, max(every) + pad)
    clip = f"clip-{key}-{width}"
    parts = [
        tag("defs", clip_path(frame, clip)),
        y_axis(frame, nice_ticks(frame.y0, frame.y1, 5), TITLES[key], above=20),
        *(line(frame, points, name, clip) for name, points in values.items()),
        *_ends(frame, values),
        event_axis(frame, frame.bottom),
        cross(frame),
    ]
    name = f"{TITLES[key]} over event time, by policy"
    return picture(width, frame.bottom + 46, name, *parts, **hover(frame, key))


def _ends(frame: Frame, values: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    """Name and last value beside the end of each line; on a phone the legend has to do."""
    if frame.narrow:
        return []
    last = {name: points[-1][1] for name, points in values.items()}
    places = spread([frame.y(value) for value in last.values()], 17, frame.top + 8, frame.bottom)
    return [
        label(frame.right + 8, place + 4, f"{name} {value:.3f}", f"end {name}")
        for (name, value), place in zip(last.items(), places, strict=True)
    ]


def _timeline(backtest: Backtest) -> str:
    """Alarms and decisions of all policies by event time."""
    entries = []
    for lane in backtest.lanes:
        for alert in lane.policy.alerts:
            row = {"level": alert.level, "subject": alert.subject}
            entries.append((alert.event_ms, lane.name, alert_title(row), alert.message, "what alarm"))
        for decision in lane.policy.decisions:
            row = {"action": decision.action, "lineage": decision.lineage, "champion": decision.champion}
            class_ = "what swap" if decision.action == "promote" else "what"
            entries.append((decision.event_ms, lane.name, decision_title(row), decision.reason, class_))
    if not entries:
        return ""
    entries.sort(key=lambda entry: entry[0])
    names = ("event time (UTC)", "policy", "what", "why")
    rows = [tag("thead", tag("tr", *(tag("th", name) for name in names)))]
    for ms, policy, title, why, class_ in entries[:TIMELINE_ROWS]:
        cells = (
            tag("td", moment(ms), class_="when"),
            tag("td", policy),
            tag("td", escape(title), class_=class_),
        )
        rows.append(tag("tr", *cells, tag("td", escape(why))))
    left = len(entries) - TIMELINE_ROWS
    note = f"The first {TIMELINE_ROWS} of {len(entries):,}." if left > 0 else ""
    return section("Alarms and decisions", tag("table", *rows, class_="timeline"), note=note)
