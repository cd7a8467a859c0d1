"""`driftline up` and a stranger's producers: good, broken, late, duplicate and huge events, crashes and Ctrl-C."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import feast
import pytest
from kafka import KafkaProducer
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from infra.exporter import exported_name
from infra.kafka import Record, read_all
from infra.metrics import NAMES
from infra.ports import HOST, can_listen, free_port
from infra.settings import load_secret
from streams.privacy import Pseudonymiser
from streams.task import load_task
from streams.topics import Topics
from tests.system import run_support as runs

CLICKS = load_task("clicks")
COUNT, HALF = 2_000, 1_000
STEP_MS = 1_000  # event time between two events: a label's window closes while they are sent
LIMIT = CLICKS.serving.max_event_bytes
FIELDS = {
    "event_id",
    "task",
    "score",
    "version",
    "event_time",
    "received_at",
    "processed_at",
    "late",
    "arm",
    "explored",
    "propensity",
    "source",
}


def event(number: int, at_ms: int, **other: Any) -> dict[str, Any]:
    """An event as a stranger may send it: an own field, a missing optional one, times with an offset."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03d}+00:00"
    known = {
        "event_id": f"ev-{number}",
        "timestamp": stamp,
        "user_id": f"user-{number % 50}",
        "item_id": number % 31,
        "position": number % 5,
        "user_feature_0": "ä" * (number % 3),
        "their_own": [1, {"two": 2}],
    }
    return known | other


BROKEN: dict[str, tuple[str, bytes | None]] = {
    "no json": ("malformed", b'{"event_id": "broken'),
    "empty": ("malformed", b""),
    "no utf-8": ("malformed", json.dumps(event(1, 0)).encode().replace(b"user-1", b"user-\xff")),
    "null": ("null", None),
    "a list": ("invalid", b"[1, 2]"),
    "a missing field": ("invalid", b'{"event_id": "b1", "user_id": "u", "item_id": 1, "position": 1}'),
    "a wrong type": ("invalid", json.dumps(event(2, 10**12, position="high")).encode()),
    "out of range": ("invalid", json.dumps(event(3, 10**12, position=-1)).encode()),
    "no id": ("invalid", json.dumps(event(4, 10**12, event_id="")).encode()),
    "no time": ("invalid_time", json.dumps(event(5, 10**12, timestamp="yesterday")).encode()),
    "the far future": ("future", json.dumps(event(6, 4 * 10**12)).encode()),
    "too large": ("too_large", json.dumps(event(7, 10**12, padding="x" * LIMIT)).encode()),
    "10 MB": ("too_large", json.dumps(event(8, 10**12, padding="x" * 10_000_000)).encode()),
}
BROKEN_LABELS: dict[str, tuple[str, bytes | None]] = {
    "no json": ("malformed", b"click!"),
    "neither 0 nor 1": ("invalid", b'{"event_id": "ev-1", "click": 7}'),
}


@dataclass
class Exchange:
    """What was sent and what came back, read before the run ended."""

    run: runs.Run
    sent: dict[str, tuple[dict[str, Any], Any]] = field(default_factory=dict)  # id → (event, its place)
    places: dict[tuple[str, int, int], tuple[str, bytes | None]] = field(default_factory=dict)
    by_kcat: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    letters: list[tuple[Record, dict[str, str]]] = field(default_factory=list)
    labelled: int = 0
    users: Counter[str] = field(default_factory=Counter)
    features: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Metric]] = field(default_factory=dict)  # role → family → its samples
    newest: str = ""
    exit_code: int | None = None
    left: dict[int, list[str]] = field(default_factory=dict)

    def tails(self) -> Iterator[tuple[str, str]]:
        return self.run.tails()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "data"


@pytest.fixture(scope="module")
def exchange(folder: Path) -> Iterator[Exchange]:
    """A whole run: everything is sent, serve is killed in the middle, answers are read, Ctrl-C."""
    with runs.running(folder, "up", "--task", "clicks", DRIFTLINE_METRICS=four_free_ports()) as run:
        found = Exchange(run.wait_for("Ctrl-C stops"))
        printed_lines_work(found)
        with closing(KafkaProducer(bootstrap_servers=run.kafka, max_request_size=16 << 20)) as producer:
            send(found, producer)
            send_until_learned(found, producer)
        wanted = {*found.sent, *found.by_kcat, *found.late}
        found.predictions = runs.await_predictions(run.kafka, CLICKS, wanted)
        runs.await_consumed(run.kafka, CLICKS, "join", "clicks.labels")
        found.letters = runs.letters(run.kafka, "clicks")
        read_features(found)
        runs.until(lambda: quiet(scrape(found)), "no role to be behind")
        found.exit_code = run.stop()
        found.left = runs.processes(folder)
        yield found


