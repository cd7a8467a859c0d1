"""Write-behind to Feast's online store: the newest row of each entity, at most a second or so old."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.clock import ticks_ms
from infra.metrics import Metrics
from streams.stage import Folded

if TYPE_CHECKING:
    from featurestore.repository import FeatureWriter

log = logging.getLogger(__name__)


class OnlineWriter:
    """Collects feature rows of all partitions of a worker and writes them together every `every_s` seconds.

    Feast is behind the stream, never in its way: what fails is logged, counted and tried again with newer rows.
    How far behind it was at each write, the metric `online_staleness_ms` says, also while writes fail; and how far it
    is now, `online_waiting_ms`, also while a write hangs. `clock` gives milliseconds.
    """

    def __init__(
        self,
        writer: "FeatureWriter",
        executor: Executor,
        metrics: Metrics,
        every_s: float = 1.0,
        clock: Callable[[], int] = ticks_ms,
    ) -> None:
        self._writer, self._executor, self._metrics, self._every_s = writer, executor, metrics, every_s
        self._clock = clock
        self._rows: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]] = {}
        self._waiting_since_ms: dict[str, int] = {}
        self._writing_since_ms: int | None = None
        self._flushing = asyncio.Lock()  # the last flush may come while one is under way
        metrics.probe("online_waiting_ms", self._waiting_ms)

    def _waiting_ms(self) -> float:
        writing, waiting = self._writing_since_ms, dict(self._waiting_since_ms)
        since_ms = [*waiting.values(), *([] if writing is None else [writing])]
        return self._clock() - min(since_ms) if since_ms else 0.0

    def add(self, entity: str, keys: NDArray[np.int64], folded: Folded) -> None:
        """Rows as they were served: keys int64 [n], features float32 [n, F] of `entity`."""
        if folded.features.shape[1] and len(keys):
            self._waiting_since_ms.setdefault(entity, self._clock())
            self._rows.setdefault(entity, []).append((keys, folded.rows.event_ms, folded.features))

    async def run(self) -> None:
        """Register the task's features with Feast, then flush for ever; a Faust task of the worker."""
        while not await self._registered():
            await asyncio.sleep(self._every_s * _REGISTER_AGAIN)
            for entity, parts in self._rows.items():
                self._rows[entity] = parts[-_KEPT_AFTER_FAILURE:]
        while True:
            await asyncio.sleep(self._every_s)
            await self.flush()

    async def _registered(self) -> bool:
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._writer.apply)
        except Exception as error:  # a full disk, or Feast's own: serving goes on without it
            log.warning("cannot register the features with Feast, trying again: %s", error)
            self._metrics.count("online_failed_total")
            return False
        return True

    async def flush(self) -> None:
        """Write everything that was added so far."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        loop, staleness_ms = asyncio.get_running_loop(), 0
        for entity in list(self._rows):
            parts, since_ms = self._rows.pop(entity), self._waiting_since_ms.pop(entity)
            self._writing_since_ms = since_ms
            try:
                await loop.run_in_executor(self._executor, self._write, entity, parts)
            except Exception as error:  # whatever the store's client raises: serving goes on without it
                log.warning("cannot write features of %s to Feast: %s", entity, error)
                self._metrics.count("online_failed_total")
                self._rows.setdefault(entity, [])[:0] = parts[-_KEPT_AFTER_FAILURE:]
                self._waiting_since_ms[entity] = since_ms
            self._writing_since_ms = None
            staleness_ms = max(staleness_ms, self._clock() - since_ms)
            self._metrics.note("online_staleness_ms", staleness_ms)

    def _write(
        self, entity: str, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]
    ) -> None:
        keys, times, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(times, kind="stable")
        _, last = np.unique(keys[order][::-1], return_index=True)
        newest = order[len(keys) - 1 - last]
        self._writer.write(entity, keys[newest], times[newest], rows[newest])
        self._metrics.count("online_rows_total", len(newest))


_KEPT_AFTER_FAILURE = 1000
_REGISTER_AGAIN = 10  # times `every_s`
