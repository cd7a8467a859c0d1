"""Rehearsal after a drift: only of what came since, for a while, and the same draws from the same state."""

import json

import numpy as np

from learners.batch import Batch, ModelConfig, Schema
from learners.buffer import Buffer
from learners.study import EXTRA, LENGTH, Studies
from learners.trainer import Trainer

SCHEMA, SIZE, SINCE = Schema(("x",), (), "t"), 100, 250
CONFIG = ModelConfig(family="logistic", batch_size=SIZE)


def batch(first: int) -> Batch:
    """Rows from `first` on, one a millisecond; before SINCE their labels say the opposite."""
    moments = np.arange(first, first + SIZE, dtype=np.int64)
    numbers = np.random.default_rng(first).normal(size=(SIZE, 1)).astype(np.float32)
    label = ((numbers[:, 0] > 0) == (moments >= SINCE)).astype(np.float32)
    unserved = np.full(SIZE, np.nan, np.float32)
    return Batch([""] * SIZE, moments, moments, numbers, np.zeros((SIZE, 0), np.int64), unserved, label)


def buffer(batches: int) -> Buffer:
    kept = Buffer(10_000)
    for number in range(batches):
        kept.add(batch(number * SIZE))
    return kept


def test_a_lineage_rehearses_what_came_since_and_only_while_the_stream_is_short_of_it() -> None:
    studies, trainer = Studies(), Trainer(SCHEMA, CONFIG, 1, "L2", "cpu")
    studies.rehearse(trainer, buffer(8), SIZE)  # nobody told it to
    assert trainer.examples == 0
    studies.begin(["L2"], SINCE)
    for _ in range(LENGTH // SIZE + 5):
        studies.rehearse(trainer, buffer(8), SIZE)
    assert trainer.steps == EXTRA * LENGTH // SIZE
    assert trainer.examples < trainer.steps * SIZE  # of the batch in which it began only the later half
    assert studies.record() == {}
    right = trainer.score(np.array([[-1.0], [1.0]], np.float32), np.zeros((2, 0), np.int64))
    assert right[0] < 0.5 < right[1]


def test_a_restart_changes_nothing_and_a_newer_drift_ends_it() -> None:
    first, second = Studies(), Studies()
    one, other = (Trainer(SCHEMA, CONFIG, 1, "L2", "cpu") for _ in range(2))
    first.begin(["L2", "L3"], SINCE)
    first.rehearse(one, buffer(8), SIZE)
    other.load(one.state())
    second.load(json.loads(json.dumps(first.record())))
    first.rehearse(one, buffer(9), SIZE)
    second.rehearse(other, buffer(9), SIZE)
    assert one.state() == other.state()
    first.begin(["L4"], SINCE)
    steps = one.steps
    first.rehearse(one, buffer(9), SIZE)
    assert one.steps == steps
