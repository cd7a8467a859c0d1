"""What a run leaves in the archive, on both engines, although the archive role is killed in the middle.

And the past through Feast: what was served to each event of the run, and nothing from after it.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import feast
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from infra.clickhouse import literal, open_archive
from infra.errors import UserError
from infra.kafka import committed_offsets, read_all
from infra.settings import Settings, load_secret
from infra.tables import TABLES
from streams.archive import sources
from streams.feed import Item, feed
from streams.privacy import Pseudonymiser
from streams.simulate import simulate
from streams.task import Task
from streams.topics import Topics
from streams.wire import EXAMPLES, KIND, Rows, decode_examples
from tests.system import run_support as runs

EVENTS = 3_000
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
    refused: str = ""  # what was said of the past while the run went on
    served: Rows = field(init=False)  # the rows of the examples topic

    def tails(self) -> Iterator[tuple[str, str]]:
        return self.run.tails()

    @property
    def store(self) -> feast.FeatureStore:
        """As any client of Feast opens it."""
        return feast.FeatureStore(repo_path=str(self.settings.data / "feast"))

    def past(self, before_ms: int = 0) -> tuple[pd.DataFrame, dict[str, NDArray[np.float32]]]:
        """Features of the events' entities so long before the events, as Feast tells them: entity → [n, F]."""
        frame = pd.DataFrame({"event_timestamp": pd.to_datetime(self.served.event_ms - before_ms, unit="ms")})
        for index, entity in enumerate(self.task.entities):
            frame[f"{entity.name}_key"] = self.served.keys[:, index]
        store = self.store
        service = store.get_feature_service(self.task.name.replace("-", "_"))
        found = store.get_historical_features(frame, service).to_df()
        return found, {
            name: found[list(view.columns)].to_numpy(np.float32) for name, view in self.task.views.items()
        }


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
    runs.register(data, task, **more)
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
    for topic, (table, _, _) in sources(task).items():
        if table in FILLED:
            runs.until(partial(read_all, kafka, topic), f"something in {topic}")
        runs.await_archived(kafka, task, topic)
    done.served = examples(done)
    try:
        done.past()
    except UserError as error:
        done.refused = str(error)


def examples(done: History) -> Rows:
    """All rows of the examples topic."""
    records = read_all(done.settings.kafka, Topics.of(done.task).examples)
    parts = [r.value for r in records if dict(r.headers).get(KIND, EXAMPLES) == EXAMPLES]
    return Rows.concat([decode_examples(value, done.task.rows_hash)[0] for value in parts])


def read_features(done: History, user: str) -> None:
    """One user's features as the command and as a Feast client read them, once nothing is written any more."""
    key, where = Pseudonymiser(load_secret(done.settings.secret)).one("user_id", user), done.settings.data
    command = ("features", "get", "user", user, "--task", str(done.task.path), "--json")

    def alike() -> bool:
        said = runs.driftline(where, *command, **done.more)
        if "is not in the online store" in said.stderr:  # it is written behind the predictions
            return False
        assert said.returncode == 0, said.stderr
        done.features = json.loads(said.stdout)
        names = [f"{done.task.name.replace('-', '_')}_user:{name}" for name in done.features]
        read = done.store.get_online_features(features=names, entity_rows=[{"user_key": key}]).to_dict()
        done.online = {name: read[name][0] for name in done.features}
        return done.features["user_count_24h"] is not None and done.online == pytest.approx(
            done.features, nan_ok=True
        )

    runs.until(alike, "the same features by the command and by Feast", every_s=1.0)


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
    assert "not archived" not in log


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
    assert history.online == pytest.approx(history.features, nan_ok=True)


def newest(rows: Rows, index: int, until_ms: NDArray[np.int64]) -> list[int]:
    """For each event, where its entity's newest event not after a time is, or -1: a slow search."""
    order = np.lexsort((rows.offset, rows.partition, rows.event_ms))
    by_key: dict[int, list[int]] = {}
    for at in order.tolist():
        by_key.setdefault(int(rows.keys[at, index]), []).append(at)
    found = []
    for key, until in zip(rows.keys[:, index].tolist(), until_ms.tolist(), strict=True):
        found.append(max((i for i, at in enumerate(by_key[key]) if rows.event_ms[at] <= until), default=-1))
        found[-1] = by_key[key][found[-1]] if found[-1] >= 0 else -1
    return found


@pytest.mark.parametrize("before_ms", [0, 1, 3_600_000])
def test_the_past_is_what_was_served_bit_for_bit(history: History, before_ms: int) -> None:
    rows = history.served
    frame, told = history.past(before_ms)
    assert len(rows) == len(frame) == EVENTS
    for index, entity in enumerate(history.task.entities):
        at = np.array(newest(rows, index, rows.event_ms - before_ms))
        columns = [history.task.numbers.index(name) for name in history.task.views[entity.name].columns]
        expected = rows.numbers[at][:, columns]
        expected[at < 0] = np.nan
        assert told[entity.name].view(np.int32).tolist() == expected.view(np.int32).tolist()
        if before_ms == 0:
            ties = np.flatnonzero(at != np.arange(EVENTS))
            assert np.array_equal(rows.event_ms[at[ties]], rows.event_ms[ties])
            assert len(ties) < EVENTS / 10


def test_just_before_an_event_its_own_row_is_not_seen(history: History) -> None:
    rows = history.served
    first = [i for i, at in enumerate(newest(rows, 0, rows.event_ms - 1)) if at < 0]
    assert len(first) >= len(np.unique(rows.keys[:, 0]))
    frame, _ = history.past(before_ms=1)
    counts = frame[history.task.views["user"].columns[0]]
    assert counts.isna().to_numpy().nonzero()[0].tolist() == first


def test_the_present_of_the_online_store_is_the_end_of_the_past(history: History) -> None:
    names = [
        f"{history.task.name.replace('-', '_')}_user:{name}" for name in history.task.views["user"].columns
    ]
    keys = np.unique(history.served.keys[:, 0])[:200]
    online = history.store.get_online_features(names, [{"user_key": key} for key in keys.tolist()]).to_df()
    frame = pd.DataFrame({"user_key": keys, "event_timestamp": pd.Timestamp("2100-01-01", tz="UTC")})
    offline = history.store.get_historical_features(frame, names).to_df()
    for name in history.task.views["user"].columns:
        assert np.array_equal(
            online[name].to_numpy(np.float32), offline[name].to_numpy(np.float32), equal_nan=True
        )


def test_an_embedded_archive_is_the_archive_roles_while_it_runs(history: History) -> None:
    embedded = history.store.config.offline_store.archive.startswith("chdb://")
    assert ("has the archive in" in history.refused) == embedded
    assert ("stop that one" in history.refused) == embedded
    assert embedded or not history.refused
