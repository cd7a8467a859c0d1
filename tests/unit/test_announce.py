"""When what the learner tells of came: an alert and what was decided for it must not change places."""

import json
from pathlib import Path
from typing import Any

from infra.blobs import Blobs
from learners.detectors import Detectors
from streams.announce import Announcer
from streams.task import load_task
from tests.unit.test_detectors import CHANGE, CONFIG, SCHEMA, feed, stream


class Sent:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def send(self, topic: str, value: bytes, key: bytes) -> None:
        self.records.append(json.loads(value))


def test_an_alert_came_when_its_step_was_taken_however_long_it_took_to_tell(tmp_path: Path) -> None:
    [alert] = feed(Detectors(SCHEMA, CONFIG), *stream(15_000, CHANGE, CHANGE))
    sent = Sent()
    Announcer(load_task("clicks"), sent, Blobs(tmp_path.as_uri())).tell(alert, 1_700_000_000_123)
    assert [record["created_at"] for record in sent.records] == [1_700_000_000_123]
    assert sent.records[0]["alert_id"] == alert.alert_id