def printed_lines_work(found: Exchange) -> None:
    """Do what `up` tells its user to do: the kcat lines, where there is a kcat, and the kafka-python lines."""
    lines = found.run.output.splitlines()
    if shutil.which("kcat"):
        for line in [line for line in lines if line.startswith("  echo ")]:
            subprocess.run(["bash", "-ec", line], check=True, timeout=runs.PATIENCE_S)
    at = next(i for i, line in enumerate(lines) if line.startswith("  from kafka import"))
    program = "\n".join(line[2:] for line in lines[at : at + 4])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=runs.PATIENCE_S)
    found.by_kcat.append("my-event-1")  # sent twice, once by each


def send(found: Exchange, producer: KafkaProducer) -> None:
    """Good events with duplicates and labels among them, broken ones, late ones; serve dies half-way."""
    rng, start = random.Random(4), round(time.time() * 1000) - COUNT * STEP_MS
    for number in range(COUNT):
        if number == HALF:
            producer.flush()
            found.run.kill_role("serve")
        good = event(number, start + number * STEP_MS)
        key, value = good["user_id"].encode(), json.dumps(good, ensure_ascii=False).encode()
        place = producer.send("clicks.events", key=key, value=value)
        found.sent[good["event_id"]] = (good, place)
        found.users[good["user_id"]] += 1
        if number % 10 == 0:  # the same again at once, and something else under an id that has been used
            producer.send("clicks.events", key=key, value=value)
            again = good | {"position": 4}
            producer.send("clicks.events", key=key, value=json.dumps(again).encode())
        if number % 3 == 0:
            label = {"event_id": good["event_id"], "click": rng.randint(0, 1)}
            producer.send("clicks.labels", key=key, value=json.dumps(label).encode())
            found.labelled += 1
        if number % 200 == 100:
            send_broken(found, producer, "clicks.events", BROKEN)
    send_broken(found, producer, "clicks.labels", BROKEN_LABELS)
    for number in range(2):
        late = event(0, start - 3 * 3_600_000, event_id=f"late-{number}", user_id=f"user-{number}")
        producer.send("clicks.events", key=late["user_id"].encode(), value=json.dumps(late).encode())
        found.late.append(late["event_id"])
    producer.flush()


def send_until_learned(found: Exchange, producer: KafkaProducer) -> None:
    """More events, one after the other, until one is scored by a model that has learned from labels."""

    def learned() -> bool:
        number = len(found.sent)
        good = event(number, round(time.time() * 1000))
        found.newest = good["event_id"]
        place = producer.send("clicks.events", key=good["user_id"].encode(), value=json.dumps(good).encode())
        found.sent[found.newest] = (good, place)
        found.users[good["user_id"]] += 1
        predictions = runs.await_predictions(found.run.kafka, CLICKS, {found.newest})
        versions = {row["event_id"]: row["version"] for row in predictions}
        return bool(versions[found.newest] != versions["ev-0"])

    runs.until(learned, "a model that has learned", every_s=1.0)


def send_broken(
    found: Exchange, producer: KafkaProducer, topic: str, records: dict[str, tuple[str, bytes | None]]
) -> None:
    """All broken records; the big ones only once."""
    first = not any(place[0] == topic for place in found.places)
    for reason, value in records.values():
        if first or value is None or len(value) < LIMIT:
            place = producer.send(topic, key=b"someone", value=value).get(60)
            found.places[topic, place.partition, place.offset] = (reason, value)


def read_features(found: Exchange) -> None:
    """What `features get` and a Feast client see of one user, once the last event of that user is there."""
    wanted = float(found.users["user-7"] - 1)  # before the last event

    def shown() -> Any:
        said = subprocess.run(
            [str(runs.DRIFTLINE), "features", "get", "user", "user-7", "--json"],
            env=runs.environment(found.run.data), cwd=found.run.data.parent, check=True, timeout=runs.PATIENCE_S,
            capture_output=True,
        )  # fmt: skip
        found.features = json.loads(said.stdout)
        return found.features["user_count_24h"] == wanted

    runs.until(shown, f"{wanted:g} events of user-7 in Feast")
    store = feast.FeatureStore(repo_path=str(found.run.data / "feast"))
    secret = load_secret(found.run.data / "secret.key")
    key = Pseudonymiser(secret).one("user_id", "user-7")
    names = [f"clicks_user:{name}" for name in found.features]
    read = store.get_online_features(features=names, entity_rows=[{"user_key": key}]).to_dict()
    found.online = {name: read[name][0] for name in found.features}


