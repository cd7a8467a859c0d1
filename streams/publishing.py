"""The learner's way out to serving: refreshes, whole models, and the head that a starting worker begins with.

The ledger knows a version before serving does, so every version that is out there can be made again. A version never
names two different weights: the numbers that a former life of the learner used are in the topic of updates, and a whole
model that is sent after that life was lost in part gets a number above them.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from infra.clock import now_ms
from learners.batch import refresh_number
from learners.entries import Position, Version
from learners.ledger import Ledger
from learners.parallel import ranks
from learners.registry import Live, Registry
from learners.slot import encode_full, encode_refresh
from learners.trainer import Trainer
from streams.crew import Publish
from streams.heads import Head, Heads
from streams.outlet import Meta, Outlet

NEARLY = 16  # versions that learned less than one part in so many more count as the one before


@dataclass(frozen=True)
class Place:
    """Where the learner is: steps learned, and after how many the champion's lineage began; see `Version`."""

    step: int
    born: int
    examples: int
    event_ms: int
    positions: dict[int, Position]


def update_of(
    arm: Trainer,
    whole: bool,
    above: int | None = None,
    *,
    event_ms: int = 0,
    created_ms: int = 0,
    key: bytes = b"",
    canary: float = 0.0,
) -> tuple[Meta, bytes]:
    """The next update of a trainer, numbered above `above` if that is given: advances its version.

    `canary` is the share that it serves, where it is not the champion. One that the ledger has, made again, is what was
    published if its chain and SHA-256 are those of the entry.
    """
    if above is not None:
        arm.advance(above)
    encode = encode_full if whole else encode_refresh
    return encode(arm, event_ms=event_ms, created_ms=created_ms, key=key, canary=canary)


