"""The families without gradients where labels are classes or values, each against what it is said to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from river.tree import HoeffdingTreeRegressor

from learners.batch import Batch, Schema
from learners.metrics import class_metrics
from learners.models import leaf_kernels as leaves
from learners.models.base import SCALED_LIMIT
from learners.models.counting import PRIOR_ROWS, NaiveBayes, Neighbours
from learners.models.forest import HoeffdingTree
from learners.slot import BadUpdate, Slot, encode_full
from learners.target import Target
from learners.trainer import Trainer
from tests.learner_rows import COLOURS, CONFIG, SCHEMA, VALUES, class_rows, rows, trainer_of, value_rows

CLASSES = replace(SCHEMA, target=COLOURS)
NUMBERS = Schema(("a", "b"), (), "x")


def made(family: str, target: Target, **settings: object) -> Trainer:
    schema = replace(NUMBERS, target=target)
    return Trainer(schema, replace(CONFIG, family=family, **settings), 7, "L1", "cpu")  # type: ignore[arg-type]


def labelled(numbers: np.ndarray, label: np.ndarray) -> Batch:
    """Rows of numbers [n, 2] without categories."""
    n = len(numbers)
    moments, none, truth = np.arange(n), np.zeros((n, 0), np.int64), label.astype(np.float32)
    return Batch([""] * n, moments, moments, numbers.astype(np.float32), none, truth, truth)


def score(trainer: Trainer, numbers: np.ndarray) -> np.ndarray:
    return trainer.score(numbers.astype(np.float32), np.zeros((len(numbers), 0), np.int64))


def encoded(trainer: Trainer, *categories: int) -> np.ndarray:
    index = trainer.model.index(torch.tensor([categories]))
    return trainer.model.encode(trainer.model.table[index])[0].numpy()  # type: ignore[operator]


def test_a_category_says_how_much_likelier_than_usual_each_class_is() -> None:
    trainer, batch = trainer_of("naive_bayes", schema=CLASSES), class_rows(30)
    batch.categories[:, 0] = np.where(np.arange(30) < 20, 5, 6)
    batch.label[:] = np.where(np.arange(30) < 20, np.arange(30) % 2, 2)
    trainer.train(batch)
    base = (np.array([10, 10, 10]) + 1) / 33
    shares = (np.array([10, 10, 0]) + PRIOR_ROWS * base) / (20 + PRIOR_ROWS)
    found = encoded(trainer, 5, 77_777)
    np.testing.assert_allclose(found[:3], np.log(shares / base), rtol=1e-5)
    np.testing.assert_allclose(found[3:], 0.0, atol=1e-6)


def test_a_category_says_the_mean_of_its_values_in_standard_deviations() -> None:
    trainer, batch = trainer_of("knn", schema=VALUES), value_rows(32, level=100.0)
    batch.categories[:, 0] = np.where(np.arange(32) < 20, 5, 6)
    trainer.train(batch)
    label = batch.label.astype(np.float64)
    of_five = ((label - label.mean()) / label.std())[:20]
    found = encoded(trainer, 5, 77_777)
    np.testing.assert_allclose(found, [of_five.sum() / (20 + PRIOR_ROWS), 0.0], atol=2e-3)


def test_naive_bayes_of_classes_is_the_formula() -> None:
    random = np.random.default_rng(3)
    label = random.choice(3, 4000, p=(0.2, 0.5, 0.3))
    numbers = random.normal(np.array([0.0, 0.8, 1.6])[label, None], 0.4, (4000, 2))
    trainer = made("naive_bayes", COLOURS)
    trainer.train(labelled(numbers, label))
    assert isinstance(trainer.model, NaiveBayes)
    value = np.sign(numbers) * np.log1p(np.abs(numbers))
    density = np.zeros((4000, 3, 2))
    for kind in range(3):
        mean, var = value[label == kind].mean(0), value[label == kind].var(0)
        density[:, kind] = -0.5 * ((value - mean) ** 2 / var + np.log(var))
    said = np.log(np.bincount(label) / 4000) + density.sum(2)
    near = (np.ptp(density, 1) < SCALED_LIMIT - 0.2).all(1)  # elsewhere one number would say more than it may
    assert near.mean() > 0.4
    expected = np.exp(said - said.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(score(trainer, numbers)[near], expected[near], atol=0.015)


@pytest.mark.parametrize("target", [COLOURS, VALUES.target])
def test_the_neighbours_vote_for_their_class_or_say_the_mean_of_their_values(target: Target) -> None:
    random = np.random.default_rng(4)
    numbers = random.normal(0, 1, (300, 2))
    label = random.integers(0, 3, 300) if target.classes else random.normal(1e4, 2, 300)
    trainer = made("knn", target, neighbours=7, window=300)
    trainer.train(labelled(numbers, label))
    assert isinstance(trainer.model, Neighbours)
    query = random.normal(0, 1, (50, 2)).astype(np.float32)
    kept = trainer.model.kept.numpy()
    distance = (
        (trainer.model.scale(torch.from_numpy(query)).numpy()[:, None] - kept[None, :, :-2]) ** 2
    ).sum(2)
    near = label[np.argsort(distance, 1)[:, :7]]
    if target.classes:
        votes = (near[:, :, None] == np.arange(3)).sum(1)
        expected = (votes + trainer.model.base().numpy()) / 8
    else:
        expected = near.mean(1)
    np.testing.assert_allclose(score(trainer, query), expected, rtol=1e-5)


def test_a_tree_over_values_finds_the_border_and_no_border_in_noise() -> None:
    random = np.random.default_rng(6)
    numbers = random.uniform(0, 10, (4000, 2))
    label = np.where(numbers[:, 1] > 4.0, 1005.0, 1000.0) + random.normal(0, 1, 4000)
    trainer = made("hoeffding_tree", VALUES.target)
    trainer.train(labelled(numbers, label))
    assert isinstance(trainer.model, HoeffdingTree)
    root = trainer.model.nodes[0, 0]
    assert root[leaves.FEATURE] == 1
    assert np.expm1(root[leaves.THRESHOLD].item()) == pytest.approx(4.0, abs=0.7)
    found = score(trainer, np.array([[1.0, 1.0], [1.0, 9.0], [1.0, np.nan]]))
    np.testing.assert_allclose(found, [1000.0, 1005.0, 1005.0], atol=0.3)  # unknown is above every threshold
    noise = made("hoeffding_tree", VALUES.target)
    noise.train(labelled(numbers, random.normal(0, 1, 4000)))
    assert isinstance(noise.model, HoeffdingTree)
    assert int(noise.model.memory()["used"]) == 1


def test_a_tree_over_values_is_as_good_as_rivers() -> None:
    """Side by side on the same rows, each scored before it is learned; ours learns them 32 at a time."""
    random = np.random.default_rng(11)
    numbers = random.normal(0, 1, (4000, 2)).astype(np.float32)
    label = np.where(numbers[:, 0] > 0.3, 5.0, np.where(numbers[:, 1] > 0.0, 1.0, -4.0)) + random.normal(
        0, 0.5, 4000
    )
    other, its = HoeffdingTreeRegressor(delta=1e-6, leaf_prediction="mean"), []
    for row, truth in zip(numbers.tolist(), label.tolist(), strict=True):
        values = dict(enumerate(row))
        its.append(other.predict_one(values))
        other.learn_one(values, truth)
    trainer, ours = made("hoeffding_tree", VALUES.target), []
    for start in range(0, 4000, 32):
        part = labelled(numbers[start : start + 32], label[start : start + 32])
        ours.append(score(trainer, part.numbers))
        trainer.train(part)
    errors = [np.abs(each - label)[1000:].mean() for each in (np.concatenate(ours), np.array(its))]
    assert errors[1] < 1.0
    assert errors[0] < 1.05 * errors[1]


def test_a_forest_over_values_replaces_its_trees_when_the_stream_turns_round() -> None:
    random = np.random.default_rng(8)
    numbers = random.uniform(-1, 1, (6000, 2))
    label = np.where((numbers[:, 0] > 0) != (np.arange(6000) >= 3000), 3.0, -3.0) + random.normal(
        0, 0.5, 6000
    )
    errors = {}
    for family in ("hoeffding_tree", "adaptive_random_forest"):
        trainer = made(family, VALUES.target, leaves=8)
        trainer.train(labelled(numbers[:3000], label[:3000]))
        assert isinstance(trainer.model, HoeffdingTree)
        steady = trainer.model.memory()["births"].clone()
        trainer.train(labelled(numbers[3000:5000], label[3000:5000]))
        errors[family] = np.abs(score(trainer, numbers[5000:]) - label[5000:]).mean()
        planted = (trainer.model.memory()["births"] != steady).sum()
        assert planted == 0 if family == "hoeffding_tree" else planted >= 8
    assert errors["adaptive_random_forest"] < 0.8 < errors["hoeffding_tree"]


def test_bins_that_grow_lose_no_label() -> None:
    random = np.random.default_rng(2)
    value, label = random.standard_t(1, 400).astype(np.float32), random.normal(5, 1, 400)
    seen = np.zeros(leaves.BIN + 2 * leaves.BINS, np.float32)
    for each, truth in zip(value, label, strict=True):
        leaves.note_value(seen, each, truth, 1.0)
    for cut in range(1, leaves.BINS + 1):
        threshold = seen[leaves.BEGIN] + cut * seen[leaves.WIDTH]
        weight, total = leaves.in_bins(seen, threshold, 5.0)
        assert weight == (value <= threshold).sum()
        assert total == pytest.approx((label[value <= threshold] - 5.0).sum(), abs=0.01)
    assert weight == 400


def test_classes_that_no_line_tells_apart_are_learned_by_trees() -> None:
    random = np.random.default_rng(5)
    numbers = random.uniform(-1, 1, (6000, 2))
    label = np.where(np.abs(numbers[:, 0]) < 0.4, 2, numbers[:, 1] > 0)
    for family in ("hoeffding_tree", "adaptive_random_forest"):
        trainer = made(family, COLOURS, split_confidence=0.01)
        trainer.train(labelled(numbers[:5000], label[:5000]))
        found = class_metrics(label[5000:].astype(np.float32), score(trainer, numbers[5000:]))
        assert found["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("family", "target", "name", "value", "words"),
    [
        ("knn", COLOURS, "kept", 3.0, "no row can have"),
        ("knn", VALUES.target, "kept", 1e20, "no row can have"),
        ("hoeffding_tree", VALUES.target, "nodes", -1.0, "negative count"),
    ],
)
def test_impossible_states_are_refused(
    family: str, target: Target, name: str, value: float, words: str
) -> None:
    trainer = trainer_of(family, schema=replace(SCHEMA, target=target))
    trainer.train(replace(rows(100), label=np.arange(100, dtype=np.float32) % 2))
    at = (0, 0, leaves.COUNTS) if name == "nodes" else (-1, -1)
    getattr(trainer.model, name)[at] = value
    slot = Slot(trainer.schema, trainer.config, 7, "cpu")
    with pytest.raises(BadUpdate, match=words):
        slot.apply(*encode_full(trainer, event_ms=1, created_ms=1))


@pytest.mark.parametrize("family", ["knn", "hoeffding_tree", "adaptive_random_forest"])
def test_a_value_beyond_all_measure_rejects_its_step(family: str) -> None:
    trainer, batch = trainer_of(family, schema=VALUES), value_rows(32)
    batch.label[3] = 3e38
    trainer.train(batch)
    assert (trainer.rejected_steps, trainer.examples) == (1, 0)
