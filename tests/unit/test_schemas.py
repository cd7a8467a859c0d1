"""docs/schemas.md says what the code does: topics, JSON fields, headers, reason codes, tables, queries."""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import pytest

from infra.blobs import Blobs
from infra.clickhouse import Archive, create_tables, open_archive
from infra.tables import TABLES
from learners import challenger as trial
from learners.batch import ModelConfig
from learners.challenger import Action, Challenger, Decision
from learners.drift import Alert
from learners.prequential import MetricRow, Prequential
from learners.trainer import Trainer
from learners.verdict import PairedTest
from streams import archive as archiving
from streams.announce import Announcer
from streams.dead_letters import LONGEST_VALUE, add_dead_letters
from streams.events import Broken, EventDecoder, LabelDecoder
from streams.predictions import Prediction, Source, ValuePrediction
from streams.task import TopicNames, load_task
from streams.topics import Topics
from streams.transaction import Outputs
from tests.stream_records import HIDDEN, NOW_MS, Record

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "schemas.md").read_text()
CLICKS = load_task("clicks")
JSON_TYPES: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "boolean", Source: "object"}

ALERT = Alert("adwin-32", "adwin", "loss", "log_loss", 0.2, 0.1, "e-1", 1, 2, "L1.1", "it rose")
DECISION = Decision("1-freeze-L1", "freeze", "L1", "L1", "to compare", {"examples": 9}, 2, 3)
METRIC = MetricRow("served", "", 2, 3, 0, 0, np.nan, np.nan, np.nan, np.nan)


def section(heading: str) -> str:
    """The text under a heading, up to the next one."""
    [found] = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", DOC, re.MULTILINE | re.DOTALL)
    return str(found)


def table(text: str, first: str) -> list[list[str]]:
    """Cells of the one table in `text` whose first column is called so, without code marks."""
    [rows] = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]
    return [[re.sub("^`([^`]*)`$", r"\1", cell) for cell in row] for row in cells]


def first_column(text: str, first: str) -> list[str]:
    return [row[0] for row in table(text, first)]


def fields(topic: str) -> dict[str, str]:
    """Documented field -> type of a topic's records."""
    return {row[0]: row[1] for row in table(section(f"Topic `{topic}`"), "field")}


def example(topic: str) -> dict[str, Any]:
    """The documented record of a topic."""
    [block] = re.findall(r"```json\n(.*?)```", section(f"Topic `{topic}`"), re.DOTALL)
    record: dict[str, Any] = json.loads(block)
    return record


class Sent:
    """What a learner hands to its producer."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes, bytes]] = []

    def send(self, topic: str, value: bytes, key: bytes) -> None:
        self.records.append((topic, value, key))


@cache
def sent_by_learner() -> dict[str, dict[str, Any]]:
    """Topic -> the record that the learner sends there."""
    sent = Sent()
    announcer = Announcer(CLICKS, sent, Blobs("memory://schemas"))
    for event in (ALERT, DECISION, METRIC):
        announcer.tell(event)
    announcer.tell_feature_drift({"column": 1.0}, 5)
    assert {key for _, _, key in sent.records} == {b"clicks"}
    return {topic.removeprefix("clicks."): json.loads(value) for topic, value, _ in sent.records}


def type_of(value: Any) -> str:
    """The documented name of a JSON value's type."""
    kinds = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "boolean",
        dict: "object",
        list: "array",
        type(None): "null",
    }
    return kinds[type(value)]


def fits(value: Any, kind: str) -> bool:
    return type_of(value) in kind.split(" or ") or (kind.startswith("number") and type(value) is int)


def test_a_value_is_the_only_thing_that_differs_in_a_regression_task() -> None:
    hints, values = list(get_type_hints(Prediction)), list(get_type_hints(ValuePrediction))
    assert [name.replace("value", "score") for name in values] == hints
    assert "`value`" in section("Topic `predictions`")


def test_a_prediction_has_the_documented_fields() -> None:
    hints = get_type_hints(Prediction)
    assert fields("predictions") == {name: JSON_TYPES[hint] for name, hint in hints.items()}
    [sentence] = [row[2] for row in table(section("Topic `predictions`"), "field") if row[0] == "source"]
    assert re.findall("`(.*?)`", sentence) == list(get_type_hints(Source))
    read = msgspec.json.decode(json.dumps(example("predictions")), type=Prediction)
    assert msgspec.to_builtins(read) == example("predictions")


