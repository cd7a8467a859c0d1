"""The page: its sections in the order in which a reader asks.

What is missing is said, never drawn as if it were there.
"""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from infra.clickhouse import Archive, create_tables
from learners.target import SMALLER_IS_BETTER
from streams.report.curves import ARM_NAMES, arm_class, curves_chart, curves_data
from streams.report.data import CHAMPION, FROZEN, METRICS, Entry, History, read_history
from streams.report.plots import HEAT_COLUMNS, HEAT_STEPS, heat_chart, latency_chart, rate_chart, rate_data
from streams.report.style import CSS, JS
from streams.report.summary import summary
from streams.report.svg import both, tag
from streams.report.tables import dead_letters, lineages, run_facts, section, timeline
from streams.report.tiles import arm_tiles, count_tiles
from streams.report.words import count, duration, milliseconds, moment, number

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(
    archive: Archive,
    task_name: str,
    metric: str,
    path: Path,
    *,
    title: str,
    facts: Mapping[str, Any],
    drift_ms: int | None = None,
) -> dict[str, Any]:
    """Write the report of a task's history to `path`, whole or not at all; returns the figures of `summary`.

    `metric` is auc, average_precision, log_loss or ece. `facts` are what the caller knows better than the
    archive (predictions and doubled as seen in Kafka, accepted) or wants shown beside (seed, machine, …).
    `drift_ms` is the event time of an injected drift. Raises UserError when the archive fails, OSError when the file
    cannot be written, ValueError for an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: one of {', '.join(METRICS)}")
    create_tables(archive)  # an archive that nobody wrote to yet is empty, not broken
    history = read_history(archive, task_name, metric, drift_ms)
    figures = summary(history, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(page(history, figures, title), encoding="utf-8")
    os.replace(draft, path)
    return figures


def page(history: History, figures: Mapping[str, Any], title: str) -> str:
    """The whole page as HTML."""
    story = (tag("p", escape(sentence), class_="lead") for sentence in _story(history, figures))
    sections = [
        tag("header", tag("h1", escape(title)), *story),
        _missing(history),
        arm_tiles(history, figures),
        count_tiles(history, figures),
        _curves(history),
        tag("div", _latency(history), _rate(history), class_="pair") if history.histogram else "",
        _heat(history),
        timeline(history),
        lineages(history),
        dead_letters(history),
        run_facts(figures["facts"]),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    body = f'<main>{"".join(sections)}</main><div id="tip" class="tip"></div><script>{JS}</script>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _story(history: History, figures: Mapping[str, Any]) -> list[str]:
    """What happened, in one or two sentences."""
    change, after, name = figures["changed_ms"], figures["after_drift"], METRICS[history.metric]
    if change is None:
        return ["No drift was injected into this stream, and none was noticed."] if history.curves else []
    told = "The stream changed" if history.drift_ms is not None else "By the first alarm's account it changed"
    text = f"{told} at {moment(change)} (UTC of the events)."
    alert, swap = figures["first_alert_ms"], figures["first_swap_ms"]
    if alert is None:
        text += " No alarm noticed it."
    else:
        events = figures["events_until_alert"]
        text += f" The first alarm came after {count(events, 'more event')} ({duration(alert - change)})"
        text += "; no model was swapped." if swap is None else ", and the serving model was swapped after "
        text += (
            f"{count(figures['events_until_swap'], '')} ({duration(swap - change)})."
            if swap is not None
            else ""
        )
    text += "".join(f" {_back(entry)}" for entry in history.swaps if entry.row["action"] == "rollback")
    text += _dated(history)
    if FROZEN not in after or CHAMPION not in after:
        return [text]
    gain = _gain(history, after[CHAMPION], after[FROZEN])
    result = (
        f"Since then {name} averaged {number(after[CHAMPION])} for the live model and {number(after[FROZEN])} for "
        f"the same model frozen before the change: {number(abs(gain))} {'better' if gain > 0 else 'worse'}."
    )
    return [text, result]


def _back(entry: Entry) -> str:
    """One rollback, and where its evidence stands."""
    bad, good = entry.row["champion"], entry.row["lineage"]
    return f"{bad} was rolled back to {good} (#{entry.number} in the timeline)."


def _dated(history: History) -> str:
    """How the dates of alarms and swaps are to be read, where it shows: by a hundredth of the plots' width."""
    start, end = history.span or (0, 0)
    visible, text = (end - start) / 100, ""
    if history.alerts and history.label_delay_ms > visible:
        delay = duration(history.label_delay_ms)
        text += f" Labels came {delay} after their events; alarms and swaps are dated by the newest event that had one."
    for swap in history.swaps[:1]:
        new = next((line for line in history.lineages if line.name == swap.row["lineage"]), None)
        if new and new.predictions and new.first_ms - swap.event_ms > visible:
            text += f" The stream was further on by then: {new.name} scored events from {moment(new.first_ms)} on."
    return text


