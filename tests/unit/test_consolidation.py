"""Weights that are held after a drift: nothing before one, never beyond the anchor, less forgotten, exact restarts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from learners.arena import Arena
from learners.batch import Batch, ModelConfig
from learners.compiled import CompiledLesson
from learners.consolidation import Consolidation
from learners.drift import DriftConfig
from learners.trainer import Trainer
from tests.learner_rows import SCHEMA, contents, log_loss, optimiser_of, rows, trainer_of

ONSET = 10**6
both_kinds = pytest.mark.parametrize("family", ["mlp", "two_tower"])  # compiled steps, and steps of torch


def ewc_of(trainer: Trainer) -> Consolidation:
    assert trainer.ewc is not None
    return trainer.ewc


def elsewhere(n: int, seed: int, sign: float) -> Batch:
    """Rows on one side of the first number, each with a rule of its own in the second; one row a millisecond."""
    batch = rows(n, seed)
    numbers = batch.numbers.copy()
    numbers[:, 0] = sign * (6.0 + np.abs(numbers[:, 0]))
    label = (sign * numbers[:, 1] > 0).astype(np.float32)
    return replace(batch, numbers=numbers, label=label)


@both_kinds
def test_without_a_drift_nothing_is_held(family: str) -> None:
    plain, held = trainer_of(family), trainer_of(family, ewc=1000.0)
    for each in (plain, held):
        each.train(rows(600))
    ours, theirs = contents(held), contents(plain)
    for name in ("numbers",):  # the chain is of the settings too
        ours.pop(name)
        theirs.pop(name)
    assert ours == theirs
    assert isinstance(held.lesson, CompiledLesson) == (family == "mlp")


@pytest.mark.parametrize("batch_size", [32, 128])  # compiled steps, and steps of torch
def test_what_came_before_the_drift_is_forgotten_less(batch_size: int) -> None:
    losses = {}
    known, unseen = elsewhere(4000, 1, 1.0), elsewhere(800, 9, 1.0)
    for strength in (0.0, 3000.0):
        trainer = trainer_of("mlp", ewc=strength, batch_size=batch_size)
        trainer.train(known)
        trainer.drifted([known], ONSET)
        trainer.train(elsewhere(3000, 2, -1.0))
        losses[strength] = log_loss(trainer.score(unseen.numbers, unseen.categories), unseen.label)
    assert losses[3000.0] < 0.8 * losses[0.0]


@given(strength=st.floats(0.01, 1e9), rate=st.floats(1e-6, 10.0))
def test_no_weight_is_pulled_beyond_its_anchor_and_the_ones_that_matter_more_further(
    strength: float, rate: float
) -> None:
    trainer = trainer_of("logistic", ewc=strength)
    optimiser, ewc = optimiser_of(trainer), ewc_of(trainer)
    ewc.consolidate([rows(64)])
    kept = ewc._kept
    kept["dense"].zero_()
    kept["fisher_dense"].copy_(torch.linspace(0.0, 1.0, len(optimiser.dense)))
    optimiser.dense.fill_(1.0)
    ewc.after_step(torch.zeros(0, dtype=torch.int64), rate)
    after = optimiser.dense
    assert float(after.min()) >= 0.0
    assert float(after.max()) == float(after[0]) == 1.0
    assert bool((after[1:] <= after[:-1] + 1e-6).all())


@both_kinds
def test_it_goes_on_bit_for_bit_from_a_saved_state(family: str) -> None:
    first, second = trainer_of(family, ewc=500.0), trainer_of(family)
    first.train(rows(640))
    first.drifted([rows(640)], ONSET)
    first.train(rows(300, 2))
    second.load(first.state())
    for each in (first, second):
        each.drifted([rows(100, 4)], ONSET)
        each.train(rows(320, 3))
    assert contents(first) == contents(second)
    for name, value in ewc_of(first).state(first.touched).items():
        assert torch.equal(value, ewc_of(second).state(second.touched)[name]), name


def test_only_rows_before_the_onset_count_and_without_any_nothing_is_held() -> None:
    trainer, batch = trainer_of("mlp", ewc=500.0), rows(64)
    trainer.train(batch)
    trainer.drifted([batch], 0)
    assert not ewc_of(trainer).anchored
    trainer.drifted([batch], 32)
    other = trainer_of("mlp", ewc=500.0)
    other.train(batch)
    other.drifted([batch.slice(0, 32), Batch.empty(SCHEMA)], ONSET)
    for name, value in ewc_of(trainer).state(trainer.touched).items():
        assert torch.equal(value, ewc_of(other).state(other.touched)[name]), name


def test_a_table_row_that_stands_for_something_else_is_not_held() -> None:
    trainer = trainer_of("mlp", ewc=500.0, table="exact", rows=64, admit_after=1)
    trainer.train(rows(320))
    trainer.drifted([rows(320)], ONSET)
    held = ewc_of(trainer)._kept["fisher_table"].any(1)
    assert held.any()
    many = rows(2000, 5)
    trainer.train(
        replace(many, categories=many.categories * 31 + np.arange(2000)[:, None])
    )  # ids without end
    still = ewc_of(trainer)._kept["fisher_table"].any(1)
    assert int(still.sum()) < int(held.sum())


def test_an_alarm_of_the_arena_makes_the_champion_hold_on() -> None:
    random, seen = np.random.default_rng(1), 6_000
    batch = rows(seen)
    sign = np.where(np.arange(seen) < 4_000, 1.0, -1.0)
    label = (sign * batch.numbers[:, 0] + random.normal(0, 1, seen) > 0).astype(np.float32)
    batch = replace(batch, label=label, served=np.full(seen, np.nan, np.float32))
    config = ModelConfig(family="logistic", rows=64, batch_size=64, learning_rate=0.01, ewc=1.0)
    made = Arena(SCHEMA, config, replace(config, learning_rate=0.03), DriftConfig(), 1, device="cpu")
    champion = made.champion
    made.observe(batch.slice(0, 3_900), created_ms=0)
    assert not ewc_of(champion).anchored
    made.observe(batch.slice(3_900, seen), created_ms=0)
    assert ewc_of(champion).anchored


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"optimiser": "ftrl"}, "ewc does not go with ftrl"), ({"renew": 0.01}, "together")],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelConfig(ewc=1.0, **settings)
