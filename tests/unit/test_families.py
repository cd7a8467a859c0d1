"""What every family must do, whatever it is: one suite over `FAMILIES`, as a new family joins it by its name."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from learners import weights
from learners.batch import COUNTING_FAMILIES, FAMILIES, GRADIENT_FAMILIES, Batch, ModelConfig, Schema
from learners.fits import misfit
from learners.models import Counter, Net, build_model
from learners.slot import BadUpdate, Slot, encode_full, encode_refresh
from learners.target import BINARY
from learners.trainer import Trainer
from tests import learner_rows
from tests.learner_rows import COLOURS, CONFIG, VALUES, auc, class_rows, contents, log_loss, value_rows
from tests.learner_rows import RICH as SCHEMA

every_family = pytest.mark.parametrize("family", FAMILIES)
SCHEMAS = {kind: replace(SCHEMA, target=target) for kind, target in
           (("binary", BINARY), ("multiclass", COLOURS), ("regression", VALUES.target))}  # fmt: skip
ROWS: dict[str, Callable[..., Batch]] = {
    "binary": learner_rows.rows,
    "multiclass": class_rows,
    "regression": partial(value_rows, level=50.0),
}
every_kind = pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for kind, schema in SCHEMAS.items() for family in FAMILIES
     if misfit(replace(CONFIG, family=family), schema.target) is None],
)  # fmt: skip
LEAST_AUC = {"logistic": 0.9, "svm": 0.9, "naive_bayes": 0.92}  # those that are linear; the others get 0.96
rows = partial(learner_rows.rows, schema=SCHEMA)
trainer_of = partial(learner_rows.trainer_of, schema=SCHEMA)
UNSEEN = rows(500, seed=99)
SMALL: dict[str, Any] = {
    "window": 300,
    "trees": 3,
    "leaves": 16,
    "grace": 50,
    "random_features": 32,
    "units": 8,
}


def small(family: str, schema: Schema = SCHEMA, **settings: Any) -> Trainer:
    return learner_rows.trainer_of(family, schema=schema, **(SMALL | settings))


def scores_of(trainer: Trainer) -> np.ndarray:
    return trainer.score(UNSEEN.numbers, UNSEEN.categories)


def slot_of(trainer: Trainer) -> Slot:
    return Slot(trainer.schema, trainer.config, 7, "cpu")


def sent(update: tuple[dict[str, Any], bytes]) -> tuple[dict[str, Any], bytes]:
    """An update after its way through Kafka."""
    return json.loads(json.dumps(update[0])), update[1]


def refresh(trainer: Trainer) -> tuple[dict[str, Any], bytes]:
    return sent(encode_refresh(trainer, event_ms=1, created_ms=1))


def full(trainer: Trainer) -> tuple[dict[str, Any], bytes]:
    return sent(encode_full(trainer, event_ms=1, created_ms=1))


def test_every_family_is_of_one_kind():
    assert set(GRADIENT_FAMILIES) | set(COUNTING_FAMILIES) == set(FAMILIES)
    for family in FAMILIES:
        model = build_model(SCHEMA, replace(CONFIG, family=family), 7)
        assert isinstance(model, Net if family in GRADIENT_FAMILIES else Counter)


@every_family
def test_it_learns_a_separable_stream(family):
    trainer = trainer_of(family)
    trainer.train(rows(4000))
    scores = scores_of(trainer)
    assert auc(scores, UNSEEN.label) > LEAST_AUC.get(family, 0.96)
    assert log_loss(scores, UNSEEN.label) < 0.45
    assert (trainer.examples, trainer.steps, trainer.rejected_steps) == (4000, 125, 0)


@every_family
def test_it_scores_before_it_has_learned_anything(family):
    scores = scores_of(small(family))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 0.5, atol=0.06)


@every_family
def test_it_says_the_base_rate_when_the_label_is_noise(family):
    trainer = small(family, learning_rate=0.001)
    batch = rows(3000)
    label = (np.random.default_rng(1).random(3000) < 0.1).astype(np.float32)
    trainer.train(replace(batch, label=label))
    assert 0.04 < scores_of(trainer).mean() < 0.2


@every_family
def test_weights_undo_a_sampling(family):
    """Noise with three positives in ten, of which a third was kept: by their weight the odds are thrice as high."""
    random = np.random.default_rng(1)
    label = (random.random(6000) < 0.3).astype(np.float32)
    weight = np.where(label == 1.0, 3.0, 1.0).astype(np.float32)
    sample = replace(rows(6000), label=label, weight=weight).take(
        (label == 0.0) | (random.random(6000) < 1 / 3)
    )
    odds = []
    for batch in (replace(sample, weight=np.ones_like(sample.weight)), sample):
        trainer = small(family, learning_rate=0.001)
        trainer.train(batch)
        mean = scores_of(trainer).mean()
        odds.append(mean / (1 - mean))
    assert 2.0 < odds[1] / odds[0] < 4.5


@every_family
def test_strange_rows_are_learned_and_scored(family):
    trainer, batch = small(family), rows(400)
    batch.numbers[::5] = np.nan
    batch.numbers[1::5] = np.inf
    batch.numbers[2::5] = -np.finfo(np.float32).max
    batch.categories[::3] = 0
    batch.categories[1::7] = np.iinfo(np.int64).min
    trainer.train(batch)
    assert trainer.rejected_steps == 0
    unseen = rows(200, 5)
    unseen.categories[:] = np.random.default_rng(2).integers(1, 2**62, unseen.categories.shape)
    for each in (batch, unseen):
        scores = trainer.score(each.numbers, each.categories)
        assert np.isfinite(scores).all()
        assert ((scores > 0) & (scores < 1)).all()


@every_family
@pytest.mark.parametrize("schema", [Schema(("a",), (), "x"), Schema((), ("c",), "x")])
def test_it_learns_from_numbers_alone_and_from_categories_alone(family, schema):
    trainer = Trainer(schema, replace(CONFIG, family=family, **SMALL), 7, "L1", "cpu")
    trainer.train(rows(3000, schema=schema))
    unseen = rows(500, 9, schema=schema)
    scores = trainer.score(unseen.numbers, unseen.categories)
    # A fifth of the only number is unknown, and then the label is noise.
    assert auc(scores, unseen.label) > (0.85 if schema.numbers else 0.95)


@every_family
def test_the_same_stream_gives_the_same_bits_and_leaves_the_global_generators_alone(family):
    before = torch.random.get_rng_state()
    np.random.seed(3)  # noqa: NPY002
    first, second = small(family), small(family)
    for trainer in (first, second):
        for seed, n in enumerate((100, 32, 1, 333)):
            trainer.train(rows(n, seed))
    assert contents(first) == contents(second)
    assert torch.equal(before, torch.random.get_rng_state())
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002


@every_kind
def test_a_checkpoint_goes_on_bit_equal(family, kind):
    schema, some = SCHEMAS[kind], partial(ROWS[kind], schema=SCHEMA)
    trainer = small(family, schema=schema)
    trainer.train(some(900))
    trainer.delta()
    trainer.train(some(100, 2))
    other = Trainer(schema, ModelConfig(), seed=1, lineage="L9", device="cpu")
    other.load(trainer.state())
    assert contents(other) == contents(trainer)
    for each in (trainer, other):
        each.train(some(700, 3))
    assert contents(other) == contents(trainer)
    assert other.state() == trainer.state()
    assert trainer.rejected_steps == 0


@every_kind
def test_a_chain_of_refreshes_serves_the_same_bits(family, kind):
    trainer = small(family, schema=SCHEMAS[kind])
    slot = slot_of(trainer)
    for seed in range(3):
        trainer.train(ROWS[kind](300, seed, SCHEMA))
        assert slot.apply(*refresh(trainer))
        scores, version = slot.score(UNSEEN.numbers, UNSEEN.categories)
        np.testing.assert_array_equal(scores, scores_of(trainer))
        assert version == trainer.version


@every_kind
def test_a_whole_model_serves_the_same_bits_and_refreshes_follow_it(family, kind):
    trainer = small(family, schema=SCHEMAS[kind])
    trainer.train(ROWS[kind](1000, 0, SCHEMA))
    slot = Slot(trainer.schema, ModelConfig(), 3, "cpu")  # of another family, with another seed
    slot.load_full(*full(trainer))
    np.testing.assert_array_equal(slot.score(UNSEEN.numbers, UNSEEN.categories)[0], scores_of(trainer))
    trainer.train(ROWS[kind](300, 1, SCHEMA))
    assert slot.apply(*refresh(trainer))
    np.testing.assert_array_equal(slot.score(UNSEEN.numbers, UNSEEN.categories)[0], scores_of(trainer))


@every_family
def test_a_whole_model_after_a_checkpoint_is_the_same_as_without(family):
    """Whatever serving needs is in the state: a restarted learner publishes what it would have published."""
    trainer = small(family)
    trainer.train(rows(1000))
    other = Trainer(SCHEMA, trainer.config, 7, "L1", "cpu")
    other.load(trainer.state())
    assert full(other) == full(trainer)


@every_family
def test_an_update_for_another_schema_or_with_a_nan_is_refused_and_changes_nothing(family):
    trainer = small(family)
    slot = slot_of(trainer)
    trainer.train(rows(600))
    assert slot.apply(*refresh(trainer))
    before = slot.score(UNSEEN.numbers, UNSEEN.categories)
    elsewhere = Trainer(replace(SCHEMA, fingerprint="other"), trainer.config, 7, "L1", "cpu")
    elsewhere.train(rows(100))
    with pytest.raises(BadUpdate, match="other features"):
        slot.load_full(*full(elsewhere))
    for name, value in weights.dense(trainer.model).items():
        kept = value.clone()
        value.view(-1)[-1] = torch.nan
        trainer.advance(10)
        with pytest.raises(BadUpdate, match=f"{name} holds NaN"):
            slot.apply(*full(trainer))
        value.copy_(kept)
    after = slot.score(UNSEEN.numbers, UNSEEN.categories)
    assert after[1] == before[1]
    np.testing.assert_array_equal(after[0], before[0])


@every_family
def test_a_checkpoint_of_another_schema_or_family_is_refused(family):
    trainer = small(family)
    trainer.train(rows(100))
    before = contents(trainer)
    elsewhere = Trainer(replace(SCHEMA, fingerprint="other"), trainer.config, 7, "L1", "cpu")
    with pytest.raises(ValueError, match="another schema"):
        trainer.load(elsewhere.state())
    other = "mlp" if family != "mlp" else "knn"
    mixed = small(other).state() | {"trainer.json": trainer.state()["trainer.json"]}
    with pytest.raises((ValueError, KeyError)):
        trainer.load(mixed)
    assert contents(trainer) == before


@every_family
def test_a_clone_keeps_the_scores_learns_on_and_leaves_its_parent_alone(family):
    trainer = small(family)
    trainer.train(rows(1000))
    child = trainer.clone("L2")
    np.testing.assert_array_equal(scores_of(child), scores_of(trainer))
    before = contents(trainer)
    child.train(rows(500, 2))
    assert contents(trainer) == before
    assert not np.array_equal(scores_of(child), scores_of(trainer))
    slot = slot_of(trainer)
    slot.load_full(*full(child))
    np.testing.assert_array_equal(slot.score(UNSEEN.numbers, UNSEEN.categories)[0], scores_of(child))


@every_kind
@pytest.mark.parametrize("poisoned", ["label", "weight"])
def test_a_rejected_step_leaves_no_trace(family, kind, poisoned):
    trainer, clean = (small(family, schema=SCHEMAS[kind]) for _ in range(2))
    batch = ROWS[kind](96, 0, SCHEMA)
    column = batch.label if poisoned == "label" else batch.weight
    column[40] = np.nan  # in the second of three steps
    trainer.train(batch)
    clean.train(batch.slice(0, 32))
    clean.train(batch.slice(64, 96))
    assert contents(trainer) == contents(clean)
    assert (trainer.rejected_steps, trainer.steps, trainer.examples) == (1, 2, 64)


@every_kind
def test_a_row_scores_the_same_alone_and_in_company(family, kind):
    trainer = small(family, schema=SCHEMAS[kind])
    trainer.train(ROWS[kind](1000, 0, SCHEMA))
    together = scores_of(trainer)[:20]
    alone = [trainer.score(UNSEEN.numbers[i : i + 1], UNSEEN.categories[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@every_family
def test_no_rows_are_no_trouble(family):
    trainer = small(family)
    before = contents(trainer)
    trainer.train(Batch.empty(SCHEMA))
    assert contents(trainer) == before
    assert trainer.score(UNSEEN.numbers[:0], UNSEEN.categories[:0]).shape == (0,)
    trainer.rewarm()