def _gain(history: History, value: float, reference: float) -> float:
    """How much better, whichever way the metric goes."""
    return reference - value if history.metric in SMALLER_IS_BETTER else value - reference


def _missing(history: History) -> str:
    """What a reader will look for and not find, and why it is not there."""
    counts, name = history.counts, METRICS[history.metric]
    reasons = []
    if not counts["archived_predictions"]:
        reasons.append(
            "No predictions of this task are in the archive, so there is no latency and no event rate."
        )
    if not history.curves:
        why = (
            "too few labels of both kinds have arrived" if counts["labels"] else "no labels have arrived yet"
        )
        reasons.append(f"No {name}: {why}.")
    elif FROZEN not in history.curves:
        reasons.append(
            "No frozen copy of the model was kept to compare with, so the gain over it is unknown."
        )
    if not history.entries:
        reasons.append("No alerts and no decisions: nothing drifted, or the learner has seen too few events.")
    if not counts["versions"]:
        reasons.append("No model versions: the learner has published none.")
    if not reasons:
        return ""
    items = tag("ul", *(tag("li", escape(reason)) for reason in reasons))
    return section("What is missing here", items, class_="missing")


def _key(arm: str, name: str) -> str:
    stroke = tag("line", x1=0, x2=34, y1=6, y2=6, class_=f"line {arm_class(arm)}")
    return tag("li", tag("svg", stroke, viewBox="0 0 34 12", aria_hidden="true"), escape(name))


def _curves(history: History) -> str:
    if not history.curves:
        return ""
    keys = [_key(arm, name) for arm, name in ARM_NAMES.items() if arm in history.curves]
    if any(arm not in ARM_NAMES for arm in history.curves):
        keys.append(_key("challenger", "challengers on trial"))
    better = "lower" if history.metric in SMALLER_IS_BETTER else "higher"
    return section(
        "The models over time",
        tag("ul", *keys, class_="legend"),
        both(lambda width: curves_chart(history, width)),
        curves_data(history),
        note=f"Every arm predicts an event before it learns from it; {better} is better. "
        "Numbers below the curves lead to the timeline; a filled one is a swap.",
    )


def _latency(history: History) -> str:
    rows = []
    for name, wait in (("prediction made", history.scored), ("row in the archive", history.archived)):
        if wait:
            values = (wait.p50, wait.p90, wait.p99, wait.longest)
            rows.append(tag("tr", tag("td", name), *(tag("td", milliseconds(v), class_="n") for v in values)))
    names = ("50 %", "90 %", "99 %", "longest")
    head = tag("tr", tag("th", "until"), *(tag("th", name, class_="n") for name in names))
    return section(
        "Latency",
        both(lambda width: latency_chart(history, min(width, 500))),
        tag("table", head, *rows),
        note="From the time stamp that Kafka gave the event. The archive collects rows for about a second.",
    )


def _rate(history: History) -> str:
    return section(
        "Events and predictions",
        both(lambda width: rate_chart(history, min(width, 500))),
        rate_data(history),
        note="Area: events as they reached Kafka. Line: predictions made. A gap between the two is a backlog.",
    )


def _heat(history: History) -> str:
    if not history.psi:
        return ""
    keys = []
    for level, text in enumerate(("< 0.1 as before", *(f"≥ {step:g}" for step in HEAT_STEPS))):
        patch = tag("rect", width=34, height=12, class_=f"heat{level}")
        keys.append(tag("li", tag("svg", patch, viewBox="0 0 34 12", aria_hidden="true"), escape(text)))
    columns = len({column for _, column, _ in history.psi})
    note = "Population stability index (PSI) of each column against its recent past; what moved most comes first. "
    note += "Blank where there was not yet enough to compare with."
    note += f" The first {HEAT_COLUMNS} of {columns} columns are shown." if columns > HEAT_COLUMNS else ""
    chart = both(lambda width: heat_chart(history, width))
    return section("What moved in the inputs", tag("ul", *keys, class_="legend"), chart, note=note)
