import json
from pathlib import Path

import pytest

from infra.errors import UserError
from streams.feed import Pace, Position
from streams.feed_lane import _key


def test_without_limits_everything_is_due_at_once() -> None:
    assert not Pace().is_limited
    assert Pace().due_s(10**9, 10**9) == 0


def test_speed_is_event_time_and_rate_counts_events() -> None:
    assert Pace(speed=60).due_s(120_000, 10**6) == 2
    assert Pace(rate=100).due_s(10**9, 250) == 2.5
    assert Pace(speed=60, rate=100).due_s(120_000, 250) == 2.5
    assert Pace(speed=60, rate=100).due_s(180_000, 250) == 3
    assert Pace(speed=1).is_limited
    assert Pace(rate=1).is_limited


@pytest.mark.parametrize(("speed", "rate"), [(0, None), (-1, None), (None, 0), (float("nan"), None)])
def test_a_pace_that_cannot_be_kept_is_refused(speed: float | None, rate: float | None) -> None:
    with pytest.raises(UserError, match="cannot be kept"):
        Pace(speed, rate)


def test_a_position_is_kept_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "folder with spaces" / "position.json"
    path.parent.mkdir()
    fresh = Position(path, "clicks", "a file")
    assert fresh.sent == 0
    fresh.save(17)
    assert json.loads(path.read_bytes()) == {"task": "clicks", "source": "a file", "sent": 17}
    assert Position(path, "clicks", "a file").sent == 17
    assert [entry.name for entry in path.parent.iterdir()] == ["position.json"]


def test_without_a_file_no_position_is_kept() -> None:
    position = Position(None, "clicks", "a file")
    position.save(5)
    assert Position(None, "clicks", "a file").sent == 0


def test_the_position_of_another_source_or_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    Position(path, "clicks", "one file").save(3)
    for task, source in (("clicks", "another file"), ("transactions", "one file")):
        with pytest.raises(UserError, match=r"position of another feed: one file, to task clicks"):
            Position(path, task, source)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"task": "t"}', b'{"task": "t", "source": "s", "sent": "x"}']
)
def test_a_file_that_is_no_position_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "position.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no position of a feed"):
        Position(path, "t", "s")


def test_keys_are_placed_as_every_kafka_client_places_them() -> None:
    # Values of Utils.murmur2 from Kafka's own UtilsTest; Kafka, too, drops the sign.
    wanted = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    for text, hashed in wanted.items():
        assert _key(text) == (text.encode(), hashed & 0x7FFFFFFF)
