"""The guard after a swap: what it notices, what it lets pass, and that an arena goes on with it after a restart."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from learners.arena import Arena, Decision, Event
from learners.batch import ModelConfig
from learners.buffer import Buffer
from learners.challenger import Challenger
from learners.drift import DriftConfig
from learners.packing import part as part_of
from learners.rollback import Guard, GuardConfig, Scored, Served, stability
from learners.target import BINARY
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, SCHEMA, rows

SMALL = replace(CONFIG, family="logistic", learning_rate=0.02)
IDLE = replace(SMALL, learning_rate=1e-9)
DRIFT = DriftConfig(min_events=200)
GUARD = GuardConfig(events=2_000)


def trainer(lineage: str = "L1", config: ModelConfig = SMALL) -> Trainer:
    return Trainer(SCHEMA, config, 7, lineage, "cpu")


def swapped(config: ModelConfig = IDLE, guard: GuardConfig = GUARD, *, keep_reference: bool = True) -> Arena:
    """An arena after 2,000 rows in which a person has just promoted an untrained L2 that learns by `config`."""
    drift = replace(DRIFT, keep_reference=keep_reference)
    arena = Arena(SCHEMA, SMALL, SMALL, drift, 7, device="cpu", guard=guard)
    arena.observe(rows(2_000), 0)
    made = trainer(arena.born(config, 7), config)
    arena.trials.challengers = [Challenger(made, "fresh", "adwin-1", arena.trials.test())]
    arena.approve("L2", 0, 0)
    return arena


def decided(events: list[Event]) -> list[Decision]:
    return [event for event in events if isinstance(event, Decision)]


def test_a_worse_champion_is_rolled_back_with_the_evidence():
    arena = swapped()
    [back] = decided(arena.observe(rows(1_500, 5), 9))
    assert (back.action, back.lineage, back.champion) == ("rollback", "L1", "L2")
    assert arena.champion.lineage == "L1"
    assert arena.guard is None
    assert back.evidence["champion_log_loss"] > back.evidence["former_log_loss"]
    assert back.evidence["e_value_worse"] >= 1 / back.evidence["alpha"]
    assert back.evidence["n"] < 1_000
    assert "L2 goes, L1 is back: log loss" in back.reason
    assert json.loads(json.dumps(back.evidence)) == back.evidence


def test_the_one_that_comes_back_has_learned_all_along():
    arena, alone = swapped(), trainer()
    for batch in (rows(2_000), rows(1_500, 5)):
        for start in range(0, len(batch), SMALL.batch_size):
            alone.train(batch.slice(start, start + SMALL.batch_size))
    arena.observe(rows(1_500, 5), 9)
    np.testing.assert_array_equal(
        arena.champion.score(rows(50, 9).numbers, rows(50, 9).categories),
        alone.score(rows(50, 9).numbers, rows(50, 9).categories),
    )


def test_an_equal_champion_is_confirmed():
    arena = swapped(replace(SMALL, learning_rate=0.05))
    assert arena.guard is not None
    arena.champion = arena.guard.former.clone("L2")
    [held] = decided(arena.observe(rows(2_100, 5), 9))
    assert (held.action, held.lineage) == ("confirm", "L2")
    assert arena.champion.lineage == "L2"
    assert arena.state()[1]["guard"] is None
    assert held.evidence["n"] == 2_016  # the first batch that is over 2,000


def test_without_a_guard_a_worse_champion_stays():
    arena = swapped(guard=replace(GUARD, events=0))
    assert decided(arena.observe(rows(1_500, 5), 9)) == []
    assert arena.champion.lineage == "L2"


def test_what_was_still_watched_is_not_what_one_goes_back_to():
    arena = swapped()
    third = trainer(arena.born(IDLE, 7), IDLE)
    arena.trials.challengers = [Challenger(third, "fresh", "adwin-2", arena.trials.test())]
    arena.approve("L3", 0, 0)
    [back] = decided(arena.observe(rows(1_500, 5), 9))
    assert (back.lineage, back.champion) == ("L1", "L3")


def test_challengers_retire_with_the_champion_that_they_were_compared_with():
    arena = swapped()
    arena.trials.challengers = [Challenger(trainer("L3"), "warm", "adwin-2", arena.trials.test())]
    actions = [decision.action for decision in decided(arena.observe(rows(1_500, 5), 9))]
    assert actions == ["rollback", "retire"]
    assert arena.challengers == []


def test_the_one_that_goes_is_no_earlier_champion_that_could_be_tried_again():
    arena = swapped()
    assert arena.guard is not None
    for model in (arena.guard.former, arena.champion):  # champions as alarms came
        assert list(arena.trials.entrants.make(model, Buffer(1), 0))
    assert arena.trials.entrants.state()[1]["past"] == 2
    arena.observe(rows(1_500, 5), 9)
    files, record = arena.trials.entrants.state()
    assert record["past"] == 1
    kept = trainer()
    kept.load(part_of("past/0", files))
    assert kept.lineage == arena.champion.lineage == "L1"


@pytest.mark.parametrize("keep_reference", [True, False])
def test_a_restart_in_the_middle_of_the_guard_changes_nothing(keep_reference):
    straight, broken = (swapped(keep_reference=keep_reference) for _ in range(2))
    early, late = rows(16, 5), rows(1_500, 6)
    for arena in (straight, broken):
        arena.observe(early, 9)
    files, record = broken.state()
    again = Arena(
        SCHEMA, SMALL, SMALL, replace(DRIFT, keep_reference=keep_reference), 7, device="cpu", guard=GUARD
    )
    again.load(files, json.loads(json.dumps(record)))
    assert again.guard is not None
    assert (again.guard.former is again.continuous) is keep_reference
    assert decided(again.observe(late, 9)) == decided(straight.observe(late, 9))
    assert again.champion.state() == straight.champion.state()


def test_a_bias_is_noticed_only_if_the_other_has_less():
    label = (np.arange(3_000) % 10 == 0).astype(np.float32)
    same = {"L2": np.zeros(3_000), "L1": np.zeros(3_000)}

    def reason(champion: float, former: float) -> str | None:
        guard = Guard(GUARD, "L2", trainer())
        scores = {"L2": np.full(3_000, champion), "L1": np.full(3_000, former)}
        guard.update(label, scores, same)
        return guard.reason

    assert "+0.300 off the mean label" in (reason(0.4, 0.1) or "")
    assert reason(0.4, 0.45) is None  # both are wrong: going back would not help
    assert reason(0.15, 0.1) is None  # less than may be


def test_a_champion_that_is_no_worse_is_seldom_rolled_back():
    """On 200 streams of equally good models, looked at after every 50 examples."""
    random, wrong = np.random.default_rng(3), 0
    for _ in range(200):
        guard = Guard(GuardConfig(alpha=0.05, min_effect=0.0), "L2", trainer())
        for _ in range(40):
            score = random.uniform(0.1, 0.9, 50)
            label = (random.random(50) < score).astype(np.float32)
            losses = {arm: random.exponential(0.5, 50) for arm in ("L1", "L2")}
            guard.update(label, {"L1": score, "L2": score}, losses)
            if guard.reason:
                wrong += 1
                break
    assert wrong / 200 <= 0.05


def part(scores: np.ndarray, took_ms: float = 1.0) -> Scored:
    return Scored().plus(scores.astype(np.float32), took_ms, GUARD.max_scoring_ms)


def test_scores_that_are_no_number_are_noticed_at_once():
    served = Served(GUARD)
    served.swapped("L2")
    served.hear("L2", part(np.array([0.5, np.nan])))
    assert served.reason == "1 of 2 scores are no number"
    served.swapped("L1")
    assert served.reason is None


@pytest.mark.parametrize(("slow", "noticed"), [(10, False), (11, True)])
def test_slow_scoring_is_noticed_when_most_batches_are(slow, noticed):
    served = Served(GUARD)
    served.swapped("L2")
    for number in range(20):
        assert not served.reason
        served.hear("L2", part(np.full(128, 0.5), took_ms=201.0 if number < slow else 199.0))
    assert (served.reason == f"{slow} of 20 batches took longer than 100 ms for 64 rows") is noticed


def test_collapsed_scores_are_noticed_without_labels_and_usual_change_is_not():
    random = np.random.default_rng(1)
    usual, other = random.beta(2, 8, 5_000), random.beta(2, 6, 5_000)
    young, collapsed, turned = random.uniform(0.12, 0.3, 5_000), np.full(5_000, 0.2), random.beta(8, 2, 5_000)
    for after, noticed in ((other, False), (young, False), (collapsed, True), (turned, True)):
        served = Served(GUARD)
        served.swapped("L1")
        served.hear("L1", part(usual))
        served.swapped("L2")
        served.hear("L1", part(usual))  # a worker that has not swapped yet
        served.hear("L2", part(after))
        assert ("PSI" in (served.reason or "")) is noticed, served.evidence()


def test_stability_of_the_same_scores_is_zero():
    counts = BINARY.histogram(np.random.default_rng(1).random(10_000))
    assert counts.sum() == 10_000
    assert stability(counts, counts) == 0.0


@pytest.mark.parametrize("name", [field.name for field in fields(GuardConfig)])
def test_impossible_settings_are_named(name):
    with pytest.raises(ValueError, match=name):
        replace(GUARD, **{name: -1})
