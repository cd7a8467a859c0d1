"""Where a rollback by hand goes, and what is declined before the ledger knows of it."""

from collections.abc import Iterator
from uuid import uuid4

from infra.blobs import Blobs
from learners.arena import Decision
from learners.challenger import Now
from learners.costs import Costs
from learners.entries import Steered
from learners.registry import Lineage, Live, Quarantine, Registry
from learners.slot import encode_full
from learners.trainer import Trainer
from streams.control import Command, Control
from streams.fleet import Report
from streams.heads import Head, Heads
from streams.steering import Steering
from tests.learner_rows import CONFIG, SCHEMA, rows
from tests.unit.test_rollback import GUARD, swapped


class Asks(Control):
    """Asks for a rollback to `target`, and keeps no connection."""

    def __init__(self, target: str, live: str) -> None:
        self._command = Command("c-1", "rollback", target, live, "", 5)

    def poll(self) -> Iterator[Report | Command]:
        """See Control."""
        yield self._command


class Past:
    """The arena of a champion, and lineages that were live before, a second after each other, each stored as `Lx.1`."""

    def __init__(self, *lineages: str) -> None:
        self.arena, self.blobs = swapped(), Blobs(f"memory://{uuid4().hex}")
        self.arena.guard = None  # L2 was confirmed
        self.heads, self.registry = Heads(self.blobs, "t"), Registry(self.blobs, "r")
        for place, lineage in enumerate(lineages, 1):
            self.born(lineage, place * 1_000)
            self.registry.set_live(Live(lineage, f"{lineage}.1", place * 1_000, 0, "", ""))
            self.keep(lineage, place * 1_000)

    def born(self, lineage: str, at_ms: int, event_ms: int = 0) -> None:
        birth = Lineage(lineage, None, CONFIG.to_dict(), 7, SCHEMA.hash, "", event_ms, at_ms)
        self.registry.record(birth)

    def keep(self, lineage: str, at_ms: int, cut: int = 0) -> None:
        trainer = Trainer(SCHEMA, CONFIG, 7, lineage, "cpu")
        trainer.train(rows(200))
        meta, payload = encode_full(trainer, event_ms=0, created_ms=at_ms)
        self.heads.keep(Head(meta, payload[: len(payload) - cut], 0))

    def back(self, target: str = "") -> str:
        """Where a rollback goes; the reason where it is declined."""
        control = Asks(target, self.arena.champion.lineage)
        steering = Steering(GUARD, Costs(SCHEMA, 1e9), control, self.heads, self.registry)
        [made] = steering.turn(self.arena, 9, Now(9_000, 9_000))
        if isinstance(made, Steered):
            return made.target
        assert isinstance(made, Decision)
        assert made.action == "decline"
        return made.reason


def test_it_goes_to_the_last_good_one_before_the_champion() -> None:
    past = Past("L3", "L4", "L5", "L2")
    assert past.arena.champion.lineage == "L2"
    assert past.back() == "L5.1"
    past.registry.quarantine(Quarantine("L5", "worse", {}, 0, 5_000))
    assert past.back() == "L4.1"
    assert past.back("L5.1") == "L5 is quarantined: worse"
    assert (past.back("L3"), past.back("L3.1")) == ("L3.1", "L3.1")


def test_one_that_is_not_stored_any_more_is_passed_over() -> None:
    past = Past("L3", "L4", "L2")
    past.blobs.delete(past.heads.kept()["L4.1"])
    assert past.back() == "L3.1"
    assert past.back("L4") == "there is no stored model L4; stored are L3.1, L2.1"


def test_what_the_guard_keeps_comes_first() -> None:
    past = Past("L1", "L3", "L2")
    past.arena.guard = swapped().guard
    assert past.back() == "L1"


def test_nothing_good_was_before() -> None:
    assert Past("L2").back() == "there is no stored model to go back to; stored are L2.1"


def test_a_former_bearer_of_a_name_was_another_model() -> None:
    past = Past("L3", "L2")
    past.born("L3", 3_000, event_ms=7)
    assert past.back() == "there is no stored model to go back to; stored are L3.1, L2.1"


def test_a_stored_model_that_is_damaged_or_gone_is_declined() -> None:
    past = Past("L3", "L2")
    past.keep("L3", 1_000, cut=1)
    assert past.back().startswith("L3.1 is damaged")
    past.blobs.delete(past.heads.kept()["L3.1"].replace(".json", ".safetensors"))
    assert past.back().startswith("there is no blob")