class Publisher:
    """Sends the champion's updates to the topic and keeps the newest whole model as the head. So it does for a canary,
    which ends with the next whole model of a champion.

    `offset` is that of the newest update known to be in the topic, -1 before the first, and `chain` what identifies its
    weights; `numbers` has the newest refresh number of each lineage up to there. A checkpoint keeps them: `state`.
    `key` signs what is sent; b"" for no signature.
    """

    def __init__(
        self, outlet: Outlet, ledger: Ledger, heads: Heads, registry: Registry, key: bytes = b""
    ) -> None:
        self._outlet, self._ledger, self._registry, self._key = outlet, ledger, registry, key
        self.heads = heads
        self.offset, self.chain = -1, ""
        self.numbers: dict[str, int] = {}
        self.canary = ""  # the lineage of the canary that is out
        # Of each lineage: numbers of refreshes, and from how many examples these had learned.
        self._learned: dict[str, list[tuple[int, int]]] = {}
        self._heard: set[str] = set()  # chains of the updates of a former life
        self._why = "the learner started"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        state = {"offset": self.offset, "chain": self.chain, "numbers": self.numbers, "canary": self.canary}
        return state | {"learned": self._learned}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.offset, self.chain, self.numbers = state["offset"], state["chain"], state["numbers"]
        self.canary = state["canary"]
        learned = state.get("learned", {})  # older states do not say
        self._learned = {name: [(n, count) for n, count in each] for name, each in learned.items()}

    def learned(self, version: str) -> int:
        """From how many examples a version that was made here had learned, about; 0 where that is not known."""
        made = self._learned.get(version.partition(".")[0], [])
        place = bisect_right(made, refresh_number(version), key=lambda each: each[0])
        return made[place - 1][1] if place else 0

    def hear(self) -> None:
        """Note what a former life of this learner published since the checkpoint it left."""
        for offset, meta in self._outlet.published(self.offset):
            self._heard.add(meta["chain"])
            self._note(offset, meta)

    def refresh(self, arm: Trainer, place: Place, canary: float = 0.0) -> None:
        """Send the rows and layers that changed; `canary` as in `update_of`."""
        self._publish(*self._update(arm, False, place.event_ms, canary=canary), place)

    def let_serve(self, canary: Trainer, place: Place, why: str, share: float) -> None:
        """Send a canary whole: from now on it serves a share of the entities, until a champion is sent whole."""
        above = self.numbers.get(canary.lineage, 0)
        meta, payload = self._update(canary, True, place.event_ms, above, share)
        self._publish(meta, payload, place, above, why)
        self.canary = canary.lineage
        self.heads.put_canary(Head(meta, payload, self.offset + 1))

    def whole(self, champion: Trainer, place: Place, why: str) -> None:
        """Send the champion whole under a number that no worker has seen, make it the head, note it as live.

        Where this is a swap, the model that goes and the one that comes are kept, to roll back to.
        """
        above = self.numbers.get(champion.lineage, 0)
        meta, payload = self._update(champion, True, place.event_ms, above)
        self._publish(meta, payload, place, above, why)
        live, newest = self._registry.live(), Head(meta, payload, self.offset + 1)
        swaps = live is None or live.lineage != champion.lineage
        if swaps and (former := self.heads.get()) is not None:
            self.heads.keep(former)
        self.canary = ""
        self.heads.drop_canary()  # before the head: who starts with that reads nothing of the canary's end
        path = self.heads.put(newest)
        if swaps:
            self.heads.keep(newest)
            self._registry.set_live(
                Live(champion.lineage, meta["version"], now_ms(), place.event_ms, path, why)
            )

    def again(self, arm: Trainer, version: Version, canary: float = 0.0) -> bool:
        """Make a version of the ledger once more, and send it if it never was; whether it is the same to the bit."""
        meta, payload = self._update(arm, version.whole, version.event_ms, version.above, canary)
        if version.whole:
            self.canary = version.lineage if canary else ""
        if meta["chain"] not in self._heard:
            self._note(self._outlet.publish(meta, payload), meta)
        self._why = self._why if canary else version.why or self._why
        return bool(meta["chain"] == version.chain and meta["sha256"] == version.sha256)

    def settle(self, champion: Trainer, place: Place, canary: str) -> None:
        """After a start: send the champion whole, unless its newest version is out and its lineage is live.

        So too where a canary other than `canary` ("": none) is still out or stored: the former life died at its end.
        """
        live, stored = self._registry.live(), self.heads.canary()
        over = {self.canary, stored.meta["lineage"] if stored else ""} - {"", canary}
        if over or live is None or live.lineage != champion.lineage or self.chain != champion.chain:
            self.whole(champion, place, self._why)

    def keep_head(self, arm: Trainer, event_ms: int, canary: float = 0.0) -> None:
        """Store what was last sent as a whole model, for workers that start. OSError when the store refuses."""
        meta, payload = self._update(arm, True, event_ms, canary=canary)
        (self.heads.put_canary if canary else self.heads.put)(Head(meta, payload, self.offset + 1))

    def _update(
        self, arm: Trainer, whole: bool, event_ms: int, above: int | None = None, canary: float = 0.0
    ) -> tuple[Meta, bytes]:
        """`update_of`, by all ranks."""
        ranks().tell(Publish(arm.lineage, whole, above))
        times = {"event_ms": event_ms, "created_ms": now_ms()}
        made = update_of(arm, whole, above, **times, key=self._key, canary=canary)
        self._note_learned(arm)
        return made

    def _note_learned(self, arm: Trainer) -> None:
        known = self._learned.setdefault(arm.lineage, [])
        before = known[-1][1] if known else -1
        if arm.examples < before or arm.examples > before + before // NEARLY:  # less, where it began anew
            known.append((arm.refresh, arm.examples))

    def _publish(
        self, meta: Meta, payload: bytes, place: Place, above: int | None = None, why: str = ""
    ) -> None:
        """In this order: the ledger, the topic."""
        whole = meta["kind"] == "swap"
        entry = Version(
            place.step, meta["version"], whole, above, why, meta["chain"], meta["sha256"], place.born, place.examples,
            place.event_ms, place.positions,
        )  # fmt: skip
        self._ledger.append(entry, now_ms())
        self._note(self._outlet.publish(meta, payload), meta)

    def _note(self, offset: int, meta: Meta) -> None:
        self.offset = offset
        self.chain = self.chain if "canary" in meta else meta["chain"]
        self.numbers[meta["lineage"]] = meta["refresh"]
