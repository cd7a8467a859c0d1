"""Models of values: they learn in any unit, travel, come back from a checkpoint, and what cannot learn them says so."""

from dataclasses import replace

import numpy as np
import pytest

from infra.errors import UserError
from learners.admission import BadUpdate
from learners.batch import FAMILIES, READS, Batch, Schema
from learners.fits import VALUE_FAMILIES
from learners.losses import VALUE_DELTA
from learners.metrics import regression_metrics
from learners.models import build_model
from learners.slot import Slot, encode_full
from learners.target import Target
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, RICH, VALUES, contents, trainer_of, value_rows

RICH_VALUES = replace(RICH, target=Target("regression"))


def r2(trainer: Trainer, batch: Batch) -> float:
    return regression_metrics(batch.label, trainer.score(batch.numbers, batch.categories))["r2"]


OF_ROWS = tuple(family for family in VALUE_FAMILIES if family not in READS)


@pytest.mark.parametrize("family", OF_ROWS)
def test_families_learn_values(family: str) -> None:
    trainer = trainer_of(family, schema=VALUES)
    trainer.train(value_rows(6_000))
    assert r2(trainer, value_rows(1_000, 9)) > 0.8
    assert trainer.dropped == 0


@pytest.mark.parametrize("family", VALUE_FAMILIES)
def test_every_family_starts_at_the_mean_and_takes_a_step(family: str) -> None:
    trainer = trainer_of(family, schema=RICH_VALUES)
    numbers = np.zeros((40, len(RICH_VALUES.numbers)), np.float32)
    ids = np.arange(40 * RICH_VALUES.ids).reshape(40, -1)
    times = np.arange(40, dtype=np.int64)
    label = np.linspace(90, 110, 40).astype(np.float32)
    batch = Batch([""] * 40, times, times, numbers, ids, label, label)
    assert np.abs(trainer.score(numbers, ids)).max() < 0.1
    scores = trainer.test_then_train(batch)
    assert np.abs(scores[32:] - label[:32].mean()).max() < 5.0
    assert trainer.steps == 2


@pytest.mark.parametrize(("unit", "level"), [(1e-3, 0.0), (1.0, 1_000.0), (1e9, -3e9)])
def test_the_unit_of_the_label_makes_no_difference(unit: float, level: float) -> None:
    usual, other = trainer_of(schema=VALUES), trainer_of(schema=VALUES)
    usual.train(value_rows(3_000))
    other.train(value_rows(3_000, unit=unit, level=level))
    batch = value_rows(500, 5)
    expected = usual.score(batch.numbers, batch.categories)
    found = (other.score(batch.numbers, batch.categories).astype(np.float64) - level) / unit
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert np.abs(found - expected).mean() < 0.2  # of a standard deviation of 3.6


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_a_wild_label_pulls_less_by_a_robust_loss(loss: str) -> None:
    batch = value_rows(6_000)
    label = batch.label.copy()
    label[::50] += 60.0
    trainer = trainer_of(schema=VALUES, loss=loss)
    trainer.train(replace(batch, label=label))
    clean = value_rows(1_000, 9)
    bias = float((trainer.score(clean.numbers, clean.categories) - clean.label).mean())
    assert bias > 0.6 if loss == "mse" else abs(bias) < 0.5


def test_the_level_of_a_stream_may_jump_far() -> None:
    """By 28 standard deviations, which a head would need tens of thousands of rows for."""
    trainer = trainer_of(schema=VALUES)
    trainer.train(value_rows(1_000))
    trainer.train(value_rows(6_000, 1, level=100.0))
    assert r2(trainer, value_rows(1_000, 99, level=100.0)) > 0.7


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    trainer = trainer_of(schema=VALUES)
    trainer.train(value_rows(64))
    before = contents(trainer)
    broken = value_rows(32, 1)
    broken.label[3] = np.inf
    trainer.train(broken)
    assert trainer.dropped == 1
    assert {name for name, bits in contents(trainer).items() if bits != before[name]} == set()


def test_recent_labels_are_inputs_in_standard_deviations() -> None:
    """A walk: the newest label says nearly all of the next one."""
    walk = np.cumsum(np.random.default_rng(0).normal(0, 1, 4_000)).astype(np.float32)
    batch = replace(value_rows(4_000), label=walk)
    with_, without = (
        trainer_of("logistic", schema=VALUES, recent_labels=recent, batch_size=4) for recent in ((1, 4), ())
    )
    errors = [np.abs(each.test_then_train(batch) - walk)[2_000:].mean() for each in (with_, without)]
    assert errors[0] < 0.6 * errors[1]


def test_a_model_that_scores_otherwise_here_is_refused_by_the_size_of_its_labels() -> None:
    trainer = trainer_of(schema=VALUES)
    trainer.train(value_rows(500, unit=1e6))
    meta, payload = encode_full(trainer, event_ms=1, created_ms=1)
    slot = Slot(VALUES, trainer.config, trainer.seed, "cpu")
    nearly = meta | {"golden": [score + 1.0 for score in meta["golden"]]}  # 1 of a deviation of 3.6 million
    slot.prepare(nearly, payload)
    with pytest.raises(BadUpdate, match="scores the golden rows otherwise"):
        slot.prepare(meta | {"golden": [score + 1e4 for score in meta["golden"]]}, payload)


def test_a_copy_has_the_scale_of_its_original_and_another_family_too() -> None:
    trainer = trainer_of(schema=VALUES)
    trainer.train(value_rows(1_000, level=500.0))
    batch = value_rows(10)
    for config in (trainer.config, replace(trainer.config, family="logistic")):
        copy = trainer.clone("L2", config)
        assert abs(copy.score(batch.numbers, batch.categories).mean() - 500.0) < 10.0


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(VALUE_FAMILIES)))
def test_a_family_that_cannot_learn_values_says_so(family: str) -> None:
    with pytest.raises(UserError, match=f"family '{family}' .* cannot learn a regression task"):
        build_model(VALUES, replace(CONFIG, family=family), 1)


@pytest.mark.parametrize("settings", [{"loss": "bce"}, {"loss": "focal"}, {"positive_weight": 2.0}])
def test_settings_for_zeros_and_ones_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        build_model(VALUES, replace(CONFIG, **settings), 1)  # type: ignore[arg-type]


def test_a_schema_says_what_is_predicted() -> None:
    assert Schema.from_dict(VALUES.to_dict()) == VALUES
    assert VALUES.hash != replace(VALUES, target=Target()).hash


def test_huber_is_squared_below_a_standard_deviation() -> None:
    assert VALUE_DELTA == 1.0
