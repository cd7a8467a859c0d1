"""Who challenges: always a copy and a new model; an earlier champion where it does better; all of it is saved."""

from dataclasses import replace

import numpy as np

from learners.batch import Batch, ModelConfig, Schema
from learners.buffer import Buffer
from learners.entrants import FIRST, KEPT, Entrants
from learners.trainer import Trainer

SCHEMA = Schema(("x",), (), "t")
CONFIG = ModelConfig(family="logistic", batch_size=50, learning_rate=0.05)


def batch(first: int, sign: int) -> Batch:
    """50 rows from `first` on, one a millisecond: the label is the sign of x, or its opposite."""
    moments = np.arange(first, first + 50, dtype=np.int64)
    numbers = np.random.default_rng(first).normal(size=(50, 1)).astype(np.float32)
    unserved = np.full(50, np.nan, np.float32)
    label = (sign * numbers[:, 0] > 0).astype(np.float32)
    return Batch([""] * 50, moments, moments, numbers, np.zeros((50, 0), np.int64), unserved, label)


def learn(champion: Trainer, buffer: Buffer, first: int, sign: int, batches: int = 40) -> None:
    for number in range(batches):
        rows = batch(first + 50 * number, sign)
        champion.train(rows)
        buffer.add(rows)


def kinds(entrants: Entrants, champion: Trainer, buffer: Buffer, since_ms: int) -> list[str]:
    return [kind for kind, _ in entrants.make(champion, buffer, since_ms)]


def test_what_was_good_before_is_tried_again_when_its_time_comes_back() -> None:
    entrants, buffer = Entrants(SCHEMA, CONFIG, CONFIG, 7, "cpu"), Buffer(20_000)
    champion = Trainer(SCHEMA, CONFIG, 7, FIRST, "cpu")
    learn(champion, buffer, 0, 1)
    buffer.add(batch(2_000, -1))
    assert kinds(entrants, champion, buffer, 2_000) == ["warm", "fresh"]  # nothing is kept yet
    learn(champion, buffer, 2_050, -1)
    buffer.add(batch(4_100, -1))
    assert kinds(entrants, champion, buffer, 4_100) == [
        "warm",
        "fresh",
    ]  # the kept one is worse than the champion
    buffer.add(batch(4_150, 1))

    restored = Entrants(SCHEMA, CONFIG, CONFIG, 7, "cpu")
    restored.load(*entrants.state())
    made, again = (list(each.make(champion, buffer, 4_150)) for each in (entrants, restored))
    assert [kind for kind, _ in made] == ["warm", "fresh", "past"]
    assert [model.lineage for _, model in made] == ["L6", "L7", "L8"]
    assert [model.state() for _, model in again] == [model.state() for _, model in made]
    scores = made[2][1].score(np.array([[-1.0], [1.0]], np.float32), np.zeros((2, 0), np.int64))
    assert scores[0] < 0.5 < scores[1]
    assert entrants.state()[1]["past"] == KEPT


def test_one_that_is_barred_is_not_tried_again() -> None:
    entrants, buffer = Entrants(SCHEMA, CONFIG, CONFIG, 7, "cpu"), Buffer(20_000)
    former, bad = Trainer(SCHEMA, CONFIG, 7, FIRST, "cpu"), Trainer(SCHEMA, CONFIG, 7, "L9", "cpu")
    learn(former, buffer, 0, -1)
    learn(bad, buffer, 2_000, 1)
    kinds(entrants, former, buffer, 2_000)
    kinds(entrants, bad, buffer, 2_000)
    assert kinds(entrants, former, buffer, 2_000)[2:] == ["past"]
    entrants.bar("L9")
    assert kinds(entrants, former, buffer, 2_000)[2:] == []
    assert entrants.state()[1]["past"] == KEPT  # all others stay


def test_each_further_challenger_is_tried_as_a_new_model_of_its_family() -> None:
    others = [replace(CONFIG, family="naive_bayes"), replace(CONFIG, family="mlp", hidden=(4,))]
    entrants, buffer = Entrants(SCHEMA, CONFIG, CONFIG, 7, "cpu", others), Buffer(20_000)
    champion = Trainer(SCHEMA, CONFIG, 7, FIRST, "cpu")
    learn(champion, buffer, 0, 1, batches=4)
    made = list(entrants.make(champion, buffer, 0))
    assert [(kind, model.config.family) for kind, model in made] == [
        ("warm", "logistic"), ("fresh", "logistic"), ("fresh", "naive_bayes"), ("fresh", "mlp"),
    ]  # fmt: skip
    assert [model.lineage for _, model in made] == ["L2", "L3", "L4", "L5"]
    assert len({model.seed for _, model in made}) == 4