@pytest.mark.parametrize("topic", ["drift-alerts", "audit", "metrics", "feature-drift"])
def test_the_learner_sends_the_documented_fields(topic: str) -> None:
    sent, documented = sent_by_learner()[topic], fields(topic)
    assert sorted(sent) == sorted(documented)
    assert {name: kind for name, kind in documented.items() if not fits(sent[name], kind)} == {}


def test_what_is_not_defined_is_documented_as_null() -> None:
    nulls = {name for name, kind in fields("metrics").items() if kind.endswith("or null")}
    assert nulls == {name for name, value in sent_by_learner()["metrics"].items() if value is None}


@pytest.mark.parametrize("topic", ["predictions", "drift-alerts", "audit", "metrics", "feature-drift"])
def test_examples_have_exactly_the_documented_fields(topic: str) -> None:
    record, documented = example(topic), fields(topic)
    assert list(record) == list(documented)
    assert {name: kind for name, kind in documented.items() if not fits(record[name], kind)} == {}


def test_the_evidence_is_documented() -> None:
    config = ModelConfig(rows=16, hidden=(4,))
    arm = Trainer(CLICKS.schema, config, 1, "L2", "cpu")
    untried = Challenger(arm, "warm", "adwin-32", PairedTest(0.005, 0.001))
    evidence = trial.evidence(untried, "L1", Prequential(10))
    documented = {row[0]: row[1] for row in table(section("Topic `audit`"), "evidence")}
    assert sorted(evidence) == sorted(documented) == sorted(example("audit")["evidence"])
    assert {name for name, kind in documented.items() if "null" in kind} == {
        name for name, value in evidence.items() if value is None
    }
    for values in (evidence, example("audit")["evidence"]):
        assert [name for name, kind in documented.items() if not fits(values[name], kind)] == []


def test_every_action_and_arm_is_documented() -> None:
    assert first_column(section("Topic `audit`"), "action") == list(get_args(Action))
    named = set(re.findall(r"\b[a-z]+\b", MetricRow.__doc__ or ""))
    assert set(first_column(section("Topic `metrics`"), "arm")) <= named
    assert len(first_column(section("Topic `metrics`"), "arm")) == 5


def test_example_events_and_labels_are_good_ones() -> None:
    def sent(topic: str) -> Record:
        return Record(json.dumps(example(topic)).encode(), timestamp=NOW_MS + 10 * 365 * 86_400_000)

    rows, broken = EventDecoder(CLICKS, HIDDEN).decode([sent("events")])
    assert (rows.ids, broken) == ([example("predictions")["event_id"]], [])
    assert rows.event_ms.tolist() == [example("predictions")["event_time"]]
    labels, broken = LabelDecoder(CLICKS, HIDDEN).decode([sent("labels")])
    assert (labels.ids, broken) == (rows.ids, [])


def test_the_headers_of_a_dead_letter() -> None:
    outputs = Outputs()
    record = Record(b"x" * (LONGEST_VALUE + 1), key=b"k")
    add_dead_letters(outputs, "t.dead-letters", 4, "t", [Broken(record, "too_large", "why")])
    [[(_, _, headers)]] = outputs.records.values()
    documented = first_column(section("Topic `dead-letters`"), "header")
    assert documented == [name for name, _ in headers]
    assert list(example("dead-letters")) == [name for name in documented if name != "driftline.cut"]
    assert {type(value) for value in example("dead-letters").values()} == {str}


def reason_codes() -> Iterator[str]:
    """Every code that is written out where streams/ sets a record aside."""
    place = {"Broken": 1, "Refused": 0, "_Refused": 0, "_refused": 0}
    for path in (ROOT / "streams").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                code = node.args[place[name]] if name in place else None
                if isinstance(code, ast.Constant):
                    yield str(code.value)


def test_every_reason_code_is_documented() -> None:
    documented = first_column(section("Topic `dead-letters`"), "reason")
    assert sorted(documented) == sorted(set(reason_codes()))
    assert re.findall(r'"(\w+)"', Broken.__doc__ or "") == documented
    elsewhere = (ROOT / "docs" / "task-file.md").read_text()
    assert first_column(elsewhere, "reason") == documented


