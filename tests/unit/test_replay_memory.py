"""Rows that are learned again: which, and that a trainer with a memory goes on as if it had not stopped."""

from dataclasses import replace

import numpy as np
import pytest

from infra.errors import UserError
from learners.batch import REPLAY_KEEPS, Batch, ModelConfig
from learners.replay import Replay
from learners.trainer import Trainer
from tests.learner_rows import SCHEMA, contents, log_loss, rows

CONFIG = ModelConfig(embedding=4, rows=64, hidden=(16,), batch_size=16, replay=3, replay_rows=150)


def trainer(**settings: int) -> Trainer:
    return Trainer(SCHEMA, ModelConfig(**{**CONFIG.to_dict(), **settings, "hidden": (16,)}), 7, "L1", "cpu")


def test_the_newest_rows_are_kept_and_drawn_alike() -> None:
    memory, batch = Replay(SCHEMA, 100, 1), rows(260)
    for start in (0, 70, 180):
        memory.add(batch.slice(start, min(start + 110, 260) if start else 70))
    drawn = memory.draw(20_000)
    ids = {number: i for i, number in enumerate(batch.numbers[:, 0].tolist())}
    seen = np.array([ids[number] for number in drawn.numbers[:, 0].tolist()])
    assert (len(memory), int(seen.min()), int(seen.max())) == (100, 160, 259)
    assert np.bincount(seen, minlength=260)[160:].min() > 120
    np.testing.assert_array_equal(drawn.categories, batch.categories[seen])
    np.testing.assert_array_equal(drawn.label, batch.label[seen])


def kept(memory: Replay, batch: Batch) -> np.ndarray:
    """How often each row of a batch comes in many draws."""
    ids = {number: i for i, number in enumerate(batch.numbers[:, 0].tolist())}
    drawn = memory.draw(100 * len(memory)).numbers[:, 0].tolist()
    return np.bincount([ids[number] for number in drawn], minlength=len(batch))


def test_a_reservoir_keeps_each_row_with_the_same_chance() -> None:
    batch, times = rows(400), np.zeros(400)
    for seed in range(200):
        memory = Replay(SCHEMA, 100, seed, "reservoir")
        for start in range(0, 400, 80):
            memory.add(batch.slice(start, start + 80))
        assert len(memory) == 100
        times += kept(memory, batch) > 0
    # 200 draws of a quarter: 50 each, with a deviation of 6.
    assert abs(times.reshape(4, 100).mean(1) - 50).max() < 2
    assert 20 < times.min() <= times.max() < 80


@pytest.mark.parametrize("rounds", [1, 3])  # before the memory is full, and after it went round
def test_after_a_drift_only_rows_since_the_onset_are_rehearsed(rounds: int) -> None:
    batch = rows(80 * rounds)  # one row a millisecond
    onset = 80 * rounds - 30
    for keep, oldest in (("since_drift", onset), ("newest", 80 * rounds - min(100, 80 * rounds))):
        memory = Replay(SCHEMA, 100, 1, keep)
        for start in range(0, len(batch), 40):
            memory.add(batch.slice(start, start + 40))
        memory.drifted(onset)
        found = np.flatnonzero(kept(memory, batch))
        assert (int(found.min()), len(found)) == (oldest, 80 * rounds - oldest)
        memory.add(replace(rows(120, 5), event_ms=batch.event_ms[-1] + np.arange(1, 121)))
        assert len(memory) == 100


@pytest.mark.parametrize("keep", REPLAY_KEEPS)
def test_every_memory_goes_on_after_a_restart(keep: str) -> None:
    first = Trainer(SCHEMA, replace(CONFIG, replay_keep=keep), 7, "L1", "cpu")
    second = trainer()
    first.train(rows(170))
    first.drifted([], 90)
    second.load(first.state())
    for each in (first, second):
        each.train(rows(80, 3))
        each.drifted([], 20)
        each.train(rows(80, 4))
    assert contents(first) == contents(second)


def test_rows_without_a_finite_label_are_not_kept() -> None:
    memory, batch = Replay(SCHEMA, 100, 1), rows(10)
    batch.label[3] = np.nan
    memory.add(batch)
    assert len(memory) == 9
    assert np.isfinite(memory.draw(500).label).all()


def test_replay_learns_more_from_the_same_rows() -> None:
    plain, again, unseen = trainer(replay=0), trainer(), rows(400, 9)
    for each in (plain, again):
        for start in range(0, 600, 60):
            each.train(rows(600).slice(start, start + 60))
    losses = [
        log_loss(each.score(unseen.numbers, unseen.categories), unseen.label) for each in (plain, again)
    ]
    assert losses[1] < 0.8 * losses[0]
    assert (plain.examples, again.examples) == (600, 600)
    assert again.steps > 3 * plain.steps


def test_a_saved_memory_draws_what_it_would_have_drawn() -> None:
    first, second = trainer(), trainer()
    first.train(rows(100))
    first.train(rows(90, 2))
    second.load(first.state())
    for each in (first, second):
        each.train(rows(80, 3))
    assert contents(first) == contents(second)


def test_recent_labels_and_replay_do_not_go_together() -> None:
    with pytest.raises(UserError, match="recent_labels"):
        ModelConfig(replay=1, recent_labels=(4,))
