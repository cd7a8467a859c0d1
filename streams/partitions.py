"""One task for each partition a worker owns, so that partitions commit side by side.

A Faust agent hands every `Fetch` to `Partitions`, which routes it to the owner of that partition number. A group is the
topics whose records change one state (a log and, say, the feedback for the same entities); it has one step. An owner
has one step or, where groups travel together, one for each group: then everything that waits for a partition goes
into one transaction, and the broker has a half or a third as many of them to do.

Batches take turns (`_Turn`): between two of them the event loop goes round a few times, so that a fetch is not held up
at every hop of its way through Faust by yet another batch that is being folded.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from faust.types import TP

from infra.errors import UserError
from streams.transaction import Committer, Outputs
from streams.transport import Fetch

log = logging.getLogger(__name__)
EXIT_AGAIN = 70
"""Start again at once, from the last commit (`infra.supervisor.AGAIN`)."""

EXIT_USER = 1
"""A person must do something; starting again at once would not help."""

_QUEUED_RECORDS = 4000
"""Records of a group that wait for an owner (one fetch more, at most) before nothing more is read for it."""

_MOST_RECORDS = 4000
"""Records after which a batch is closed: a transaction of many more only makes the ones behind it wait."""


_ROUNDS = 4
"""Rounds of the event loop from a fetch's arrival to its owner."""

_GATE_S = 0.02
"""Longest time in which nothing is read because work is at hand."""

_HOLD_S = 10.0
"""How long a worker that is to stop waits for Kafka to take the batch at hand."""


class Step(Protocol):
    """What happens to one partition of one group: taking over, working, hearing of its commit or of nothing, and
    letting go. It has no producer: what it wants written it puts into `outputs`.
    """

    async def open(self, committed: Mapping[TP, int]) -> None:
        """Take the partition over, at these offsets: the first to process of every source."""

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """Process records in offset order; raising ends the worker."""

    def committed(self) -> None:
        """What was last processed is committed, with everything it led to."""

    async def quiet(self, outputs: Outputs) -> float | None:
        """Nothing came for a while, or since the partition was taken over; seconds until it wants to hear of it again.

        None: not before something came.
        """

    def close(self, *, final: bool) -> None:
        """Let go; `final` when the worker stops by request and may save what speeds up the next start."""


class LostFetch(Exception):
    """A fetch went missing between the consumer and its owner; starting again from the commit brings it back."""


