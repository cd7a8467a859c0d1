"""The history of a small run, row by row, and a reader of the page that is made of it: for the tests of the report."""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from infra.clickhouse import Archive

START, CLOCK = 1_700_000_000_000, 1_764_000_000_000
SECOND, EVENTS = 1_000, 400
DRIFT = START + 200 * SECOND
NAN = math.nan
Row = dict[str, Any]


def at(second: int) -> int:
    """Event time."""
    return START + second * SECOND


def predictions(hurt: str) -> list[Row]:
    """An event a second; the last 100 were scored by L2. One event stands at two offsets."""
    rows = []
    for i in range(EVENTS):
        name, received = f"L{1 + (i >= 300)}{hurt}", CLOCK + i * 25
        row: Row = {"event_id": f"e{i}", "version": f"{name}.{i // 50}", "lineage": name, "score": i / EVENTS}
        row |= {"event_ms": at(i), "received_ms": received, "processed_ms": received + 20 + i % 50}
        row |= {"archived_ms": received + 900 + 3 * i, "late": int(i % 40 == 0), "source_offset": i}
        rows.append(row)
    again = rows[5] | {"event_id": "e6"}
    return [*rows, {**again, "source_offset": EVENTS, "event_ms": at(EVENTS)}]


def labels(delay_ms: int) -> list[Row]:
    """Nearly all events have a label; every third was none that came."""
    sources = ("default", "label", "label")
    return [
        {"event_id": f"e{i}", "event_ms": at(i), "known_ms": at(i) + delay_ms, "source": sources[i % 3]}
        for i in range(EVENTS - 10)
    ]


def metrics(hurt: str) -> list[Row]:
    """Every 25 events a row for each arm; the first has no AUC, since all labels were equal."""
    rows = []
    for i in range(25, EVENTS + 1, 25):
        arms = {("served", ""): 0.6, ("champion", "L1"): 0.7, ("continuous", "L1"): 0.65}
        if i >= 200:
            arms |= {("frozen", "L1"): 0.5, ("challenger", f"L2{hurt}"): 0.8}
        for (arm, lineage), auc in arms.items():
            auc = NAN if i == 25 else auc + i / 10_000
            row = {"arm": arm, "lineage": lineage, "event_ms": at(i), "created_ms": CLOCK + i, "n": i}
            rows.append(row | {"auc": auc, "average_precision": NAN, "log_loss": 1 - i / 1_000})
    return [*rows, rows[-1] | {"auc": 0.99, "created_ms": CLOCK - 1}]  # an older one with the same key


def story(hurt: str) -> tuple[list[Row], list[Row]]:
    """Alerts and decisions: a frozen copy, an alarm, a challenger, a swap."""
    alert: Row = {"alert_id": "adwin-240", "detector": "adwin", "level": "loss", "subject": f"log_loss{hurt}"}
    alert |= {"strength": 0.2, "threshold": 0.1, "since_event_id": f"e205{hurt}", "since_ms": at(205)}
    alert |= {"event_ms": at(240), "version": f"L1{hurt}.4", "message": f"log loss rose{hurt}"}
    moved = {"name": f"amount{hurt}", "severity": 0.6, "change": f"about 100 times larger{hurt}"}
    alert |= {"severity": 0.4, "features": json.dumps([moved]), "evidence": f"alerts/t/adwin-240{hurt}.json"}
    evidence = {
        "alert_id": "adwin-240",
        "kind": "warm",
        "alpha": 0.005,
        "min_effect": 0.001,
        "e_value": 231.0,
    }
    evidence |= {"e_value_worse": 0.5, "n": 60, "champion_log_loss": 0.6, "challenger_log_loss": 0.4}
    decisions = [
        ("1-freeze-L1", "freeze", "L1", at(225), {"examples": 225}),
        ("2-start-L2", "start", f"L2{hurt}", at(241), evidence | {"n": 0, "kind": hurt}),
        ("3-promote-L2", "promote", f"L2{hurt}", at(300), evidence | {f"more{hurt}": hurt}),
    ]
    names = ("decision_id", "action", "lineage", "event_ms", "evidence")
    rows = [dict(zip(names, values, strict=True)) for values in decisions]
    for row in rows:
        row |= {
            "champion": "L1",
            "reason": f"{row['action']} of it{hurt}",
            "evidence": json.dumps(row["evidence"]),
        }
    return [alert], rows


def fill(archive: Archive, task: str, hurt: str, delay_ms: int = 0) -> None:
    """The rows above, each stored twice; `hurt` stands in every text that comes from outside."""
    alerts, decisions = story(hurt)
    versions = [
        {
            "version": f"L1.{i}",
            "lineage": "L1",
            "kind": "refresh" if i else "swap",
            "refresh": i,
            "bytes": 500,
        }
        for i in range(6)
    ]
    psi = [(f"calm{hurt}", 0.01), (f"moved{hurt}", 0.02), ("wild", 0.05)]
    drift = [
        {"event_ms": at(i), "subject": name, "psi": value * (i // 50) ** 2}
        for i in range(100, EVENTS, 50)
        for name, value in psi
    ]
    letters = [
        {"topic": "t", "offset": i, "reason": "invalid" if i < 2 else f"odd{hurt}", "bytes_len": 9}
        for i in range(3)
    ]
    tables = {"predictions": predictions(hurt), "labels": labels(delay_ms), "metrics": metrics(hurt)}
    tables |= {"alerts": alerts, "decisions": decisions, "versions": versions, "feature_drift": drift}
    tables["dead_letters"] = letters
    for table, rows in [*tables.items(), *tables.items()]:
        insert(archive, task, table, rows)


def insert(archive: Archive, task: str, table: str, rows: list[Row]) -> None:
    """Rows that have the same columns; the others get ClickHouse's defaults."""
    columns = {"task": [task] * len(rows)} | {name: [row[name] for row in rows] for name in rows[0]}
    archive.insert(table, list(columns), list(columns.values()))


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._hidden = "", False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        """Text is text again after a script."""
        self._hidden = self._hidden and tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        """Keep what is shown."""
        self.text += "" if self._hidden else data

    def classes(self, tag: str) -> Counter[str]:
        """How many elements of a tag have each class."""
        return Counter(attrs.get("class") or "" for name, attrs in self.tags if name == tag)


@dataclass
class Report:
    """A written report: its page, the page's elements and pictures, and its figures."""

    page: str
    html: Elements
    figures: dict[str, Any]

    @property
    def pictures(self) -> dict[str, ET.Element]:
        """The wide drawings by title; each must be well-formed XML."""
        found = [ET.fromstring(text) for text in re.findall("<svg.*?</svg>", self.page, re.DOTALL)]
        return {p.attrib["aria-label"]: p for p in reversed(found) if "aria-label" in p.attrib}

    def picture(self, start: str) -> ET.Element:
        """The drawing whose title starts so."""
        [found] = [picture for name, picture in self.pictures.items() if name.startswith(start)]
        return found
