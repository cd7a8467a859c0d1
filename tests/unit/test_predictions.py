"""What is sent of a score: a probability or a value, by the kind of the task."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from infra.metrics import Metrics
from infra.settings import Settings
from streams.archive import PREDICTIONS, prediction_rows
from streams.emit import Emitter
from streams.events import EventDecoder
from streams.live import LiveModel
from streams.predictions import Prediction, ValuePrediction
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Outputs
from tests.kind_streams import rides
from tests.stream_records import HIDDEN, Record, event
from tests.stream_records import task as trips


def sent(task: Task, value: bytes, folder: Path) -> list[bytes]:
    """Predictions as they are sent for one event, by a model that has learned nothing."""
    live = LiveModel(task, Settings(kafka="", data=folder), "w", Metrics())
    emitter, outputs = Emitter(task, Topics.of(task), 1, live), Outputs()
    rows, _ = EventDecoder(task, HIDDEN).decode([Record(value)])
    emitter.write(outputs, len(task.entities) - 1, rows, np.zeros(1, np.int64))
    records = outputs.records[Topics.of(task).predictions, 0]
    return [data for _, data, _ in records if data]


RIDE = json.dumps(
    {"ride": "r-1", "at": 1_700_000_000_000, "driver": "d", "km": 2.0, "stops": 1, "zone": "z"}
).encode()


def test_a_regression_task_sends_values(tmp_path: Path) -> None:
    [data] = sent(rides(), RIDE, tmp_path)
    found = msgspec.json.decode(data, type=ValuePrediction)
    assert (found.event_id, found.value, found.version) == ("r-1", 0.0, "L1.0")
    assert "score" not in json.loads(data)
    [row] = prediction_rows(Record(data))
    assert row[1:3] == ("r-1", 0.0)


def test_a_binary_task_sends_what_it_always_sent(tmp_path: Path) -> None:
    [data] = sent(trips(), json.dumps(event()).encode(), tmp_path)
    found = msgspec.json.decode(data, type=Prediction)
    assert found.score == pytest.approx(0.5)
    assert list(json.loads(data)) == list(Prediction.__struct_fields__)
    [row] = prediction_rows(Record(data))
    assert row[2] == found.score


def test_the_archive_has_the_arm_and_what_exploration_means_for_the_label(tmp_path: Path) -> None:
    [data] = sent(trips(), json.dumps(event()).encode(), tmp_path)
    told = json.loads(data) | {"arm": "canary", "explored": True, "propensity": 0.25}
    [row] = prediction_rows(Record(json.dumps(told).encode()))
    named = dict(zip(PREDICTIONS, row, strict=True))
    assert [named[name] for name in ("arm", "explored", "propensity")] == ["canary", 1, 0.25]
