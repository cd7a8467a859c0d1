"""The owner of a worker's partitions: what came for all of them is processed and committed together.

A Faust agent hands what it gets to `Partitions`, which keeps each `Fetch` for the place that it belongs to. A group is
the topics whose records change one state (a log and, say, the feedback for the same entities); a place is one partition
number of a group, and has one step. One pass takes what waits for all places, lets each step process its part, and
commits the outputs and offsets of all of them in one transaction: what a transaction costs, the broker and this
process, does not grow with the number of partitions, and no reader waits for the slowest of several transactions.

A worker that has all partitions is the only one that writes the logs of its later groups. What a pass writes for them
it processes in the same pass, before it is written: an event is through after one pass and one transaction, and not
after one for each group. A log is folded in the order of its offsets, so this is right only if the records come to
stand directly behind those that were processed before, with nothing but the mark of our own transaction between. The
first ones come back with a fetch, as they do for everyone who is not alone, and earlier groups wait for that; from then
on the worker knows where the next ones will stand. Kafka's answer says whether they do: if not, the worker ends before
it commits, and starts again (`_through`). What was processed so is skipped when it is fetched.

While one pass is being committed the next one gathers; it is begun sooner only when much waits already. Between two
steps the event loop goes round, so that a fetch is not held up at every hop of its way through Faust.
"""

import asyncio
import contextlib
import logging
import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka.errors import ProducerFenced
from faust.types import TP

from infra.errors import UserError
from streams.membership import NOBODY, Membership
from streams.places import Place, Step, Tail
from streams.transaction import Committer, Displaced, Outputs
from streams.transport import Fetch

log = logging.getLogger(__name__)
EXIT_AGAIN = 70
"""Start again at once, from the last commit (`infra.supervisor.AGAIN`)."""

EXIT_USER = 1
"""A person must do something; starting again at once would not help."""

_QUEUED_RECORDS = 4000
"""Records that wait at a place (one fetch more, at most) before nothing more is read for it."""

_MOST_RECORDS = 4000
"""Records after which a pass is closed: a transaction of many more only makes the ones behind it wait."""

_AHEAD_RECORDS = 1000
"""So many that wait are worth a pass of their own while the one before is still being committed."""

_ROUNDS = 4
"""Rounds of the event loop from a fetch's arrival to its place."""

_GATE_S = 0.02
"""Longest time in which nothing is read because work is at hand."""

_OWED_S = 2.0
"""How long earlier groups wait for what they wrote to come back once, so that it need not from then on."""

_HOLD_S = 10.0
"""How long a worker that is to stop waits for Kafka to take the pass at hand."""


async def _nothing(_: Outputs) -> None:
    """There is nothing to write for a pass as a whole."""