class _Turn:
    """Lets one batch be worked on at a time, and whatever else the event loop has to do go before the next one."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *error: object) -> None:
        try:
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
        finally:
            self._lock.release()


class _Place:
    """One group of an owner: its step, what waits for it, and when it was last heard of."""

    def __init__(self, step: Step, sources: Sequence[TP]) -> None:
        self.step, self.sources = step, sources
        self.waiting = 0  # records in the queue
        self.quiet_at: float | None = None  # when its step is to be told, by the loop's clock


class _Owner:
    def __init__(
        self,
        places: Mapping[str, _Place],
        committer: Committer,
        turn: _Turn,
        taken: Callable[[], None],
        pause_s: float,
        quiet_s: float,
    ) -> None:
        self.places, self._committer, self._turn = places, committer, turn
        self._taken = taken
        self._pause_s, self._quiet_s = pause_s, quiet_s
        self._place_of = {tp: place for place in places.values() for tp in place.sources}
        self._queue: asyncio.Queue[Fetch] = asyncio.Queue()
        self._last: dict[TP, Fetch] = {}
        self._next: dict[TP, int] = {}
        self._free = asyncio.Event()
        self._free.set()
        self._working = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self.task = asyncio.create_task(self._guarded())

    def put(self, fetch: Fetch) -> None:
        self._queue.put_nowait(fetch)
        self._place(fetch).waiting += len(fetch.records)

    def _place(self, fetch: Fetch) -> _Place:
        return self._place_of[TP(fetch.topic, fetch.partition)]

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
        self._next = await self._committer.open(list(self._place_of))
        for place in self.places.values():
            await place.step.open({tp: self._next[tp] for tp in place.sources})
            place.quiet_at = self._clock() + self._quiet_s
        while True:
            fetches = await self._something()
            started = self._clock()
            await self._free.wait()
            async with self._working:
                await self._pass(self._fresh(fetches))
            await asyncio.sleep(max(0.0, started + self._pause_s - self._clock()))

    async def _something(self) -> list[Fetch]:
        """What waits, up to a full batch; nothing when a step is to be told that it is quiet."""
        fetches = []
        if self._queue.empty():
            until = min((p.quiet_at for p in self.places.values() if p.quiet_at is not None), default=None)
            try:
                async with asyncio.timeout_at(until):
                    fetches.append(await self._queue.get())
            except TimeoutError:
                return []
        size = sum(len(fetch.records) for fetch in fetches)
        while size < _MOST_RECORDS and not self._queue.empty():
            fetches.append(self._queue.get_nowait())
            size += len(fetches[-1].records)
        for fetch in fetches:
            self._place(fetch).waiting -= len(fetch.records)
        self._taken()
        return fetches

    async def _pass(self, records: Mapping[TP, Sequence[Any]]) -> None:
        """Let every step process what came for it, and commit all of it together."""
        outputs, busy = Outputs(), []
        for place in self.places.values():
            if any(tp in records for tp in place.sources):
                busy.append(place)
                place.quiet_at = self._clock() + self._quiet_s
            elif place.quiet_at is not None and place.quiet_at <= self._clock():
                again_s = await place.step.quiet(outputs)
                place.quiet_at = None if again_s is None else self._clock() + again_s
        if busy:
            async with self._turn:
                for place in busy:
                    place.step.process({tp: records[tp] for tp in place.sources if tp in records}, outputs)
        if busy or outputs.records:
            await self._committer.commit(outputs, {tp: self._next[tp] for tp in records or self._next})
        for place in busy:
            place.step.committed()

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
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.hold(), _HOLD_S)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for place in self.places.values():
            place.step.close(final=final)
        await self._committer.close()


class Partitions:
    """Routes fetches to owners; opens and closes owners as partitions come and go.

    Args:
        make: makes the step for (group, partition).
        committer: makes what an owner commits with, for (owner, partition).
        group_of: topic → the group whose state it changes, in the order in which a record passes the groups.
        owner_of: group → the name of its owner; groups of one owner must have the same number of partitions.
        pause_ms: least time between two commits of one owner, in milliseconds; 0 commits as fast as Kafka does.
        quiet_ms: how long a partition's records may fail to come until its step is told, the first time.
    """

    def __init__(
        self,
        make: Callable[[str, int], Step],
        committer: Callable[[str, int], Committer],
        group_of: Mapping[str, str],
        *,
        owner_of: Callable[[str], str] = str,
        pause_ms: int = 0,
        quiet_ms: int = 1000,
    ) -> None:
        self._make, self._committer, self._group_of, self._owner_of = make, committer, group_of, owner_of
        self._pause_s, self._quiet_s = pause_ms / 1000, quiet_ms / 1000
        self._order = {group: place for place, group in enumerate(dict.fromkeys(group_of.values()))}
        self._owners: dict[tuple[str, int], _Owner] = {}
        self._turn, self._idle = _Turn(), asyncio.Event()

    def put(self, fetch: Fetch) -> None:
        """Hand a fetch to its owner."""
        self._owner(self._owner_of(self._group_of[fetch.topic]), fetch.partition).put(fetch)

    async def gate(self) -> set[TP]:
        """Wait until what was read is being worked on, or for a while; the partitions to read no more of for now.

        While there is work at hand, reading more would only cut it into smaller batches.
        """
        self._idle.clear()
        if any(place.waiting for owner in self._owners.values() for place in owner.places.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATE_S):
                    await self._idle.wait()
        return self._busy()

    def _taken(self) -> None:
        """An owner took what waited for it; the last one opens the gate."""
        if not any(place.waiting for owner in self._owners.values() for place in owner.places.values()):
            self._idle.set()

    def _busy(self) -> set[TP]:
        """Partitions of groups that are behind, and of those that feed them.

        Groups come in the order of the path. While a later one is behind, the earlier ones would only make more work
        for it, and every event would wait for all that were read before it.
        """
        behind = {
            (group, partition)
            for (_, partition), owner in self._owners.items()
            for group, place in owner.places.items()
            if place.waiting >= _QUEUED_RECORDS
        }
        if not behind:
            return set()
        last = max(self._order[group] for group, _ in behind)
        return {
            TP(topic, partition)
            for topic, group in self._group_of.items()
            for _, partition in self._owners
            if self._order[group] < last or (group, partition) in behind
        }

    def _owner(self, name: str, partition: int) -> _Owner:
        owner = self._owners.get((name, partition))
        if owner is None:
            groups = [group for group in self._order if self._owner_of(group) == name]
            places = {
                group: _Place(
                    self._make(group, partition),
                    [TP(topic, partition) for topic, of in self._group_of.items() if of == group],
                )
                for group in groups
            }
            owner = self._owners[name, partition] = _Owner(
                places,
                self._committer(name, partition),
                self._turn,
                self._taken,
                self._pause_s,
                self._quiet_s,
            )
        return owner

    async def revoked(self) -> None:
        """Before a rebalance: finish what was begun, so that a new owner finds nobody at work that it would fence."""
        await asyncio.gather(*(owner.hold() for owner in self._owners.values()))

    async def assigned(self, tps: Iterable[TP]) -> None:
        """After a rebalance: let go of what another worker now owns, keep what stayed, take what is new."""
        wanted = {
            (self._owner_of(self._group_of[tp.topic]), tp.partition)
            for tp in tps
            if tp.topic in self._group_of
        }
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
