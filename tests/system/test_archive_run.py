"""What a run leaves in the archive, on both engines, although the archive role is killed in the middle."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import feast
import pytest

from infra.clickhouse import literal, open_archive
from infra.kafka import committed_offsets, read_all
from infra.settings import Settings, load_secret
from infra.tables import TABLES
from streams.archive import sources
from streams.feed import Item, feed
from streams.privacy import Pseudonymiser
from streams.simulate import simulate
from streams.task import Task
from streams.topics import Topics
from tests.system import run_support as runs

EVENTS = 6_000
FILLED = {"predictions", "labels", "versions", "metrics", "dead_letters"}  # by any run; the others by a drift
BROKEN = (b"no json", b"[]", b"")
Key = tuple[Any, ...]


@dataclass
class History:
    """What the topics hold and what the archive holds, by table and by the key that makes a row one row."""

    run: runs.Run
    task: Task
    settings: Settings
    more: dict[str, str]
    made: dict[str, dict[Key, set[str]]] = field(default_factory=dict)  # every record's rows
    committed: dict[str, set[Key]] = field(
        default_factory=dict
    )  # those that the archive role says it has stored
    found: dict[str, list[tuple[Key, str]]] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)  # rows without FINAL
    features: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)

    def tails(self) -> Iterator[tuple[str, str]]:
        return self.run.tails()


@pytest.fixture(scope="module", params=["chdb", "clickhouse"])
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker: Any
) -> Iterator[History]:
    """A short run on either engine; features go to Redis where the archive is a server."""
    folder, more = tmp_path_factory.mktemp(request.param), {"DRIFTLINE_KAFKA": broker.address}
    if request.param == "clickhouse":
        more["DRIFTLINE_ARCHIVE"] = request.getfixturevalue("clickhouse_server")
        more["DRIFTLINE_ONLINE"] = f"redis://{request.getfixturevalue('redis_server').address}"
    task, data = runs.own_task(folder, f"history-{request.param}"), folder / "data"
    with runs.running(data, "up", "--task", str(task.path), **more) as run:
        run.wait_for("Ctrl-C stops")
        done = History(run, task, Settings.from_env(runs.environment(data, **more)), more)
        stream(done)
        assert run.stop() == 0
        read(done)
        yield done


def stream(done: History) -> None:
    """Feed good and broken events; the archive role dies twice while rows arrive; wait until all is stored."""
    run, task, kafka = done.run, done.task, done.settings.kafka
    clicks = simulate("clicks", seed=7, events=EVENTS)
    events = [item.value for item in clicks.items() if item.kind == "event" and isinstance(item.value, dict)]
    feed(clicks.items(), clicks.total, task, kafka, rate=1_500)
    killed = run.kill_role("archive")
    feed([Item(0, "event", "k", value) for value in BROKEN], len(BROKEN), task, kafka)
    runs.await_predictions(kafka, task, {str(event["event_id"]) for event in events})
    again = runs.until(lambda: (pid := run.role_pid("archive")) != killed and pid, "a new archive process")
    os.kill(again, signal.SIGKILL)
    read_features(done, str(events[-1]["user_id"]))
    for topic in sources(task):
        runs.await_archived(kafka, task, topic)


def read_features(done: History, user: str) -> None:
    """One user's features as the command and as a Feast client read them."""
    data = done.settings.data
    said = runs.driftline(
        data, "features", "get", "user", user, "--task", str(done.task.path), "--json", **done.more
    )
    assert said.returncode == 0, said.stderr
    done.features = json.loads(said.stdout)
    key = Pseudonymiser(load_secret(done.settings.secret)).one("user_id", user)
    names = [f"{done.task.name.replace('-', '_')}_user:{name}" for name in done.features]
    store = feast.FeatureStore(repo_path=str(data / "feast"))
    read = store.get_online_features(features=names, entity_rows=[{"user_key": key}]).to_dict()
    done.online = {name: read[name][0] for name in done.features}


