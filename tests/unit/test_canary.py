"""A canary: who is served by it, how often its test errs, and what the arena makes of it."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.blobs import Blobs
from learners.arena import Arena, Decision
from learners.batch import Batch
from learners.canary import CanaryTest, chosen
from learners.challenger import Challenger, Now
from learners.costs import Costs
from learners.prequential import log_loss
from learners.registry import Registry
from learners.rollback import GuardConfig
from streams.control import Command, Control
from streams.fleet import Report
from streams.heads import Heads
from streams.steering import Steering
from tests.unit.test_segments import SCHEMA, STILL, TESTED, learned, stream

CONFIG = GuardConfig(canary=0.2, canary_events=400, alpha=0.05)
KEYS = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 50_000)
STREAMS = 400


def test_the_share_is_kept_and_another_canary_meets_others() -> None:
    first, second = chosen(KEYS, "L2", 0.1), chosen(KEYS, "L5", 0.1)
    assert abs(first.mean() - 0.1) < 0.005
    assert abs((first & second).mean() - 0.01) < 0.002
    assert not chosen(KEYS, "L2", 0.0).any()
    more = chosen(KEYS, "L2", 0.3)
    assert (more | ~first).all()  # a larger share keeps who was in the smaller


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(0, 20))
def test_an_entity_is_always_in_the_same_arm(keys: list[int], cut: int) -> None:
    all_keys = np.array(keys, np.int64)
    parts = [chosen(part, "L3", 0.4) for part in (all_keys[:cut], all_keys[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), chosen(all_keys, "L3", 0.4))


def fed(worse: float, seed: int, steps: int = 40, size: int = 60) -> str:
    """The verdict on a canary whose served scores are worse by so many nats; looked at after every step."""
    random, test = np.random.default_rng(seed), CanaryTest(CONFIG, "L2")
    for _ in range(steps):
        arm = np.where(random.random(size) < 0.2, 2, -2).astype(np.int32)
        base = random.uniform(0.2, 1.5, size)  # how hard an example is
        loss = base + random.normal(0.0, 0.1, size) + np.where(arm > 0, worse, 0.0)
        test.update(arm, loss, base)
        if test.verdict != "undecided":
            break
    return test.verdict


def test_every_harm_that_a_task_file_may_allow_can_be_tested() -> None:
    for harm in (1e-9, 1.0 - 1e-9):
        assert CanaryTest(replace(CONFIG, max_canary_harm=harm), "L2").verdict == "undecided"
    with pytest.raises(ValueError, match="max_canary_harm must be above 0 and below 1 nat"):
        replace(CONFIG, max_canary_harm=1.0)


def most(rate: float) -> float:
    return rate + 3 * math.sqrt(rate * (1 - rate) / STREAMS)


def test_one_that_does_no_harm_is_stopped_for_harm_at_most_alpha_of_the_time() -> None:
    wrong = sum(fed(0.0, seed) == "reject" for seed in range(STREAMS))
    assert wrong / STREAMS <= most(CONFIG.alpha)


def test_one_that_does_more_harm_than_it_may_is_completed_at_most_alpha_of_the_time() -> None:
    wrong = sum(fed(CONFIG.max_canary_harm, seed) == "promote" for seed in range(STREAMS))
    assert wrong / STREAMS <= most(CONFIG.alpha)


def test_a_better_one_completes_and_a_worse_one_ends() -> None:
    assert {fed(-0.05, seed) for seed in range(20)} == {"promote"}
    assert {fed(0.3, seed) for seed in range(20)} == {"reject"}


def test_rows_of_other_canaries_and_of_none_do_not_count() -> None:
    test = CanaryTest(CONFIG, "L2")
    arm = np.array([0, 3, -3, 2, -2, -2], np.int32)
    test.update(arm, np.ones(6), np.ones(6))
    assert test.counts.tolist() == [1, 2]


def test_rows_that_come_one_by_one_find_their_partners_and_a_restart_changes_nothing() -> None:
    random, straight, again = np.random.default_rng(3), CanaryTest(CONFIG, "L2"), CanaryTest(CONFIG, "L2")
    for row in range(300):
        arm = np.array([2 if random.random() < 0.2 else -2], np.int32)
        served = random.uniform(0.3, 0.7, 1)
        straight.update(arm, served, np.ones(1))
        if row == 150:
            again.load(json.loads(json.dumps(straight.state())))
        elif row > 150:
            again.update(arm, served, np.ones(1))
    assert again.state() == straight.state()
    assert straight.evidence()["e_value_harm"] != 1.0


def ring(champion: float = 1.0, challenger: float = -1.0) -> tuple[Arena, Decision]:
    """An arena whose challenger, which has learned another sign, has won and is a canary; and the decision."""
    made = Arena(SCHEMA, STILL, STILL, TESTED, 7, device="cpu", guard=CONFIG, window=1_000)
    made.champion = learned("L1", champion, 2_000)
    made.born(STILL, 7)
    other = learned("L2", challenger, 2_000)
    made.trials.challengers = [Challenger(other, "warm", "ranks-1", made.trials.test())]
    decided = observed(made, stream(640, 6, (-1.0, -1.0)))
    assert [each.action for each in decided] == ["canary"]
    return made, decided[0]


def observed(arena: Arena, batch: Batch) -> list[Decision]:
    return [event for event in arena.observe(batch, 0) if isinstance(event, Decision)]


def served(arena: Arena, batch: Batch, spoil: Callable[[np.ndarray], np.ndarray] = lambda s: s) -> Batch:
    """The batch as the workers served it: by the canary for a fifth of the rows, whose scores may be spoiled."""
    own = np.random.default_rng(9).random(len(batch)) < CONFIG.canary
    scores = {name: arena.arm(name).score(batch.numbers, batch.categories) for name in ("L1", "L2")}
    score = np.where(own, spoil(scores["L2"]), scores["L1"]).astype(np.float32)
    return replace(batch, served=score, arm=np.where(own, 2, -2).astype(np.int32))


def test_a_winner_serves_a_share_first_and_all_when_its_arm_does_no_harm() -> None:
    arena, began = ring()
    assert (arena.champion.lineage, began.lineage) == ("L1", "L2")
    assert began.evidence["canary"]["share"] == 0.2
    made = observed(arena, served(arena, stream(2_000, 7, (-1.0, -1.0))))
    assert made[0].action == "promote"
    assert "does no harm where it serves: loss" in made[0].reason
    assert made[0].evidence["canary"]["n"] < 400
    assert arena.champion.lineage == "L2"


def test_what_is_served_badly_ends_the_canary_though_the_learner_finds_the_model_better() -> None:
    arena, _ = ring()
    rows = served(arena, stream(2_000, 7, (-1.0, -1.0)), spoil=lambda s: np.where(s > 0.5, 0.01, 0.99))
    decision, *_ = observed(arena, rows)
    assert (decision.action, decision.lineage, arena.champion.lineage) == ("reject", "L2", "L1")
    assert "does harm where it serves" in decision.reason
    own = rows.arm > 0
    assert (
        log_loss(rows.label[own], rows.served[own]).mean()
        > log_loss(rows.label[~own], rows.served[~own]).mean()
    )


def test_a_canary_that_nobody_serves_stays_one_and_no_other_challenger_starts() -> None:
    arena, _ = ring()
    assert observed(arena, stream(3_000, 7, (-1.0, -1.0))) == []
    assert arena.trials.canary is not None


def test_a_person_makes_a_canary_first_and_then_completes_it() -> None:
    arena, _ = ring()
    [promoted] = [event for event in arena.approve("L2", 0, 0) if isinstance(event, Decision)]
    assert (promoted.action, arena.champion.lineage) == ("promote", "L2")


def test_a_canary_goes_with_the_champion_beside_it() -> None:
    arena, _ = ring()
    events = arena.roll_back("a drill", {}, Now(0, 0), learned("L3", 1.0, 64))
    assert [event.action for event in events if isinstance(event, Decision)] == ["rollback", "retire"]
    assert arena.trials.canary is None


class Reports(Control):
    """Hands out reports of workers, and keeps no connection."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def poll(self) -> Iterator[Report | Command]:
        """See Control."""
        yield from self.reports
        self.reports = []


