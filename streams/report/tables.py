"""The report's tables: the timeline with its evidence, the models, the dead letters, the run."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from streams.report.chains import causes, followers
from streams.report.data import Entry, History
from streams.report.svg import tag
from streams.report.words import (
    NONE,
    alert_evidence,
    alert_title,
    count,
    decision_evidence,
    decision_title,
    moment,
    number,
    since,
    size,
)

TIMELINE_ROWS = 300
IN_TILES = {
    "predictions", "accepted", "doubled", "dead_letters", "late", "labels", "alerts", "swaps", "versions",
}  # fmt: skip


def section(heading: str, *content: str, note: str = "", class_: str | None = None) -> str:
    """A card with a heading and a note in plain text; `content` is markup."""
    intro = tag("p", escape(note), class_="note") if note else ""
    return tag("section", tag("h2", escape(heading)), intro, *content, class_=class_)


def _row(cells: Iterable[str], name: str = "td", right: frozenset[int] = frozenset()) -> str:
    """A row of plain text; the columns in `right` hold numbers."""
    made = (tag(name, escape(text), class_="n" if i in right else None) for i, text in enumerate(cells))
    return tag("tr", *made)


def timeline(history: History) -> str:
    """Alerts and decisions by event time; each links to what it followed from, an alarm to all that came of it."""
    if not history.entries:
        return ""
    caused = causes(history.entries)
    rows = [_entry(entry, history, caused) for entry in history.entries[:TIMELINE_ROWS]]
    head = tag("thead", _row(("#", "event time (UTC)", "what", "why"), "th"))
    note = (
        "Alarms, and what was decided after them, with the evidence. An alarm never swaps a model by itself."
    )
    left = len(history.entries) - len(rows)
    note += f" The first {len(rows)} are shown; {left:,} later ones are in the archive." if left else ""
    return section("Timeline", tag("table", head, tag("tbody", *rows), class_="timeline"), note=note)


def _link(entry: Entry) -> str:
    """An entry's number and title, as a link to it."""
    title = alert_title(entry.row) if entry.is_alert else decision_title(entry.row)
    return tag("a", escape(f"#{entry.number} {title}"), href=f"#entry-{entry.number}")


def _entry(entry: Entry, history: History, caused: dict[int, int]) -> str:
    row, class_ = entry.row, "what"
    if entry.is_alert:
        title, why, evidence = alert_title(row), row["message"], alert_evidence(row)
        class_ = "what alarm"
    else:
        title, why, evidence = decision_title(row), row["reason"], decision_evidence(row["evidence"])
        class_ += " back" if row["action"] == "rollback" else " swap" * entry.is_swap
    lines = [tag("li", escape(text)) for text in evidence]
    if cause := caused.get(entry.number):
        lines.append(tag("li", "followed ", _link(history.entries[cause - 1])))
    if entry.is_alert:
        came = [_link(history.entries[number - 1]) for number in followers(entry.number, caused)]
        lines.append(tag("li", "led to ", ", ".join(came)) if came else tag("li", "led to nothing"))
    after = since(entry.event_ms, history.drift_ms)
    return tag(
        "tr",
        tag("td", f"{entry.number}", class_="number"),
        tag("td", escape(moment(entry.event_ms)), tag("div", escape(after), class_="soft"), class_="when"),
        tag("td", escape(title), class_=class_),
        tag("td", escape(why), tag("ul", *lines) if lines else ""),
        id=f"entry-{entry.number}",
    )


def lineages(history: History) -> str:
    """What each line of models published and served."""
    if not history.lineages:
        return ""
    names = (
        "lineage",
        "newest version",
        "refreshes",
        "whole models",
        "published",
        "predictions",
        "mean score",
    )
    right = frozenset(range(2, 7))
    rows = [_row((*names, "for events of (UTC)"), "th", right)]
    for line in history.lineages:
        span = f"{moment(line.first_ms)} to {moment(line.last_ms)}" if line.predictions else "none"
        score = number(line.mean_score)
        counts = (
            number(line.refreshes),
            number(line.whole),
            size(line.bytes),
            number(line.predictions),
            score,
        )
        rows.append(_row((line.name, f"{line.name}.{line.newest}", *counts, span), right=right))
    note = "A refresh goes out within a lineage about every second; a swap moves serving to another lineage."
    return section("Model versions", tag("div", tag("table", *rows), class_="scroll"), note=note)


def dead_letters(history: History) -> str:
    """Why records could not be used."""
    if not history.reasons:
        return ""
    right = frozenset({1})
    rows = [_row((reason, number(n)), right=right) for reason, n in history.reasons.items()]
    note = f"{count(len(history.reasons), 'reason')}; the records themselves are in the dead-letters topic."
    return section("Dead letters", tag("table", _row(("reason", "records"), "th", right), *rows), note=note)


def run_facts(facts: Mapping[str, Any]) -> str:
    """Whatever else the caller told about the run."""
    pairs = [_fact(key, value) for key, value in facts.items() if key not in IN_TILES]
    return section("About this run", tag("dl", *pairs)) if pairs else ""


def _fact(key: str, value: object) -> str:
    """A fact with its name; a list (what failed, say) line by line."""
    name = tag("dt", escape(key.replace("_", " ")))
    if not isinstance(value, list | tuple):
        return name + tag("dd", escape(_plain(value)))
    if not value:
        return name + tag("dd", "none")
    lines = (tag("li", escape(_plain(line))) for line in value)
    return name + tag("dd", tag("ul", *lines), class_="bad" if key == "failures" else None)


def _plain(value: object) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)
