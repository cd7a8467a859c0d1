"""One task for each partition a worker owns, so that partitions commit side by side.

A Faust agent hands every `Fetch` to `Partitions`, which routes it to the owner of that partition number. All topics of
one group (a log and, say, the feedback for the same entities) have one owner, because they change the same state.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from faust.types import TP

from infra.errors import UserError
from streams.transport import Fetch

log = logging.getLogger(__name__)
EXIT_AGAIN = 70
"""Start again at once, from the last commit (`infra.supervisor.AGAIN`)."""

EXIT_USER = 1
"""A person must do something; starting again at once would not help."""

_QUEUED_RECORDS = 4000
"""Records that wait for an owner (one fetch more, at most) before nothing more is read for it."""

_MOST_RECORDS = 4000
"""Records after which a batch is closed: a transaction of many more only makes the ones behind it wait."""


class Step(Protocol):
    """What happens to one partition. Four methods: taking over, working, hearing of nothing, letting go."""

    async def open(self) -> Mapping[TP, int]:
        """Take the partition over; the first offset to process of every source."""

    async def process(self, records: Mapping[TP, Sequence[Any]]) -> None:
        """Process records in offset order and commit; raising ends the worker."""

    async def quiet(self) -> float | None:
        """Nothing came for a while, or since the partition was taken over; seconds until it wants to hear of it again.

        None: not before something came.
        """

    async def close(self, *, final: bool) -> None:
        """Let go; `final` when the worker stops by request and may save what speeds up the next start."""


class LostFetch(Exception):
    """A fetch went missing between the consumer and its owner; starting again from the commit brings it back."""


class _Owner:
    def __init__(self, step: Step, pause_s: float, quiet_s: float) -> None:
        self._step, self._pause_s, self._quiet_s = step, pause_s, quiet_s
        self._queue: asyncio.Queue[Fetch] = asyncio.Queue()
        self.waiting = 0  # records in the queue
        self._last: dict[TP, Fetch] = {}
        self._next: dict[TP, int] = {}
        self._free = asyncio.Event()
        self._free.set()
        self._working = asyncio.Lock()
        self.task = asyncio.create_task(self._guarded())

    def put(self, fetch: Fetch) -> None:
        self._queue.put_nowait(fetch)
        self.waiting += len(fetch.records)

    async def _guarded(self) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            raise
        except UserError as error:
            log.critical("%s", error)
            end(EXIT_USER)
        except BaseException:
            log.critical(
                "a partition failed; the worker ends and starts again from the last commit", exc_info=True
            )
            end(EXIT_AGAIN)

    async def _run(self) -> None:
        self._next = dict(await self._step.open())
        clock = asyncio.get_running_loop().time
        while True:
            fetches = [await self._something()]
            started = clock()
            size = len(fetches[0].records)
            while size < _MOST_RECORDS and not self._queue.empty():
                fetches.append(self._queue.get_nowait())
                size += len(fetches[-1].records)
            self.waiting -= size
            records = self._fresh(fetches)
            if records:
                await self._free.wait()
                async with self._working:
                    await self._step.process(records)
                await asyncio.sleep(max(0.0, started + self._pause_s - clock()))

    async def _something(self) -> Fetch:
        """The next fetch, however long it takes; after `quiet_s` without one the step hears of it."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        patience: float | None = self._quiet_s
        while patience is not None:
            try:
                return await asyncio.wait_for(self._queue.get(), patience)
            except TimeoutError:
                await self._free.wait()
                async with self._working:
                    patience = await self._step.quiet()
        return await self._queue.get()

    def _fresh(self, fetches: Iterable[Fetch]) -> dict[TP, list[Any]]:
        """Records at or above the next offset of their partition, in order; a dropped fetch is an error."""
        fresh: dict[TP, list[Any]] = {}
        for fetch in fetches:
            tp = TP(fetch.topic, fetch.partition)
            if not fetch.follows(self._last.get(tp)):
                raise LostFetch(
                    f"{tp}: fetch {fetch.sequence} of epoch {fetch.epoch} does not follow the last one"
                )
            self._last[tp] = fetch
            first = self._next[tp]
            records = [r for r in fetch.records if r.offset >= first]
            if records:
                fresh.setdefault(tp, []).extend(records)
                self._next[tp] = records[-1].offset + 1
        return fresh

    async def hold(self) -> None:
        """Finish the batch at hand and begin no other."""
        self._free.clear()
        async with self._working:
            pass

    def go_on(self) -> None:
        self._free.set()

    async def close(self, *, final: bool) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self._step.close(final=final)


class Partitions:
    """Routes fetches to owners; opens and closes owners as partitions come and go.

    Args:
        make: makes the step for (group, partition).
        group_of: topic → the group whose state it changes, in the order in which a record passes the groups.
        pause_ms: least time between two commits of one partition, in milliseconds; 0 commits as fast as Kafka does.
        quiet_ms: how long a partition's records may fail to come until its step is told, the first time.
    """

    def __init__(
        self,
        make: Callable[[str, int], Step],
        group_of: Mapping[str, str],
        *,
        pause_ms: int = 0,
        quiet_ms: int = 1000,
    ) -> None:
        self._make, self._group_of = make, group_of
        self._pause_s, self._quiet_s = pause_ms / 1000, quiet_ms / 1000
        self._order = {group: place for place, group in enumerate(dict.fromkeys(group_of.values()))}
        self._owners: dict[tuple[str, int], _Owner] = {}

    def put(self, fetch: Fetch) -> None:
        """Hand a fetch to its owner."""
        self._owner(self._group_of[fetch.topic], fetch.partition).put(fetch)

    def busy(self) -> set[TP]:
        """Partitions to read no more of for now: of owners that are behind, and of those that feed them.

        Groups come in the order of the path. While a later one is behind, the earlier ones would only make more work
        for it, and every event would wait for all that were read before it.
        """
        behind = {at for at, owner in self._owners.items() if owner.waiting >= _QUEUED_RECORDS}
        if not behind:
            return set()
        last = max(self._order[group] for group, _ in behind)
        return {
            TP(topic, partition)
            for topic, group in self._group_of.items()
            for _, partition in self._owners
            if self._order[group] < last or (group, partition) in behind
        }

    def _owner(self, group: str, partition: int) -> _Owner:
        owner = self._owners.get((group, partition))
        if owner is None:
            owner = self._owners[group, partition] = _Owner(
                self._make(group, partition), self._pause_s, self._quiet_s
            )
        return owner

    async def revoked(self) -> None:
        """Before a rebalance: finish what was begun, so that a new owner finds nobody at work that it would fence."""
        await asyncio.gather(*(owner.hold() for owner in self._owners.values()))

    async def assigned(self, tps: Iterable[TP]) -> None:
        """After a rebalance: let go of what another worker now owns, keep what stayed, take what is new."""
        wanted = {(self._group_of[tp.topic], tp.partition) for tp in tps if tp.topic in self._group_of}
        for at in [at for at in self._owners if at not in wanted]:
            await self._owners.pop(at).close(final=False)
        for at in sorted(wanted):
            self._owner(*at).go_on()

    async def close(self) -> None:
        """The worker stops by request."""
        owners, self._owners = list(self._owners.values()), {}
        await asyncio.gather(*(owner.close(final=True) for owner in owners))


def end(code: int) -> None:
    """End this process at once, whatever else it is doing: nothing more may be written or committed."""
    logging.shutdown()
    os._exit(code)
