"""Poisoned challengers: each is stopped at the step that docs/swap.md names for it, and serving goes on as before."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from infra.blobs import Blobs
from learners.admission import Admission, BadUpdate
from learners.arena import Arena, Decision
from learners.batch import Batch, Schema
from learners.challenger import Challenger, Now
from learners.costs import Costs
from learners.drift import DriftConfig
from learners.entries import Steered
from learners.prequential import log_loss
from learners.registry import Registry
from learners.rollback import Guard, GuardConfig, Scored
from learners.slot import Slot, encode_full
from learners.target import BINARY
from learners.trainer import Trainer
from learners.verdict import PairedTest
from streams.control import Command, Control
from streams.fleet import Report
from streams.heads import Heads
from streams.steering import Steering
from tests.learner_rows import CONFIG, SCHEMA, rows
from tests.unit.test_rollback import GUARD, swapped
from tests.unit.test_segments import judged, learned

SLOW = replace(CONFIG, learning_rate=1e-9)
DRIFT = DriftConfig(min_events=200, max_events=50_000)


def trained(schema: Schema = SCHEMA) -> Trainer:
    trainer = Trainer(schema, CONFIG, 7, "L2", "cpu")
    trainer.train(rows(2_000, 3))
    return trainer


def inverted(batch: Batch) -> Batch:
    return replace(batch, label=1.0 - batch.label)


def refused_at(
    spoil: Callable[[Trainer], object], admission: Admission | None = None, *, cut: int = 0
) -> str:
    """The check that a challenger that was spoiled fails at a worker, which goes on with what it has."""
    trainer = trained()
    spoil(trainer)
    meta, payload = encode_full(trainer, event_ms=1, created_ms=1)
    slot = Slot(SCHEMA, CONFIG, 7, "cpu", admission or Admission())
    first = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    first.train(rows(500))
    slot.load_full(*encode_full(first, event_ms=0, created_ms=0))
    before = slot.score(rows(50).numbers, rows(50).categories)
    with pytest.raises(BadUpdate) as caught:
        slot.apply(meta, payload[: len(payload) - cut])
    after = slot.score(rows(50).numbers, rows(50).categories)
    assert after[1] == before[1] == slot.version == "L1.1"
    np.testing.assert_array_equal(after[0], before[0])
    return caught.value.step


def ended_by(spoil: Callable[[Trainer], object], *, promoted: bool) -> str:
    """What ends a spoiled challenger: the verdict of its trial or, if a person promotes it at once, the guard."""
    arena = Arena(SCHEMA, CONFIG, CONFIG, DRIFT, 7, device="cpu")
    arena.observe(rows(2_000), 0)
    poisoned = Trainer(SCHEMA, SLOW, 7, arena.born(SLOW, 7), "cpu")
    spoil(poisoned)
    arena.trials.challengers = [Challenger(poisoned, "warm", "adwin-1", arena.trials.test())]
    if promoted:
        arena.approve("L2", 0, 0)
        assert arena.champion.lineage == "L2"
    events = arena.observe(rows(1_000, 5), 0)
    decided = [event for event in events if isinstance(event, Decision)]
    assert arena.champion.lineage == "L1"
    assert [decision.action for decision in decided] == ["rollback" if promoted else "reject"]
    return "guard" if promoted else "verdict"


def nan(trainer: Trainer) -> None:
    next(trainer.model.parameters()).data.view(-1)[0] = torch.nan


def constant(trainer: Trainer) -> None:
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    trainer.model.table.zero_()
    trainer.touched.fill_(True)


def turned(trainer: Trainer) -> None:
    fast = Trainer(SCHEMA, CONFIG, 7, "L9", "cpu")
    fast.train(inverted(rows(2_000)))
    for name, value in trainer.model.state_dict().items():
        value.copy_(fast.model.state_dict()[name])


def huge(trainer: Trainer) -> None:
    trainer.model.table[int(trainer.touched.nonzero()[0, 0])] = 1e9


def wrong_schema() -> str:
    other = Schema(SCHEMA.numbers, SCHEMA.categories, "of another task file")
    meta, payload = encode_full(trained(other), event_ms=1, created_ms=1)
    with pytest.raises(BadUpdate) as caught:
        Slot(SCHEMA, CONFIG, 7, "cpu").apply(meta, payload)
    return caught.value.step


def slow() -> str:
    seconds = chain(repeat(0.0, 2), count())  # the first model is quick, and timed once
    return refused_at(lambda _: None, Admission(budget_ms=100.0, clock=lambda: float(next(seconds))))


def costs() -> str:
    """It is timed before the champion, in each of three turns."""
    now, seconds = 0.0, list[float]()
    for took in (0.2, 0.01) * 3:
        seconds += [now, now + took]
        now += took
    trial = Challenger(trained(), "warm", "adwin-1", PairedTest(0.003, 0.0005))
    champion = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    found = Costs(SCHEMA, 10.0, partial(next, iter(seconds))).excessive(champion, [trial])
    assert [lineage for lineage, _, _ in found] == ["L2"]
    return "costs"


def in_a_segment(*, promoted: bool) -> str:
    [decision] = judged(("shop",), learned("L2", -1.0, 2_000), promoted=promoted)
    assert "does harm where shop is 1" in decision.reason
    assert decision.action == ("rollback" if promoted else "reject")
    return "guard" if promoted else "verdict"


def guarded(reason: str, spoil: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> str:
    """What a guard says of a champion whose scores are those of a good model, spoiled."""
    random, guard = (
        np.random.default_rng(2),
        Guard(GuardConfig(), "L2", Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")),
    )
    for _ in range(40):
        good = random.beta(2, 8, 100)
        label = (random.random(100) < good).astype(np.float32)
        scores = {"L1": good, "L2": spoil(good)}
        losses = {arm: log_loss(label, score) for arm, score in scores.items()}
        if "bias" in spoil.__name__:  # on the bias alone
            losses["L2"] = losses["L1"]
        guard.update(label, scores, losses)
        if guard.reason:
            break
    assert (guard.reason or "").startswith(reason), guard.reason
    return "guard"


def biased(good: NDArray[np.float64]) -> NDArray[np.float64]:
    return good + 0.2


def sure(good: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every score is four times as far from even, in logits."""
    return 1.0 / (1.0 + ((1.0 - good) / good) ** 4)


