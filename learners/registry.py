"""Which lineages exist, and which one is live since when: small JSON records in the store, one writer (the
learner).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from learners.checkpoint import Store


@dataclass(frozen=True)
class Lineage:
    """The birth of a lineage. `name` is "L1", "L2", …; `parent` is the version that it was cloned from, None
    if it started untrained; `why` is for people ("first model", "challenger after alert a-17"); `config` is
    `ModelConfig.to_dict()`. `event_ms` is the event time, `created_ms` the wall time of the birth.
    """

    name: str
    parent: str | None
    config: Mapping[str, Any]
    seed: int
    schema: str
    why: str
    event_ms: int
    created_ms: int


@dataclass(frozen=True)
class Live:
    """From `since_ms` (wall time) and event time `event_ms` on, `lineage` is live, starting at `version`;
    `checkpoint` is the store folder or file of that whole model, `reason` the decision that made it live.
    """

    lineage: str
    version: str
    since_ms: int
    event_ms: int
    checkpoint: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """`lineage` was rolled back, or rejected while it was a canary: nothing starts from it, and nobody makes it live.

    `evidence` is the decision's.
    """

    lineage: str
    reason: str
    evidence: Mapping[str, Any]
    event_ms: int
    created_ms: int


class Registry:
    """Lineages and the live pointer of one task, under `prefix` in the store."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix

    def next_name(self) -> str:
        """The name that the next lineage should have: "L1" in an empty registry."""
        return f"L{max((int(lineage.name[1:]) for lineage in self.lineages()), default=0) + 1}"

    def record(self, lineage: Lineage) -> None:
        """Writes a birth. The same one again (but for `created_ms`) writes nothing.

        A learner that went back to a checkpoint may give birth to the same name again, from another state:
        the new record takes the name, and the former one is kept under `replaced`; its quarantine ends.
        """
        if not (lineage.name[:1] == "L" and lineage.name[1:].isdecimal()):
            raise ValueError(f"a lineage is named L1, L2, …, not {lineage.name!r}")
        former = {birth.name: birth for birth in self.lineages()}.get(lineage.name)
        if former is not None:
            if replace(former, created_ms=0) == replace(lineage, created_ms=0):
                return
            count = len(self.store.list(f"{self.prefix}/replaced/{lineage.name}-"))
            self.store.put(f"{self.prefix}/replaced/{lineage.name}-{count:04d}.json", _json(asdict(former)))
            self.store.delete(f"{self.prefix}/quarantine/{lineage.name}.json")
        self.store.put(f"{self.prefix}/lineages/{lineage.name}.json", _json(asdict(lineage)))

    def replaced(self, name: str) -> list[Lineage]:
        """Former births under `name`, oldest first."""
        entries = self.store.list(f"{self.prefix}/replaced/{name}-")
        return [Lineage(**json.loads(self.store.get(entry))) for entry in entries]

    def lineages(self) -> list[Lineage]:
        """All births, in the order of their numbers."""
        names = self.store.list(f"{self.prefix}/lineages/")
        births = [Lineage(**json.loads(self.store.get(name))) for name in names]
        return sorted(births, key=lambda birth: int(birth.name[1:]))

    def set_live(self, live: Live) -> None:
        """Moves the live pointer. The pointer is the newest entry of the history, so both change in one
        write. The same entry again (but for `since_ms`) writes nothing. Raises ValueError for a lineage that
        was never recorded.
        """
        if live.lineage not in {birth.name for birth in self.lineages()}:
            raise ValueError(f"lineage {live.lineage} must be recorded before it can be live")
        entries = self.store.list(f"{self.prefix}/live/")
        current = self.live()
        if current is not None and replace(current, since_ms=0) == replace(live, since_ms=0):
            return
        self.store.put(f"{self.prefix}/live/{len(entries):08d}.json", _json(asdict(live)))

    def live(self) -> Live | None:
        """What is live now; None before the first `set_live`."""
        entries = self.store.list(f"{self.prefix}/live/")
        return Live(**json.loads(self.store.get(entries[-1]))) if entries else None

    def quarantine(self, record: Quarantine) -> None:
        """Bar a lineage; the newest reason stands."""
        self.store.put(f"{self.prefix}/quarantine/{record.lineage}.json", _json(asdict(record)))

    def quarantined(self) -> dict[str, Quarantine]:
        """The barred lineages by name."""
        entries = self.store.list(f"{self.prefix}/quarantine/")
        records = [Quarantine(**json.loads(self.store.get(name))) for name in entries]
        return {record.lineage: record for record in records}

    def history(self) -> list[Live]:
        """Every move of the live pointer, oldest first."""
        entries = self.store.list(f"{self.prefix}/live/")
        return [Live(**json.loads(self.store.get(name))) for name in entries]


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, indent=1).encode()
