"""The write-behind to Feast: what is written, and how far it says to be behind."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.repository import FeatureWriter
from infra.errors import UserError
from infra.metrics import Metrics
from streams.online import OnlineWriter
from streams.rows import Rows
from streams.stage import Folded
from tests.stream_records import NOW_MS, task

TRIPS = task()


class Store(FeatureWriter):
    """The real writer on its embedded store; it can be away."""

    def __init__(self, data: Path, clock: "Clock") -> None:
        super().__init__(data, "sqlite", TRIPS.name, TRIPS.views)
        self.away, self._clock = False, clock

    def write(self, *rows: object) -> None:
        self._clock.now_ms += 7  # a write takes its time
        if self.away:
            raise UserError("the store is away")
        super().write(*rows)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def folded(keys: list[int], width: int) -> Folded:
    rows = replace(Rows.empty(TRIPS), event_ms=np.arange(len(keys)) + NOW_MS)
    return Folded(rows, np.ones((len(keys), width), np.float32))


def test_the_staleness_is_that_of_the_oldest_waiting_row(tmp_path: Path) -> None:
    clock, metrics = Clock(), Metrics()
    store = Store(tmp_path, clock)
    width = {name: len(view.columns) for name, view in TRIPS.views.items()}

    async def run() -> list[float]:
        seen = []
        with ThreadPoolExecutor(1) as executor:
            online = OnlineWriter(store, executor, metrics, clock=clock)

            async def flush() -> None:
                await online.flush()
                seen.append(metrics.snapshot().get("online_staleness_ms", -1))

            await flush()  # nothing waits, so there is nothing to say
            online.add("driver", np.array([1]), folded([1], width["driver"]))
            clock.now_ms += 400
            online.add("driver", np.array([2]), folded([2], width["driver"]))
            online.add("zone", np.array([3]), folded([3], width["zone"]))
            clock.now_ms += 600
            await flush()  # the driver's first row waited longest; the write took 7 ms
            online.add("zone", np.array([4]), folded([4], width["zone"]))
            clock.now_ms += 100
            store.away = True
            await flush()
            clock.now_ms += 1000
            assert metrics.snapshot()["online_waiting_ms"] == 1107
            online.add("zone", np.array([5]), folded([5], width["zone"]))
            await flush()  # it grows for as long as the store is away
            store.away = False
            await flush()
            online.add("zone", np.array([5]), folded([5], width["zone"]))
            await flush()
        return seen

    assert asyncio.run(run()) == [-1, 1007, 107, 1114, 1121, 7]
    assert metrics.snapshot()["online_waiting_ms"] == 0
    assert metrics.snapshot()["online_failed_total"] == 2
    assert metrics.snapshot()["online_rows_total"] == 6
    store.apply()
    found = store.read("zone", np.array([3, 4, 5, 6]))
    assert next(iter(found.values())) == [1.0, 1.0, 1.0, None]
    store.close()


def test_entities_without_features_do_not_wait(tmp_path: Path) -> None:
    metrics, clock = Metrics(), Clock()

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            online = OnlineWriter(Store(tmp_path, clock), executor, metrics, clock=clock)
            online.add("driver", np.array([1]), folded([1], 0))
            online.add("driver", np.zeros(0, np.int64), folded([], 3))
            await online.flush()

    asyncio.run(run())
    assert metrics.snapshot() == {"online_waiting_ms": 0}


def test_features_that_cannot_be_registered_are_tried_again(tmp_path: Path) -> None:
    metrics, clock = Metrics(), Clock()
    store, in_the_way = Store(tmp_path, clock), tmp_path / "feast"
    in_the_way.write_text("")
    width = len(TRIPS.views["zone"].columns)

    async def until(name: str) -> None:
        for _ in range(18_000):
            if name in metrics.snapshot():
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"{name} was not counted")

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            online = OnlineWriter(store, executor, metrics, every_s=0.01, clock=clock)
            online.add("zone", np.array([3]), folded([3], width))
            running = asyncio.create_task(online.run())
            await until("online_failed_total")
            in_the_way.unlink()
            await until("online_rows_total")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert next(iter(store.read("zone", np.array([3])).values())) == [1.0]
    store.close()


def test_the_last_flush_waits_for_one_that_is_under_way(tmp_path: Path) -> None:
    async def act() -> None:
        store = Store(tmp_path, Clock())
        with ThreadPoolExecutor(1) as executor:
            writer = OnlineWriter(store, executor, Metrics(), clock=Clock())
            for entity in TRIPS.views:
                width = len(TRIPS.views[entity].columns)
                writer.add(entity, np.array([1, 2]), folded([1, 2], width))
            await asyncio.gather(writer.flush(), writer.flush())
            assert not writer._rows

    asyncio.run(act())
