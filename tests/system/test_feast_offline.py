"""The past through Feast, on both engines: what was served to each event of a run, and nothing from after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import feast
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from infra.errors import UserError
from infra.kafka import read_all
from infra.settings import Settings
from streams.feed import feed
from streams.simulate import simulate
from streams.task import Task
from streams.topics import Topics
from streams.wire import EXAMPLES, KIND, Rows, decode_examples
from tests.system import run_support as runs

EVENTS = 3_000


@dataclass
class Past:
    """A run that has ended, the rows of its examples topic, and what was said of the past while it went on."""

    run: runs.Run
    task: Task
    store: feast.FeatureStore
    served: Rows
    refused: str

    def tails(self) -> Iterator[tuple[str, str]]:
        return self.run.tails()

    def features(self, entity: str) -> NDArray[np.float32]:
        """What was served of one entity, float32 [n, F]."""
        at = [self.task.numbers.index(name) for name in self.task.views[entity].columns]
        return self.served.numbers[:, at]

    def asked(self, before_ms: int = 0) -> tuple[pd.DataFrame, dict[str, NDArray[np.float32]]]:
        """Features of the events' entities so long before the events, as Feast tells them: entity → [n, F]."""
        frame = pd.DataFrame({"event_timestamp": pd.to_datetime(self.served.event_ms - before_ms, unit="ms")})
        for index, entity in enumerate(self.task.entities):
            frame[f"{entity.name}_key"] = self.served.keys[:, index]
        service = self.store.get_feature_service(self.task.name.replace("-", "_"))
        found = self.store.get_historical_features(frame, service).to_df()
        return found, {
            name: found[list(view.columns)].to_numpy(np.float32) for name, view in self.task.views.items()
        }


@pytest.fixture(scope="module", params=["chdb", "clickhouse"])
def past(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker: Any
) -> Iterator[Past]:
    """A short run of the built-in clicks, all of whose examples are archived."""
    folder, more = tmp_path_factory.mktemp(request.param), {"DRIFTLINE_KAFKA": broker.address}
    if request.param == "clickhouse":
        more["DRIFTLINE_ARCHIVE"] = request.getfixturevalue("clickhouse_server")
    task, data = runs.own_task(folder, f"past-{request.param}"), folder / "data"
    kafka = Settings.from_env(runs.environment(data, **more)).kafka
    with runs.running(data, "up", "--task", str(task.path), **more) as run:
        run.wait_for("Ctrl-C stops")
        clicks = simulate("clicks", seed=11, events=EVENTS)
        ids = {
            str(i.value["event_id"])
            for i in clicks.items()
            if i.kind == "event" and isinstance(i.value, dict)
        }
        feed(clicks.items(), clicks.total, task, kafka, rate=1_500)
        runs.await_predictions(kafka, task, ids)
        runs.await_archived(kafka, task, Topics.of(task).examples)
        store = feast.FeatureStore(repo_path=str(data / "feast"))
        done = Past(run, task, store, examples(kafka, task), "")
        try:
            done.asked()
        except UserError as error:
            done.refused = str(error)
        assert run.stop() == 0
        yield done


def examples(kafka: str, task: Task) -> Rows:
    """All rows of the examples topic."""
    records = read_all(kafka, Topics.of(task).examples)
    parts = [r.value for r in records if dict(r.headers).get(KIND, EXAMPLES) == EXAMPLES]
    return Rows.concat([decode_examples(value, task.rows_hash)[0] for value in parts])


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
def test_the_past_is_what_was_served_bit_for_bit(past: Past, before_ms: int) -> None:
    rows = past.served
    frame, told = past.asked(before_ms)
    assert len(rows) == len(frame) == EVENTS
    for index, entity in enumerate(past.task.entities):
        at = np.array(newest(rows, index, rows.event_ms - before_ms))
        expected = past.features(entity.name)[at]
        expected[at < 0] = np.nan
        assert told[entity.name].view(np.int32).tolist() == expected.view(np.int32).tolist()
        if before_ms == 0:
            ties = np.flatnonzero(at != np.arange(EVENTS))
            assert np.array_equal(rows.event_ms[at[ties]], rows.event_ms[ties])
            assert len(ties) < EVENTS / 10


def test_just_before_an_event_its_own_row_is_not_seen(past: Past) -> None:
    rows = past.served
    first = [i for i, at in enumerate(newest(rows, 0, rows.event_ms - 1)) if at < 0]
    assert len(first) >= len(np.unique(rows.keys[:, 0]))
    frame, _ = past.asked(before_ms=1)
    counts = frame[past.task.views["user"].columns[0]]
    assert counts.isna().to_numpy().nonzero()[0].tolist() == first


def test_the_present_of_the_online_store_is_the_end_of_the_past(past: Past) -> None:
    names = [f"{past.task.name.replace('-', '_')}_user:{name}" for name in past.task.views["user"].columns]
    keys = np.unique(past.served.keys[:, 0])[:200]
    online = past.store.get_online_features(names, [{"user_key": key} for key in keys.tolist()]).to_df()
    frame = pd.DataFrame({"user_key": keys, "event_timestamp": pd.Timestamp("2100-01-01", tz="UTC")})
    offline = past.store.get_historical_features(frame, names).to_df()
    for name in past.task.views["user"].columns:
        assert np.array_equal(
            online[name].to_numpy(np.float32), offline[name].to_numpy(np.float32), equal_nan=True
        )


def test_an_embedded_archive_is_the_archive_roles_while_it_runs(past: Past) -> None:
    embedded = past.store.config.offline_store.archive.startswith("chdb://")
    assert ("has the archive in" in past.refused) == embedded
    assert ("stop that one" in past.refused) == embedded
    assert embedded or not past.refused
