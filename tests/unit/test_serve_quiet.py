"""When a partition of events says that nobody should wait for it: once Kafka has no more of them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from streams.ordering import IDLE, WATERMARK
from streams.serve import ServePass, ServeStep
from streams.transaction import Outputs
from tests.stream_records import task


class Log:
    """An end of the log at a place of one's choice."""

    def __init__(self, end: int) -> None:
        self._end = end

    async def reached(self, tp: TP, offset: int) -> bool:
        assert tp.topic.endswith(".events")
        return offset >= self._end


def said(order: str, end: int, at: int = 5) -> tuple[float | None, list[int]]:
    """What `quiet` of a step that has read to `at` gives, and the watermarks that it tells."""
    made: Any = task(order=order)
    told: list[int] = []

    def tell(_: Outputs, index: int, rows: Any, headers: Any) -> None:
        assert (index, len(rows)) == (0, 0)
        told.append(int(dict(headers)[WATERMARK]))

    step: Any = ServeStep.__new__(ServeStep)
    step._context = SimpleNamespace(task=made, end_of_log=Log(end), emitter=SimpleNamespace(tell=tell))
    step._at_hand = ServePass(step._context)
    step.index, step.partition, step._main = 0, 0, TP("trips.events", 0)
    step._offsets = {step._main: at}
    return asyncio.run(step.quiet(Outputs())), told


def test_it_is_idle_at_the_end_of_its_log() -> None:
    assert said('"event_time"', end=5) == (None, [IDLE])


def test_events_that_are_not_read_yet_are_waited_for() -> None:
    again_s, told = said('"event_time"', end=6)
    assert (again_s, told) == (task().serving.idle_ms / 1000, [])


@pytest.mark.parametrize("end", [5, 6])
def test_by_arrival_nobody_waits_and_nothing_is_told(end: int) -> None:
    assert said('"arrival"', end) == (None, [])
