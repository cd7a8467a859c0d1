"""The owner of partitions, with a committer that holds back its answers and steps that note what they are told."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from streams.membership import Membership
from streams.partitions import Partitions
from streams.transaction import Outputs
from streams.transport import Fetch

US = Membership("us", 1)
GROUPS = {"events": "events", "by-item": "by-item", "feedback": "by-item"}


class Held:
    """A committer whose commits wait for `go`, if `holding`; it notes what it was asked for."""

    marks = 1

    def __init__(self, *, holding: bool = False, error: Exception | None = None) -> None:
        self.commits: list[tuple[Outputs, dict[TP, int]]] = []
        self.stored: dict[TP, int] = {}
        self.members: list[Membership] = []
        self.settled: list[int] = []  # commits that had been made each time
        self.go, self._error = asyncio.Event(), error
        if not holding:
            self.go.set()

    async def open(self, sources: Sequence[TP]) -> dict[TP, int]:
        return {tp: self.stored.get(tp, 0) for tp in sources}

    def joined(self, membership: Membership) -> None:
        self.members.append(membership)

    async def commit(self, outputs: Outputs, offsets: Mapping[TP, int]) -> None:
        self.commits.append((outputs, dict(offsets)))
        await self.go.wait()
        if self._error is not None:
            raise self._error

    async def settle(self) -> None:
        self.settled.append(len(self.commits))

    async def close(self) -> None:
        pass


class Noting:
    """A step that notes what it is told, and says after each commit up to which offset it went."""

    def __init__(
        self, log: list[Any], group: str, partition: int, opening: Awaitable[Any] | None = None
    ) -> None:
        self._log, self._at, self._opening = log, (group, partition), opening

    async def open(self, committed: Mapping[TP, int]) -> None:
        if self._opening is not None:
            await self._opening
        self._log.append(("open", *self._at, dict(committed)))

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        found = {tp.topic: [record.offset for record in batch] for tp, batch in records.items()}
        self._log.append(("process", *self._at, found))
        outputs.after.append(lambda: self._log.append(("after", *self._at, found)))

    async def quiet(self, outputs: Outputs) -> float | None:
        self._log.append(("quiet", *self._at))
        return None

    def close(self, *, final: bool) -> None:
        self._log.append(("close", *self._at, final))


class Scene:
    """Partitions with all of the above; `said` is the log."""

    def __init__(self, committer: Held, openings: Mapping[tuple[str, int], Any] | None = None) -> None:
        self.said: list[Any] = []
        self.committer, self._sequence = committer, dict[TP, int]()
        openings = openings or {}
        self.owner = Partitions(
            lambda group, partition: Noting(self.said, group, partition, openings.get((group, partition))),
            lambda: committer, GROUPS, finish=self.finish, quiet_ms=10**6,
        )  # fmt: skip

    async def finish(self, outputs: Outputs) -> None:
        self.said.append(("finish", len(outputs.after)))

    def put(self, topic: str, partition: int, *offsets: int, skip: int = 0) -> None:
        tp = TP(topic, partition)
        sequence = self._sequence.get(tp, 0) + skip
        self._sequence[tp] = sequence + 1
        records = tuple(SimpleNamespace(offset=offset) for offset in offsets)
        self.owner.put(Fetch(topic, partition, 0, sequence, records))

    async def assign(self, *partitions: int, membership: Membership = US) -> None:
        await self.owner.assigned([TP(t, p) for t in GROUPS for p in partitions], membership)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    def of(self, *kinds: str) -> list[Any]:
        return [each for each in self.said if each[0] in kinds]


def play(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(act(), 180))