class Partitions:
    """The owner; opens and closes places as partitions come and go.

    Args:
        make: makes the step for (group, partition).
        committer: makes what is committed with; called once, with an event loop.
        group_of: topic → the group whose state it changes, in the order in which a record passes the groups.
        finish: what is to be written for a pass as a whole, once all steps have processed their part; again when
            they have processed what they wrote for each other.
        partitions: of every topic; a worker that has them all is alone. 0 for one that writes nothing for itself.
        pause_ms: least time between two passes, in milliseconds; 0 commits as fast as Kafka does.
        quiet_ms: how long a partition's records may fail to come until its step is told, the first time.
    """

    def __init__(
        self,
        make: Callable[[str, int], Step],
        committer: Callable[[], Committer],
        group_of: Mapping[str, str],
        *,
        finish: Callable[[Outputs], Awaitable[None]] = _nothing,
        partitions: int = 0,
        pause_ms: int = 0,
        quiet_ms: int = 1000,
    ) -> None:
        self._finish, self._partitions, self._alone = finish, partitions, False
        self._make, self._new_committer, self._group_of = make, committer, group_of
        self._pause_s, self._quiet_s = pause_ms / 1000, quiet_ms / 1000
        self._order = {group: place for place, group in enumerate(dict.fromkeys(group_of.values()))}
        self._places: dict[tuple[str, int], Place] = {}
        self._last: Place | None = None  # that worked
        self._committer: Committer | None = None
        self._membership = NOBODY
        self._tasks: set[asyncio.Task[None]] = set()
        self._commit: asyncio.Task[None] | None = None
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._free, self._working = asyncio.Event(), asyncio.Lock()

    def put(self, fetch: Fetch) -> None:
        """Keep a fetch for its place."""
        self._place(fetch.topic, fetch.partition).put(fetch)
        self._news.set()

    def _place(self, topic: str, partition: int) -> Place:
        """The place of a partition; a new one is not ready before it is assigned."""
        group = self._group_of[topic]
        if (place := self._places.get((group, partition))) is None:
            sources = [TP(topic, partition) for topic, of in self._group_of.items() if of == group]
            place = Place(self._make(group, partition), sources, self._order[group])
            self._places[group, partition] = place
        return place

    def _able(self) -> list[Place]:
        """The places that can work, but for those that feed one which first must get what they wrote for it before."""
        now = asyncio.get_running_loop().time()
        ready = [place for place in self._places.values() if place.ready]
        first = max((place.order for place in ready if place.owing(now)), default=0)
        return [place for place in ready if place.order >= first]

    def _waiting(self) -> int:
        """Records that wait at places which can take them."""
        return sum(place.waiting for place in self._able())

    def behind(self, ends: Mapping[TP, tuple[int, int]]) -> dict[str, int]:
        """Records by topic that are still to process, given (next to read, end of the log); in any thread."""
        found: Counter[str] = Counter()
        for tp, (read, end) in ends.items():
            place = self._places.get((self._group_of.get(tp.topic, ""), tp.partition))
            done = read if place is None else place.next.get(tp, read)
            if place is None or not place.waiting:  # marks were read, and what was taken up was not
                done = max(done, read)
            found[tp.topic] += max(0, end - done)
        return dict(found)

    async def gate(self) -> set[TP]:
        """Wait until what was read is being worked on, or for a while; the partitions to read no more of for now.

        While there is work at hand, reading more would only cut it into smaller passes.
        """
        self._idle.clear()
        if self._waiting() or self._working.locked():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATE_S):
                    await self._idle.wait()
        return self._busy()

    def _busy(self) -> set[TP]:
        """Partitions of groups that are behind, and of those that feed them.

        Groups come in the order of the path. While a later one is behind, the earlier ones would only make more work
        for it, and every event would wait for all that were read before it.
        """
        behind = [place for place in self._places.values() if place.waiting >= _QUEUED_RECORDS]
        last = max((place.order for place in behind), default=0)
        return {
            tp
            for place in self._places.values()
            if place.order < last or place in behind
            for tp in place.sources
        }

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await self._something()
            started = clock()
            await self._free.wait()
            async with self._working:
                await self._pass()
            await asyncio.sleep(max(0.0, started + self._pause_s - clock()))

    async def _something(self) -> None:
        """Until there is something to do: records and nothing being committed, many records, or a step to be told."""
        clock = asyncio.get_running_loop().time
        while True:
            self._news.clear()
            if self._commit is not None and self._commit.done():
                self._commit.result()
                self._commit = None
            waiting = self._waiting()
            if waiting >= _AHEAD_RECORDS or (waiting and self._commit is None):
                return
            places = self._able()
            until = min((p.quiet_at for p in places if p.quiet_at is not None), default=math.inf)
            if until <= clock() and self._commit is None:
                return
            until = min([until, *(t.until for p in places if p.owing(clock()) for t in p.tails.values())])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until if self._commit is None and until < math.inf else None):
                    await self._news.wait()

    async def _pass(self) -> None:
        """Let every step process what came for it, and commit all of it together."""
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        outputs, offsets, left = Outputs(), dict[TP, int](), _MOST_RECORDS
        clock = asyncio.get_running_loop().time
        for place in self._in_turn():
            if place.waiting:
                if left <= 0:  # it will be the first of the next pass
                    break
                self._last, waited = place, place.waiting
                records = place.take(left)
                left -= waited - place.waiting
                if records:
                    self._process(place, records, outputs, offsets)
                    await asyncio.sleep(0)
            elif place.quiet_at is not None and place.quiet_at <= clock():
                again_s = await place.step.quiet(outputs)
                place.quiet_at = None if again_s is None else clock() + again_s
                offsets |= place.next
        await self._finish(outputs)
        if offsets or outputs.records:
            tails = await self._through(outputs, offsets) if self._alone else {}
            await self._committed()
            self._idle.set()
            self._commit = self._start(self._write(outputs, offsets, tails))
            self._commit.add_done_callback(lambda _: self._news.set())

    def _process(
        self, place: Place, records: Mapping[TP, Sequence[Any]], outputs: Outputs, offsets: dict[TP, int]
    ) -> None:
        """Let a step process what came for it, or is going to come, and note how far it is then."""
        place.quiet_at = asyncio.get_running_loop().time() + self._quiet_s
        place.step.process(records, outputs)
        offsets |= {tp: place.next[tp] for tp in records}

    async def _through(self, outputs: Outputs, offsets: dict[TP, int]) -> dict[TP, Tail]:
        """Process what is going to be written for later groups, and what follows from it.

        Returns the ends of those logs of which they are not known yet.
        """
        assert self._committer is not None
        marks, tails = self._committer.marks, dict[TP, Tail]()
        for group in self._order:  # each writes for later ones only
            ours = [TP(*at) for at in outputs.records if self._group_of.get(at[0]) == group]
            for tp in ours:
                place = self._place(*tp)
                if records := place.take_up(tp, outputs.records[tp], marks):
                    outputs.expected[tp] = records[0].offset
                    self._process(place, {tp: records}, outputs, offsets)
                else:
                    place.tails[tp] = tails[tp] = Tail(marks)
            if ours:
                await self._finish(outputs)
        return tails

    def _in_turn(self) -> list[Place]:
        """The places that can work, the one after the last that did so first."""
        places = self._able()
        start = places.index(self._last) + 1 if self._last in places else 0
        return places[start:] + places[:start]

    async def _write(self, outputs: Outputs, offsets: Mapping[TP, int], tails: Mapping[TP, Tail]) -> None:
        assert self._committer is not None
        await self._committer.commit(outputs, offsets)
        until = asyncio.get_running_loop().time() + _OWED_S
        for tp, tail in tails.items():
            tail.end, tail.until = outputs.ends[tp], until
        for follow in outputs.after:
            follow()

    async def _committed(self) -> None:
        """Until nothing is being committed."""
        if self._commit is not None:
            await self._commit
            self._commit = None

    def _start(self, work: Any) -> "asyncio.Task[None]":
        """A task whose failure ends the worker."""
        task = asyncio.create_task(_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _hold(self) -> None:
        """Finish the pass at hand and begin no other."""
        self._free.clear()
        async with self._working:
            await self._committed()

    async def revoked(self) -> None:
        """Before a rebalance: finish what was begun, since Kafka takes nothing more of it afterwards."""
        await self._hold()
        await self._settle()

    async def _settle(self) -> None:
        """Whatever the committer has put off, as long as the partitions are ours."""
        if self._committer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._committer.settle(), _HOLD_S)

    async def assigned(self, tps: Iterable[TP], membership: Membership) -> None:
        """After a rebalance: let go of what another worker now owns, keep what stayed, take what is new.

        A worker that missed a rebalance takes everything anew: others may have owned it meanwhile.
        """
        await self._hold()
        if membership == NOBODY:  # expelled already: the group will hand out the partitions once more
            return
        wanted = {(self._group_of[tp.topic], tp.partition): tp for tp in tps if tp.topic in self._group_of}
        for place in self._places.values():  # others may have written to the logs meanwhile
            place.tails.clear()
        self._alone = len(wanted) == self._partitions * len(self._order)
        was, self._membership = self._membership, membership
        stayed = membership.member == was.member and membership.generation - was.generation <= 1
        for at, place in list(self._places.items()):
            if at not in wanted or (place.opening and not stayed):
                self._let_go(self._places.pop(at), final=False)
        if self._committer is None:
            self._committer = self._new_committer()
            self._start(self._run())
        self._committer.joined(membership)
        places = [self._place(tp.topic, tp.partition) for _, tp in sorted(wanted.items())]
        if new := [place for place in places if not place.opening]:
            self._start(self._open(new))
        self._free.set()

    async def _open(self, places: Sequence[Place]) -> None:
        """Take partitions over, all at the same time."""
        assert self._committer is not None
        for place in places:
            place.opening = True
        committed = await self._committer.open([tp for place in places for tp in place.sources])
        await asyncio.gather(*(self._open_one(place, committed) for place in places))

    async def _open_one(self, place: Place, committed: Mapping[TP, int]) -> None:
        await place.open(committed)
        if place.gone:
            place.step.close(final=False)
            return
        place.quiet_at = asyncio.get_running_loop().time() + self._quiet_s
        self._news.set()

    def _let_go(self, place: Place, *, final: bool) -> None:
        place.gone = True
        if place.ready:
            place.step.close(final=final)

    async def close(self) -> None:
        """The worker stops by request."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hold(), _HOLD_S)
        await self._settle()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        places, self._places = list(self._places.values()), {}
        for place in places:
            self._let_go(place, final=True)
        if self._committer is not None:
            await self._committer.close()


async def _guarded(work: Any) -> None:
    """Do it, or end the process."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except UserError as error:
        log.critical("%s", error)
        end(EXIT_USER)
    except ProducerFenced:
        log.critical(
            "another worker has its partitions; the worker ends and starts again from the last commit"
        )
        end(EXIT_AGAIN)
    except Displaced as error:
        log.critical("somebody else writes to its topics (%s); the worker ends and starts again", error)
        end(EXIT_AGAIN)
    except BaseException:
        log.critical(
            "a partition failed; the worker ends and starts again from the last commit", exc_info=True
        )
        end(EXIT_AGAIN)


def end(code: int) -> None:
    """End this process at once, whatever else it is doing: nothing more may be written or committed."""
    logging.shutdown()
    os._exit(code)
