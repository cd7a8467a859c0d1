"""The report of a run, from an archive of fixed rows: what the page shows, and that its figures are those of SQL."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.clickhouse import Archive, literal, open_archive
from streams.report import write_report
from tests.report_rows import DRIFT, EVENTS, SECOND, Elements, Report, Row, at, fill, insert, predictions

TASK, LATE, EARLY, METRICLESS = "shop", "late-labels", "swapped-early", "no-labels-yet"
HOSTILE = "</script><script>alert(1)</script>&\"'<b>"
FACTS = {
    "seed": 7,
    "accepted": EVENTS,
    "predictions": EVENTS,
    "auc_after_drift_frozen": None,
    "quick": True,
    "failures": ["the stream drifted & no model was swapped", "<i>nothing</i> learned"],
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An archive without tables, like one that nobody wrote to yet."""
    opened = open_archive(f"chdb://{tmp_path_factory.mktemp('report')}/archive")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reports(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """Reports by task; the first is written before anything is in the archive."""
    folder = tmp_path_factory.mktemp("pages")

    def write(task: str, title: str, facts: dict[str, Any], drift_ms: int | None = DRIFT) -> Report:
        path = folder / "new" / "report.html"
        figures = write_report(archive, task, "auc", path, title=title, facts=facts, drift_ms=drift_ms)
        assert [file.name for file in path.parent.iterdir()] == ["report.html"]
        page = path.read_text(encoding="utf-8")
        return Report(page, Elements(page), figures)

    made = {"": write("nobody", "Nothing", {}, None)}
    fill(archive, TASK, "")
    fill(archive, LATE, "", delay_ms=100 * SECOND)
    fill(archive, EARLY, "")
    promotion = {"decision_id": "3-promote-L2", "action": "promote", "champion": "L1", "lineage": "L2"}
    insert(archive, EARLY, "decisions", [promotion | {"event_ms": at(270), "created_ms": 1}])
    fill(archive, HOSTILE, HOSTILE)
    insert(archive, METRICLESS, "predictions", predictions("")[:1])
    made[TASK] = write(TASK, "The shop", FACTS)
    made[LATE] = write(LATE, "Late", {}, None)
    made[EARLY] = write(EARLY, "Early", {})
    made[HOSTILE] = write(HOSTILE, HOSTILE, FACTS | {HOSTILE: HOSTILE})
    made[METRICLESS] = write(METRICLESS, "One event", {}, None)
    return made


@pytest.fixture(scope="module")
def shop(reports: dict[str, Report]) -> Report:
    return reports[TASK]


ALL = pytest.mark.parametrize("task", ["", TASK, LATE, EARLY, HOSTILE, METRICLESS])


def test_an_alarm_can_be_followed_to_its_rollback(
    reports: dict[str, Report], archive: Archive, tmp_path: Path
) -> None:
    fill(archive, "back", "")
    guard: dict[str, Any] = {
        "guarded": "L2",
        "n": 40,
        "alpha": 0.0033,
        "e_value_worse": 512.0,
        "champion_log_loss": 0.9,
    }
    guard |= {"former_log_loss": 0.5, "champion_bias": 0.21, "former_bias": -0.01}
    for action, lineage, champion, second, facts in (
        ("straggle", "L2", "L2", 303, {"worker": "w", "has": "L1.4", "late_ms": 2_100}),
        ("rollback", "L1", "L2", 340, guard),
        ("confirm", "L1", "L1", 390, guard | {"guarded": "L1"}),
    ):
        row: Row = {
            "decision_id": f"9-{action}-{lineage}",
            "action": action,
            "champion": champion,
            "lineage": lineage,
        }
        row |= {
            "reason": f"why {action}",
            "evidence": json.dumps(facts),
            "event_ms": at(second),
            "created_ms": 5,
        }
        insert(archive, "back", "decisions", [row])
    path = tmp_path / "report.html"
    write_report(archive, "back", "auc", path, title="Back", facts={}, drift_ms=DRIFT)
    text = " ".join(Elements(path.read_text(encoding="utf-8")).text.split())
    for words in (
        "L2 was rolled back to L1 (#6 in the timeline).",
        "led to #3 challenger started, L2, #4 promoted: swap, L1 → L2, #5 not yet everywhere, L2, "
        "#6 rolled back: swap, L2 → L1, #7 swap held, L1",
        "followed #4 promoted: swap, L1 → L2",
        "log loss since the swap: 0.9000, of the replaced model 0.5000",
        "mean score less mean label: +0.210, of the replaced model \u22120.010",
        "e-value 512 that it is worse; 303 takes it back",
    ):
        assert words in text


@ALL
def test_the_page_loads_nothing(reports: dict[str, Report], task: str) -> None:
    report = reports[task]
    for tag, attrs in report.html.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "image", "use")
        assert not {"src", "srcset", "data", "action", "background", "xlink:href"} & attrs.keys()
        assert (attrs.get("href") or "#").startswith("#")
        assert not [name for name in attrs if name.startswith("on")]
    assert not re.search(r"https?:|@import|url\((?!#)", report.page)
    assert [attrs["content"] for tag, attrs in report.html.tags if attrs.get("http-equiv")] == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]