def read(done: History) -> None:
    """Read the topics and the archive of a run that has ended."""
    group = f"driftline-{done.task.name}-archive"
    archive = open_archive(done.settings.archive)
    try:
        for topic, (table, columns, rows_of) in sources(done.task).items():
            stored = committed_offsets(done.settings.kafka, group, topic)
            made, committed = done.made.setdefault(table, {}), done.committed.setdefault(table, set())
            for record in read_all(done.settings.kafka, topic):
                for row in rows_of(record):
                    key, text = keyed(table, dict(zip(columns, row, strict=True)))
                    made.setdefault(key, set()).add(text)
                    if record.offset < stored.get(record.partition, 0):
                        committed.add(key)
            where = f"WHERE task = {literal(done.task.name)}"
            rows = archive.query(f"SELECT {', '.join(columns)} FROM {table} FINAL {where}")
            done.found[table] = [keyed(table, dict(zip(columns, row, strict=True))) for row in rows]
            done.stored[table] = archive.query(f"SELECT count() FROM {table} {where}")[0][0]
    finally:
        archive.close()


def keyed(table: str, row: dict[str, Any]) -> tuple[Key, str]:
    """A row's key, and the row as text (NaN equals itself there) without the time of its insertion."""
    text = {name: row[name] for name in TABLES[table].names if name in row and name != "archived_ms"}
    return tuple(row[name] for name in TABLES[table].key), repr(text)


def test_every_row_is_there_once_and_as_its_record_says(history: History) -> None:
    for table, made in history.made.items():
        times = Counter(key for key, _ in history.found[table])
        assert [key for key, count in times.items() if count > 1] == [], table
        assert history.committed[table] <= set(times) <= set(made), table
        for key, text in history.found[table]:
            assert text in made[key], (table, text, made[key])
    assert {table for table, rows in history.found.items() if rows} >= FILLED
    assert len(history.found["predictions"]) == EVENTS
    assert len(history.found["dead_letters"]) == len(BROKEN)


def test_the_crashes_left_something_to_be_replaced_or_nothing_at_all(history: History) -> None:
    for table, rows in history.found.items():
        assert history.stored[table] >= len(rows), table
    log = (history.settings.log_dir / "archive.log").read_text()
    assert "Traceback" not in log
    assert "is not archived" not in log


def test_lineage_asks_the_archive_first(history: History) -> None:
    run, where = history.settings.data, ("--task", str(history.task.path), "--json")
    topics = Topics.of(history.task)
    sent = runs.values(history.settings.kafka, topics.predictions)[0]
    done = runs.driftline(run, "lineage", sent["event_id"], *where, **history.more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["prediction"]
    assert found == {name: sent[name] for name in found}
    assert set(found) == {"score", "version", "event_time", "processed_at", "late", "source"}

    # What no topic has any more, as after their retention: only the archive can tell of it.
    places = {"event_ms": 5, "processed_ms": 7, "late": 1, "source_partition": 1, "source_offset": 3}
    archived = {"task": history.task.name, "event_id": "it's old", "version": "L9.9", "score": 0.25, **places}
    label = {
        "task": history.task.name,
        "event_id": "it's old",
        "source": "label",
        "label": 1.0,
        "known_ms": 6,
    }
    archive = open_archive(history.settings.archive)
    archive.insert("predictions", list(archived), [[value] for value in archived.values()])
    archive.insert("labels", [*label, "served"], [*([value] for value in label.values()), [float("nan")]])
    archive.close()
    done = runs.driftline(run, "lineage", "it's old", *where, **history.more)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["prediction"] == {
        "score": 0.25, "version": "L9.9", "event_time": 5, "processed_at": 7, "late": True,
        "source": {"partition": 1, "offset": 3},
    }  # fmt: skip
    assert facts["label"] == {"label": 1.0, "known_at": 6, "served": None, "source": "label"}
    assert (facts["version"], facts["trained"]) == (None, [])


def test_the_online_store_answers_through_feast(history: History) -> None:
    assert set(history.features) == set(history.task.views["user"].columns)
    assert history.features["user_count_24h"] is not None
    assert history.online == pytest.approx(history.features, nan_ok=True)