def four_free_ports() -> str:
    """The first of four ports in a row that nobody listens on."""
    while True:
        first = free_port()
        if all(can_listen(HOST, port) for port in range(first, first + 4)):
            return f"{HOST}:{first}"


def scrape(found: Exchange) -> dict[str, dict[str, Metric]]:
    """What every role tells Prometheus, at the addresses that `up` noted for it."""
    for group in json.loads((found.run.data / "metrics.json").read_text()):
        (address,) = group["targets"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=runs.PATIENCE_S) as answer:
            text = answer.read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        found.metrics[families["process_open_fds"].samples[0].labels["role"]] = families
    return found.metrics


def values(families: dict[str, Metric], name: str, label: str = "role") -> dict[str, float]:
    """Value by label of a metric, without the driftline_ before its name."""
    return {sample.labels[label]: sample.value for sample in families[f"driftline_{name}"].samples}


def quiet(metrics: dict[str, dict[str, Metric]]) -> bool:
    return all(
        "driftline_lag_records" in families and not any(values(families, "lag_records", "topic").values())
        for families in metrics.values()
    )


def test_each_role_tells_prometheus_what_it_did(exchange: Exchange) -> None:
    assert set(exchange.metrics) == {"archive", "join", "learn", "serve"}
    known = {exported_name(name).removesuffix("_total"): each for name, each in NAMES.items()}
    for role, families in exchange.metrics.items():
        ours = [name for name in families if name.startswith("driftline_")]
        assert [name for name in ours if role not in known[name].roles] == []
        for sample in families["driftline_lag_records"].samples:
            assert (sample.labels["task"], sample.labels["worker"].split("-")[0]) == ("clicks", role)
    serve, join, learn, archive = (exchange.metrics[r] for r in ("serve", "join", "learn", "archive"))
    topics = Topics.of(CLICKS)
    stages = {topics.stage(place) for place in range(len(CLICKS.entities))}
    assert stages <= set(values(serve, "lag_records", "topic"))
    assert set(values(join, "lag_records", "topic")) == {topics.labels, topics.examples}
    assert set(values(learn, "lag_records", "topic")) == {topics.labelled, topics.examples}
    predictions = values(serve, "predictions")["serve"]
    latency = {
        s.name.rpartition("_")[2]: s.value for s in serve["driftline_prediction_latency_seconds"].samples
    }
    assert 0 < predictions == latency["count"] <= len(exchange.predictions)  # of the worker's second life
    assert latency["sum"] > 0
    assert 0 < values(serve, "transactions")["serve"] <= predictions
    assert values(serve, "dead_letters", "reason")["malformed"] > 0
    assert values(serve, "online_rows")["serve"] > 0
    assert 0 <= values(serve, "online_waiting_seconds")["serve"] < runs.PATIENCE_S
    assert 0 < values(serve, "online_staleness_seconds")["serve"] < runs.PATIENCE_S
    assert 0 < values(serve, "model_age_seconds")["serve"] < 10 * runs.PATIENCE_S
    assert values(serve, "refreshes")["serve"] > 0
    assert set(values(serve, "rejected_updates", "check").values()) == {0}
    assert values(join, "labels")["join"] == exchange.labelled
    assert values(join, "dead_letters", "reason")["invalid"] == 1
    assert values(learn, "trained")["learn"] > 0
    assert values(learn, "arena_budget")["learn"] == CLICKS.arena.budget
    assert values(learn, "champion_work_seconds")["learn"] > 0
    assert values(learn, "snapshots")["learn"] > 0
    assert set(values(learn, "decisions", "action")) >= {"promote", "rollback"}
    assert values(archive, "archived_rows", "table")["predictions"] == len(exchange.predictions)


def test_each_good_event_has_exactly_one_prediction(exchange: Exchange) -> None:
    seen = Counter(row["event_id"] for row in exchange.predictions)
    assert set(seen) == {*exchange.sent, *exchange.by_kcat, *exchange.late}
    assert [event_id for event_id, count in seen.items() if count > 1] == []