@ALL
def test_every_link_has_a_target_and_every_id_is_one(reports: dict[str, Report], task: str) -> None:
    tags = reports[task].html.tags
    ids = Counter(attrs["id"] for _, attrs in tags if "id" in attrs)
    assert set(ids.values()) <= {1}
    assert {(attrs["href"] or "").removeprefix("#") for _, attrs in tags if "href" in attrs} <= ids.keys()
    clips = re.findall(r"url\(#(.*?)\)", reports[task].page)
    assert set(clips) <= ids.keys()


@ALL
def test_no_number_is_undefined(reports: dict[str, Report], task: str) -> None:
    report = reports[task]
    assert not re.search(r"\b(nan|NaN|inf|None)\b", report.html.text)
    assert not re.search(r'="[^"]*\bnan\b', report.page)
    json.dumps(report.figures, allow_nan=False)
    for data in re.findall(r'<script type="application/json".*?>(.*?)</script>', report.page):
        json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} in the data of a plot"))


def points(picture: ET.Element, arm: str) -> list[tuple[float, float]]:
    """The corners of an arm's curve."""
    lines = [
        line.attrib["points"] for line in picture.iter("polyline") if line.attrib["class"] == f"line {arm}"
    ]
    assert len(lines) == 1
    pairs = (pair.split(",") for pair in lines[0].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_the_curves_are_the_metric_over_time_without_what_is_undefined(shop: Report) -> None:
    plot = shop.picture("AUC over event time")
    expected = {
        "champion": 15,
        "served": 15,
        "continuous": 15,
        "frozen": 9,
        "challenger": 9,
    }  # all start with a row that is NaN
    curves = {arm: points(plot, arm) for arm in expected}
    assert {arm: len(curve) for arm, curve in curves.items()} == expected
    assert len(list(plot.iter("polyline"))) == len(expected)
    for curve in curves.values():
        steps = [after - before for (before, _), (after, _) in pairwise(curve)]
        assert max(steps) - min(steps) < 0.3  # evaluations are equally far apart
        assert all(after < before for (_, before), (_, after) in pairwise(curve))  # AUC rises
    heights = {arm: curve[-1][1] for arm, curve in curves.items()}
    assert (
        heights["champion"] < heights["continuous"] < heights["served"] < heights["frozen"]
    )  # less is higher on a page
    assert "swapped 0.740" in shop.html.text


def test_drift_alarms_and_swaps_are_marked(shop: Report) -> None:
    plot = shop.picture("AUC over event time")
    lines = {
        line.attrib["class"]: float(line.attrib["x1"]) for line in plot.iter("line") if "class" in line.attrib
    }
    served = points(plot, "served")
    x = {at(25 * (i + 2)): point[0] for i, point in enumerate(served)}
    assert lines["drift-line"] == pytest.approx(x[DRIFT], abs=0.1)
    assert lines["swap-line"] == pytest.approx(x[at(300)], abs=0.1)
    texts = [text.text for text in plot.iter("text")]
    assert {"drift injected", "swap to L2", "alarms", "decisions", "serving", "L1"} <= set(texts)
    links = [link.attrib["href"] for link in plot.iter("a")]
    assert links == ["#entry-2", "#entry-1", "#entry-4"]  # 1 and 3 are too close to tell apart
    assert [r.attrib["class"] for r in plot.iter("rect") if "pill" in r.attrib.get("class", "")] == [
        "pill alarm", "pill decision", "pill decision swap",
    ]  # fmt: skip


def test_the_timeline_tells_why(shop: Report) -> None:
    text = " ".join(shop.html.text.split())
    for words in (
        "The stream changed at 2023-11-14 22:16:40 (UTC of the events).",
        "The first alarm came after 40 more events (40 s)",
        "and the serving model was swapped after 100 (1 min 40 s)",
        "promoted: swap, L1 → L2",
        "judged on 60 events that neither had learned from",
        "e-value 231 that it is better, 0.5 that it is worse; 200 decides",
        "log loss: challenger 0.4000, champion 0.6000",
    ):
        assert words in text
    assert [attrs["href"] for tag, attrs in shop.html.tags if tag == "a"].count("#entry-2") == 3


def test_the_latency_histogram_holds_every_prediction(shop: Report, archive: Archive) -> None:
    plot = shop.picture("How long events took")
    bars = [bar for bar in plot.iter("rect") if bar.attrib.get("class") == "bar"]
    counts = [int(str(bar.findtext("title")).partition(" ")[0]) for bar in bars]
    assert sum(counts) == EVENTS + 1
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert all(
        h / max(heights) == pytest.approx(n / max(counts), abs=0.01)
        for h, n in zip(heights, counts, strict=True)
    )
    names = [str(text.text) for text in plot.iter("text") if text.attrib.get("class") == "quantile-text"]
    assert [name[:3] for name in names] == ["p50", "p90", "p99"]
    rows = [text.attrib["y"] for text in plot.iter("text") if text.attrib.get("class") == "quantile-text"]
    assert len(set(rows)) == 3  # they never lie on each other, however close the values are


def test_the_heat_map_leads_with_what_moved_most(shop: Report) -> None:
    plot = shop.picture("Shift of each input column")
    names = [str(group.findtext("title")) for group in plot.iter("g")]
    assert names == ["wild", "moved", "calm"]
    levels = Counter(
        r.attrib["class"] for r in plot.iter("rect") if r.attrib.get("class", "").startswith("heat")
    )
    psi = [value * (i // 50) ** 2 for i in range(100, EVENTS, 50) for value in (0.01, 0.02, 0.05)]
    assert levels == Counter(f"heat{sum(p >= step for step in (0.1, 0.2, 0.5, 1.0))}" for p in psi)
    assert "2.45" in [text.text for text in plot.iter("text")]


def test_the_figures_are_those_of_sql(shop: Report, archive: Archive) -> None:
    figures, where = shop.figures, f"FINAL WHERE task = {literal(TASK)}"

    def ask(what: str, table: str, more: str = "") -> Any:
        ((value,),) = archive.query(f"SELECT {what} FROM {table} {where} {more}")
        return value

    assert figures["archived_predictions"] == ask("count()", "predictions") == EVENTS + 1
    assert figures["doubled"] == ask("count() - uniqExact(event_id)", "predictions") == 1
    assert figures["late"] == ask("sum(late)", "predictions") == 10
    assert figures["labels"] == ask("count()", "labels") == EVENTS - 10
    assert figures["labels_by_default"] == ask("count()", "labels", "AND source = 'default'") == 130
    assert figures["dead_letters"] == ask("count()", "dead_letters") == 3
    assert (figures["alerts"], figures["swaps"], figures["versions"]) == (1, 1, 6)
    assert figures["events_until_alert"] == ask(
        "count()", "predictions", f"AND event_ms > {DRIFT} AND event_ms <= {at(240)}"
    )
    for arm in ("champion", "served", "continuous", "frozen"):
        after = ask("avg(auc)", "metrics", f"AND arm = '{arm}' AND event_ms > {DRIFT}")
        assert figures["after_drift"][arm] == pytest.approx(after)
        loss = ask("avg(log_loss)", "metrics", f"AND arm = '{arm}' AND event_ms > {DRIFT}")
        assert figures["after_drift_log_loss"][arm] == pytest.approx(loss)
    for name, step in (("scored", "processed_ms"), ("archived", "archived_ms")):
        for key, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            wanted = ask(f"quantileExact({share})({step} - received_ms)", "predictions")
            assert figures["latency_ms"][name][key] == wanted
        assert figures["latency_ms"][name]["max"] == ask(f"max({step} - received_ms)", "predictions")
    assert figures["events_per_second"]["mean"] == pytest.approx((EVENTS + 1) / 11)


def test_what_the_caller_knows_wins_over_the_archive(shop: Report) -> None:
    assert (shop.figures["predictions"], shop.figures["accepted"]) == (EVENTS, EVENTS)
    assert "✓ one for each of 400 accepted events" in shop.html.text
    assert "✗ must be none" in shop.html.text  # an event that the archive has twice


def test_failures_read_as_a_list(shop: Report) -> None:
    found = re.search(r"<dt>failures</dt><dd class=\"bad\"><ul>(.*?)</ul></dd>", shop.page)
    assert found
    assert re.findall("<li>(.*?)</li>", found[1]) == [
        "the stream drifted &amp; no model was swapped",
        "&lt;i&gt;nothing&lt;/i&gt; learned",
    ]
    assert "<dt>auc after drift frozen</dt><dd>\N{EN DASH}</dd>" in shop.page
    assert "<dt>quick</dt><dd>yes</dd>" in shop.page


def test_nothing_failed_reads_as_none(archive: Archive, reports: dict[str, Report], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(archive, TASK, "auc", path, title="Well", facts={"failures": []})
    assert "<dt>failures</dt><dd>none</dd>" in path.read_text()


def test_hostile_text_stays_text(reports: dict[str, Report], shop: Report) -> None:
    hostile = reports[HOSTILE]
    assert hostile.figures["after_drift"].keys() - {f"challenger L2{HOSTILE}"} == {
        "champion",
        "served",
        "continuous",
        "frozen",
    }
    kinds = [Counter(tag for tag, _ in report.html.tags) for report in (hostile, shop)]
    assert kinds[0]["script"] == kinds[1]["script"]
    assert kinds[0]["b"] == kinds[1]["b"]
    for words in (
        f"log loss rose{HOSTILE}",
        f"promote of it{HOSTILE}",
        f"moved{HOSTILE[:3]}",
        f"odd{HOSTILE}",
    ):
        assert words in hostile.html.text
    assert hostile.html.text.split("\n")[1] == HOSTILE  # the title
    assert hostile.pictures.keys() == shop.pictures.keys()


def test_an_empty_archive_gives_a_page_that_says_what_is_missing(reports: dict[str, Report]) -> None:
    report = reports[""]
    assert "What is missing here" in report.html.text
    for words in (
        "No predictions of this task",
        "No AUC: no labels",
        "No alerts and no decisions",
        "No model versions",
    ):
        assert words in report.html.text
    assert not report.pictures
    assert (report.figures["predictions"], report.figures["latency_ms"]["scored"]) == (0, None)


def test_predictions_without_labels_have_a_latency_and_no_curves(reports: dict[str, Report]) -> None:
    report = reports[METRICLESS]
    assert [name.split()[0] for name in report.pictures] == ["Events", "How"]
    assert "No AUC: no labels have arrived yet." in report.html.text


def test_late_labels_are_told(reports: dict[str, Report], shop: Report) -> None:
    assert "By the first alarm's account it changed at" in reports[LATE].html.text
    assert "Labels came 1 min 40 s after their events" in reports[LATE].html.text
    assert "Labels came" not in shop.html.text


def test_a_swap_that_reached_serving_later_is_told(reports: dict[str, Report], shop: Report) -> None:
    assert "further on" not in shop.html.text  # L2 scored the event of its swap
    told = "The stream was further on by then: L2 scored events from 2023-11-14 22:18:20 on."
    assert told in reports[EARLY].html.text


def test_an_unknown_metric_is_refused(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown metric 'f1'"):
        write_report(archive, TASK, "f1", tmp_path / "r.html", title="", facts={})
    assert list(tmp_path.iterdir()) == []
