"""Compiled steps against torch's: the same weights, but for the order of sums."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learners import weights
from learners.batch import GRADIENT_FAMILIES, ModelConfig
from learners.compiled import BLOCK, CompiledLesson
from learners.lesson import COMPILED_FAMILIES, COMPILED_OPTIMISERS, GradientLesson, is_compiled
from learners.models import Net, build_model
from learners.models.base import SCALER_ROWS
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, SCHEMA, contents, log_loss, rows

SMALL = replace(CONFIG, batch_size=4, rows=64)


def settled(config: ModelConfig) -> Net:
    """A net whose running statistics hardly move, so that it does not matter when in a step they do."""
    model = build_model(SCHEMA, config, 3)
    assert isinstance(model, Net)
    model.var.fill_(2.0)
    model.count.fill_(SCALER_ROWS)
    model.seen.copy_(torch.tensor([4000.0, 3000.0]))
    return model


CASES: list[tuple[str, dict[str, Any]]] = [(family, {}) for family in COMPILED_FAMILIES]
CASES += [("dcn", {"optimiser": optimiser, "weight_decay": 0.01}) for optimiser in COMPILED_OPTIMISERS]
CASES += [
    ("mlp", {"hidden": ()}),
    ("dcn", {"hidden": ()}),
    ("mlp", {"positive_weight": 3.0}),
    ("mlp", {"clip_norm": 0.1}),
]
CASES += [("deepfm", {"recent_labels": (2, 50)}), ("logistic", {"schedule": "step", "schedule_steps": 7})]


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_compiled_steps_are_those_of_torch(family, settings):
    config = replace(SMALL, family=family, **settings)
    batch = rows(203)
    compiled, plain = CompiledLesson(settled(config), config), GradientLesson(settled(config), config)
    numbers, label = torch.from_numpy(batch.numbers), torch.from_numpy(batch.label)
    index = plain.model.index(torch.from_numpy(batch.categories))
    weight = torch.from_numpy(np.random.default_rng(1).choice(np.array([0.5, 1.0, 2.0], np.float32), 203))
    learned = compiled.learn(numbers, index, label, weight, scored=True)
    expected = []
    for start in range(0, 203, 4):
        part = slice(start, start + 4)
        step = plain.learn(numbers[part], index[part], label[part], weight[part], scored=True)
        assert step.scores is not None
        expected.append(step.scores)
    assert (learned.steps, learned.examples, learned.rejected) == (51, 203, 0)
    assert torch.equal(learned.touched, torch.unique(index))
    torch.testing.assert_close(learned.scores, torch.cat(expected), atol=2e-3, rtol=0)
    everything = torch.ones(len(plain.model.table), dtype=torch.bool)
    found, wanted = (weights.extract(lesson.model, everything) for lesson in (compiled, plain))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=0.02, rtol=0.01)


def one_by_one(**settings) -> Trainer:
    return Trainer(
        SCHEMA, replace(SMALL, family="dcn", batch_size=1, recent_labels=(5,), **settings), 7, "L1", "cpu"
    )


def test_a_row_is_scored_before_it_is_learned():
    trainer, twin, batch = one_by_one(), one_by_one(), rows(60)
    scores = trainer.test_then_train(batch)
    for at in range(60):
        row = batch.slice(at, at + 1)
        assert scores[at] == pytest.approx(twin.score(row.numbers, row.categories)[0], abs=1e-4)
        twin.train(row)
    assert contents(twin) == contents(trainer)


def test_however_a_stream_is_cut_between_steps_the_bits_are_the_same():
    whole, parts, batch = one_by_one(), one_by_one(), rows(BLOCK + 100)
    whole.train(batch)
    for start, stop in ((0, 1), (1, 700), (700, BLOCK + 100)):
        parts.train(batch.slice(start, stop))
    assert contents(whole) == contents(parts)
    assert log_loss(whole.test_then_train(rows(500, 9)), rows(500, 9).label) < 0.4


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(wrong):
    batch = rows(50)
    label = batch.label.copy()
    label[[10, 30]] = wrong
    trainer, without = one_by_one(), one_by_one()
    trainer.train(replace(batch, label=label))
    without.train(batch.take(~np.isin(np.arange(50), (10, 30))))
    assert (trainer.dropped, trainer.examples, trainer.steps) == (2, 48, 48)
    assert contents(trainer) == contents(without)


def test_a_saved_lesson_goes_on_as_if_it_had_not_stopped():
    trainer = one_by_one(schedule="inverse_sqrt", warmup_steps=10)
    trainer.train(rows(300))
    again = one_by_one()
    again.load(trainer.state())
    for each in (trainer, again):
        each.train(rows(200, 5))
    assert contents(again) == contents(trainer)
    assert trainer.lesson.record()["steps"] == 500


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 65}, {"activation": "tanh"}, {"loss": "focal"}, {"optimiser": "sgd", "momentum": 0.9},
     {"optimiser": "ftrl"}, {"schedule": "plateau"}, {"smallest_batch": 2}, {"hidden": (1024, 1024)}],
)  # fmt: skip
def test_what_the_kernel_does_not_know_is_left_to_torch(settings):
    other = replace(SMALL, **settings)
    assert is_compiled(settled(SMALL), SMALL)
    assert not is_compiled(settled(other), other)
    assert not is_compiled(settled(SMALL).to("meta"), SMALL)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_recent_labels_are_running_means_of_labels_that_were_learned(batch_size):
    config = replace(CONFIG, family="mlp", batch_size=batch_size, recent_labels=(1, 10))
    trainer, label = Trainer(SCHEMA, config, 7, "L1", "cpu"), rows(250).label
    trainer.train(rows(250))
    expected = np.array([0.5, 0.5])
    for each in label:
        expected += (1 - 0.5 ** (1 / np.array([1, 10]))) * (each - expected)
    np.testing.assert_allclose(trainer.model.recent.numpy(), expected, atol=1e-5)


def test_recent_labels_help_where_a_label_is_like_the_last():
    batch, random = rows(3000), np.random.default_rng(0)
    label = (np.cumsum(random.random(3000) < 0.05) % 2).astype(np.float32)
    batch = replace(batch, label=label)
    losses = [
        log_loss(Trainer(SCHEMA, replace(SMALL, family="mlp", batch_size=1, recent_labels=lives), 7, "L1", "cpu")
                 .test_then_train(batch), label)
        for lives in ((), (2,))
    ]  # fmt: skip
    assert losses[1] < 0.6 * losses[0]


def test_only_the_families_of_the_kernel_are_said_to_be_compiled():
    assert set(COMPILED_FAMILIES) < set(GRADIENT_FAMILIES)


def test_a_column_of_small_numbers_is_scaled_as_any_other():
    batch = rows(2000)
    small = replace(batch, numbers=batch.numbers * np.float32(1e-4))
    losses = [log_loss(one_by_one().test_then_train(each), each.label) for each in (batch, small)]
    assert losses[1] < losses[0] + 0.03