@pytest.mark.parametrize("task", ["clicks", "transactions"])
def test_every_topic_is_documented_with_its_partitions(task: str) -> None:
    topics = Topics.of(load_task(task))
    entities = "|".join(topics.entities)
    documented = {row[0]: row for row in table(section("All topics"), "topic")}
    found = {}
    for name, (partitions, _) in topics.layout(8).items():
        general = re.sub(rf"(by|feedback)-({entities})$", r"\1-<entity>", name.replace(task, "<task>", 1))
        found[general] = "P" if partitions == 8 else str(partitions)
    assert found == {name: row[4] for name, row in documented.items()}
    internal = re.findall(r"^- \*\*`(.*?)`\*\*", section("Internal topics"), re.MULTILINE)
    described = [f"<task>.{name}" for name in re.findall(r"^## Topic `(.*?)`", DOC, re.MULTILINE)]
    assert [*described, *internal] == list(documented)


def test_the_topics_that_a_task_file_may_rename() -> None:
    keys = {row[0]: row[5] for row in table(section("All topics"), "topic") if row[5]}
    assert list(keys.values()) == list(get_type_hints(TopicNames))
    topics = Topics.of(CLICKS)
    assert {name.replace("<task>", "clicks"): key for name, key in keys.items()} == {
        getattr(topics, key): key for key in keys.values()
    }


def test_every_table_and_column_is_documented() -> None:
    assert re.findall(r"^### Table `(.*?)`", DOC, re.MULTILINE) == list(TABLES)
    for name, made in TABLES.items():
        text = section(f"Table `{name}`")
        rows = table(text, "column")
        assert [(row[0], row[1]) for row in rows] == list(made.columns)
        assert all(row[2] for row in rows)
        words = " ".join(text.partition("|")[0].split())
        [key] = re.findall(r"Key: ((?:`\w+`(?:, )?)+)\.", words)
        assert tuple(re.findall(r"\w+", key)) == made.key
        assert re.findall(r"The newest row has the greatest `(\w+)`\.", words) == [made.newest]


def test_links_inside_the_page_have_a_target() -> None:
    anchors = {
        re.sub("[^a-z0-9 _-]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", DOC, re.M)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", DOC)) <= anchors


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An archive that holds the documented examples, written as the archive role writes them."""
    opened = open_archive(f"chdb://{tmp_path_factory.mktemp('schemas')}/archive")
    create_tables(opened)
    names = {
        "predictions": "predictions",
        "drift-alerts": "alerts",
        "audit": "decisions",
        "metrics": "metrics",
    }
    names |= {"feature-drift": "feature_drift", "dead-letters": "dead_letters"}
    for topic, (name, columns, rows_of) in archiving.sources(CLICKS).items():
        kind = topic.removeprefix("clicks.")
        if kind in names:
            assert name == names[kind]
            headers = tuple((k, str(v).encode()) for k, v in example(kind).items() if kind == "dead-letters")
            rows = rows_of(Record(json.dumps(example(kind)).encode(), headers=headers))
            opened.insert(name, columns, list(zip(*rows, strict=True)))
    label = {"task": "clicks", "event_id": "imp-1-17", "source": "label", "label": 1.0, "served": 0.0841}
    label |= {"event_ms": 1704067211000, "known_ms": 1704067211000, "version": "L1.23", "joined_ms": NOW_MS}
    opened.insert("labels", list(label), [[value] for value in label.values()])
    yield opened
    opened.close()


QUERIES = re.findall(r"```sql\n(.*?)```", DOC, re.DOTALL)


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_the_queries_find_the_examples(archive: Archive, number: int) -> None:
    [row] = archive.query(QUERIES[number])
    assert all(value is not None and value != "" for value in row)


def test_the_page_shows_queries_for_swaps_latency_and_rates() -> None:
    assert len(QUERIES) >= 3
    assert all(
        re.search(rf"\b{name}\b FINAL", " ".join(QUERIES)) for name in ("decisions", "predictions", "labels")
    )


def test_the_swap_query_names_the_alarm(archive: Archive) -> None:
    [row] = archive.query(QUERIES[0])
    assert row[1:] == ("L1", "L2", example("audit")["reason"], example("drift-alerts")["message"])