def test_a_prediction_says_everything(exchange: Exchange) -> None:
    for row in exchange.predictions:
        assert set(row) == FIELDS
        assert row["task"] == "clicks"
        assert 0.0 < row["score"] < 1.0
        assert re.fullmatch(r"L\d+\.\d+", row["version"])
        assert row["late"] == (row["event_id"] in exchange.late)
        assert row["processed_at"] >= row["received_at"]
        if row["event_id"] in exchange.sent:
            good, place = exchange.sent[row["event_id"]]
            at = place.get(0)
            assert (row["source"]["partition"], row["source"]["offset"]) == (at.partition, at.offset)
            assert row["received_at"] == at.timestamp
            assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row["event_time"] // 1000)) in str(good)
    versions = {row["event_id"]: row["version"] for row in exchange.predictions}
    assert versions["ev-0"] != versions[exchange.newest]  # what came in between was learned from


def test_each_broken_record_is_one_dead_letter_with_bytes_place_and_reason(exchange: Exchange) -> None:
    found: Counter[tuple[str, int, int]] = Counter()
    for record, headers in exchange.letters:
        place = (
            headers["driftline.topic"],
            int(headers["driftline.partition"]),
            int(headers["driftline.offset"]),
        )
        found[place] += 1
        reason, value = exchange.places[place]
        assert (headers["driftline.reason"], record.value) == (reason, value), headers
        assert (record.key, headers["driftline.task"]) == (b"someone", "clicks")
        assert headers["driftline.detail"]
    assert found == Counter(dict.fromkeys(exchange.places, 1))


def test_features_reach_feast(exchange: Exchange) -> None:
    assert set(exchange.features) == set(CLICKS.views["user"].columns)
    assert exchange.online == pytest.approx(exchange.features, nan_ok=True)
    assert exchange.features["user_time_since_last"] > 0


def test_the_crash_of_a_worker_was_noticed_and_nothing_else_went_wrong(exchange: Exchange) -> None:
    logs = {path.name: path.read_text() for path in (exchange.run.data / "logs").glob("*.log")}
    assert set(logs) >= {"archive.log", "join.log", "learn.log", "serve-1.log"}
    assert [name for name, text in logs.items() if "Traceback" in text] == []
    ready = r"'clicks.events', partition=0\) ready at offset (\d+)"
    offsets = [int(offset) for offset in re.findall(ready, logs["serve-1.log"])]
    assert len(offsets) == 2
    assert 0 == offsets[0] < offsets[1]


def test_ctrl_c_stops_everything(exchange: Exchange) -> None:
    assert exchange.exit_code == 0
    assert exchange.left == {}
    assert exchange.run.output.rstrip().endswith("stopped")
    assert exchange.run.output.count("metrics for Prometheus") == 1
    assert not (exchange.run.data / "metrics.json").exists()
    assert "Traceback" not in exchange.run.output


def test_a_second_up_goes_on_where_the_first_stopped(exchange: Exchange) -> None:
    """Old ids get no second prediction, new ones get theirs; kill -9 of `up` itself then leaves no process."""
    data = exchange.run.data
    with runs.running(data, "up", "--task", "clicks") as run:
        run.wait_for("Ctrl-C stops")
        now = round(time.time() * 1000)
        old = [event(n, now, user_id="user-1") for n in range(0, COUNT, 20)]
        new = [event(n, now + n) for n in range(2 * COUNT, 2 * COUNT + 50)]
        with closing(KafkaProducer(bootstrap_servers=run.kafka)) as producer:
            for one in [*old, *new]:
                producer.send("clicks.events", key=first_key(exchange, one), value=json.dumps(one).encode())
        wanted = {one["event_id"] for one in new}
        seen = Counter(row["event_id"] for row in runs.await_predictions(run.kafka, CLICKS, wanted))
        before = {row["event_id"] for row in exchange.predictions}
        assert seen == Counter(dict.fromkeys(before | wanted, 1))
        assert len(read_all(run.kafka, "clicks.dead-letters")) == len(exchange.letters)
        run.process.kill()
        run.ended()
        runs.until(lambda: not runs.processes(data), "no process of a killed `up`")


def first_key(exchange: Exchange, one: dict[str, Any]) -> bytes:
    """The key that the event's id had the first time, since duplicates are looked for within a partition."""
    good, _ = exchange.sent.get(one["event_id"], (one, None))
    return str(good["user_id"]).encode()