class Reports(Control):
    """Hands out reports of a worker, and keeps no connection."""

    def __init__(self, *reports: Report) -> None:
        self.reports = list(reports)

    def poll(self) -> Iterator[Report | Command]:
        """See Control."""
        yield from self.reports
        self.reports = []


def served_badly(reason: str, *, broken: int = 0, far: bool = False, slow: int = 0) -> str:
    """What a learner does at once when a worker says how it serves a new champion."""
    arena, usual = swapped(), np.random.default_rng(1).beta(2, 8, 3_000)
    counts = [tuple(BINARY.histogram(scores).tolist()) for scores in (usual, 1.0 - usual if far else usual)]
    before, after = Scored(3_000, 0, 30, 0, counts[0]), Scored(3_000, broken, 30, slow, counts[1])
    control = Reports(Report("t", "w", "L1.5", 1, scored=before))
    store = Blobs(f"memory://{uuid4().hex}")
    steering = Steering(GUARD, Costs(SCHEMA, 10.0), control, Heads(store, "t"), Registry(store, "r"))
    assert arena.guard is not None
    good, arena.champion = arena.champion, arena.guard.former
    assert list(steering.turn(arena, 9, Now(1, 1))) == []
    arena.champion = good
    control.reports = [Report("t", "w", "L2.1", 2, scored=after)]
    [back] = steering.turn(arena, 10, Now(2, 2))
    assert isinstance(back, Steered)
    assert (back.action, back.step) == ("rollback", 10)
    assert back.why.startswith(reason), back.why
    return "served"


STOPPED: dict[str, tuple[Callable[[], str], ...]] = {
    "NaN weights": (lambda: ended_by(nan, promoted=False), lambda: refused_at(nan)),
    "constant score": (lambda: ended_by(constant, promoted=False), lambda: refused_at(constant)),
    "inverted labels": (
        lambda: ended_by(turned, promoted=False),
        lambda: ended_by(turned, promoted=True),
    ),
    "one huge row": (lambda: refused_at(huge),),
    "truncated file": (lambda: refused_at(lambda _: None, cut=1),),
    "wrong schema": (wrong_schema,),
    "slow model": (costs, slow),
    "biased scores": (lambda: guarded("the mean score is +0", biased),),
    "too sure of itself": (lambda: guarded("log loss", sure),),
    "no number for some rows": (lambda: served_badly("1 of 3,000 scores are no number", broken=1),),
    "scores that collapse": (lambda: served_badly("the scores are not those of before the swap", far=True),),
    "slow on real batches": (lambda: served_badly("20 of 30 batches took longer than 100 ms", slow=20),),
    "harm to a segment": (lambda: in_a_segment(promoted=False), lambda: in_a_segment(promoted=True)),
}
TABLE = (Path(__file__).parents[2] / "docs" / "swap.md").read_text()


def documented() -> Iterator[tuple[str, list[str]]]:
    section = TABLE.split("## Poisoned challengers")[1].split("\n## ")[0]
    for line in section.splitlines():
        if cells := re.match(r"\| ([^|]+) \| (.*) \|$", line):
            steps = re.findall(r"`(\w+)`", cells[2].rpartition("|")[0] or cells[2])
            if steps:
                yield cells[1], steps


@pytest.mark.parametrize("poison", STOPPED)
def test_it_is_stopped_where_the_table_says(poison: str) -> None:
    assert [stop() for stop in STOPPED[poison]] == dict(documented())[poison]


def test_the_table_has_every_poison() -> None:
    assert [poison for poison, _ in documented()] == list(STOPPED)