def test_a_worker_without_the_canary_and_one_that_goes_on_with_it_are_stragglers() -> None:
    arena, _ = ring()
    control, store = Reports(), Blobs(f"memory://{uuid4().hex}")
    steering = Steering(CONFIG, Costs(SCHEMA, 1e9), control, Heads(store, "t"), Registry(store, "r"))
    canary = arena.trials.named("L2").trainer
    canary.advance(0)
    canary.full()  # it is sent as L2.1

    def told(at_ms: int, *reports: tuple[str, str, bool]) -> list[str]:
        control.reports = [Report("t", w, v, at_ms, canary=beside) for w, v, beside in reports]
        made = list(steering.turn(arena, 9, Now(at_ms, at_ms)))
        assert all(isinstance(each, Decision) and each.action == "straggle" for each in made)
        return [each.decision_id + ": " + each.reason for each in made if isinstance(each, Decision)]

    assert told(1_000, ("a", "L1.0", False), ("b", "L1.0", False)) == []
    assert told(3_000, ("a", "L1.0", False), ("a", "L2.1", True), ("b", "L1.0", False)) == [
        "straggle-L2.1-b: b serves no canary, 2.0 s after L2.1 became a canary"
    ]
    arena.dismiss("L2", "a drill", Now(0, 0))
    arena.champion.advance(0)
    arena.champion.full()  # which ends the canary, as L1.1
    assert told(4_000, ("a", "L1.0", False), ("b", "L1.1", False)) == []
    assert told(6_000, ("a", "L1.0", False), ("a", "L2.1", True), ("b", "L1.1", False)) == [
        "straggle-L1.1-a: a serves L1.0, 2.0 s after L1.1 had ended the canary"
    ]


@pytest.mark.parametrize("rows", [64, 500])  # while it is one, and after it became the champion
def test_a_restart_in_the_middle_of_a_canary_changes_nothing(rows: int) -> None:
    straight, _ = ring()
    batch = served(straight, stream(2_000, 7, (-1.0, -1.0)))
    observed(straight, batch.slice(0, rows))
    files, record = straight.state()
    again = Arena(SCHEMA, STILL, STILL, TESTED, 7, device="cpu", guard=CONFIG, window=1_000)
    again.load(files, json.loads(json.dumps(record)))
    rest = batch.slice(rows, 2_000)
    assert observed(again, rest) == observed(straight, rest)
    assert again.champion.state() == straight.champion.state()
