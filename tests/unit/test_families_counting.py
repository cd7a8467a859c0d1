"""The families without gradients, each against what it is said to be."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from river.tree import HoeffdingTreeClassifier

from learners.batch import Batch, Schema
from learners.models import build_model
from learners.models import leaf_kernels as leaves
from learners.models import tree_kernels as kernels
from learners.models.counting import PRIOR_ROWS, NaiveBayes, Neighbours
from learners.models.forest import AdaptiveRandomForest, HoeffdingTree
from learners.slot import BadUpdate, Slot, encode_full
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, SCHEMA, auc, rows, trainer_of

NUMBERS = Schema(("a", "b"), (), "x")


def made(family: str, schema: Schema = SCHEMA, **settings: Any) -> Trainer:
    return Trainer(schema, replace(CONFIG, family=family, **settings), 7, "L1", "cpu")


def labelled(numbers: np.ndarray, label: np.ndarray) -> Batch:
    """Rows of numbers [n, N] without categories."""
    n = len(numbers)
    moments, none = np.arange(n), np.zeros((n, 0), np.int64)
    served = np.full(n, 0.5, np.float32)
    values, truth = numbers.astype(np.float32), label.astype(np.float32)
    return Batch([""] * n, moments, moments, values, none, served, truth)


def score(trainer: Trainer, numbers: np.ndarray) -> np.ndarray:
    return trainer.score(numbers.astype(np.float32), np.zeros((len(numbers), 0), np.int64))


def test_a_category_is_encoded_by_the_log_odds_of_what_was_seen_with_it():
    trainer = made("naive_bayes")
    assert isinstance(trainer.model, NaiveBayes)
    batch = rows(40)
    batch.categories[:, 0] = 5
    batch.label[:] = np.arange(40) < 30
    trainer.train(batch)
    base = (30 + 1) / (40 + 2)
    index = trainer.model.index(torch.tensor([[5, 77_777]]))
    known, unknown = trainer.model.encode(trainer.model.table[index])[0].tolist()
    assert known == pytest.approx(np.log((30 + PRIOR_ROWS * base) / (10 + PRIOR_ROWS * (1 - base))), rel=1e-5)
    assert unknown == pytest.approx(np.log(base / (1 - base)), rel=1e-5)


def test_naive_bayes_is_the_formula():
    random = np.random.default_rng(3)
    label = random.random(4000) < 0.3
    numbers = np.where(label[:, None], random.normal(1.0, 0.5, (4000, 2)), random.normal(0.2, 0.8, (4000, 2)))
    trainer = made("naive_bayes", NUMBERS)
    trainer.train(labelled(numbers, label))
    value = np.sign(numbers) * np.log1p(np.abs(numbers))
    logit = np.log(label.mean() / (1 - label.mean()))
    for sign, kind in ((1, True), (-1, False)):
        mean, var = value[label == kind].mean(0), value[label == kind].var(0)
        logit = logit + sign * (-0.5 * ((value - mean) ** 2 / var + np.log(var))).sum(1)
    np.testing.assert_allclose(score(trainer, numbers), 1 / (1 + np.exp(-logit)), atol=0.01)


def test_the_neighbours_are_the_nearest_of_the_window():
    random = np.random.default_rng(4)
    numbers, label = random.normal(0, 1, (500, 2)), random.random(500) < 0.5
    trainer = made("knn", NUMBERS, neighbours=7, window=120)
    trainer.train(labelled(numbers, label))
    assert isinstance(trainer.model, Neighbours)
    query = random.normal(0, 1, (50, 2)).astype(np.float32)
    kept = trainer.model.kept.numpy()
    order = np.roll(np.arange(120), -(500 % 120))  # the ring, oldest first
    np.testing.assert_array_equal(kept[order, -1], label[-120:])
    scaled = trainer.model.scale(torch.from_numpy(query)).numpy()
    distance = ((scaled[:, None] - kept[None, :, :-2]) ** 2).sum(2)
    votes = kept[:, -1][np.argsort(distance, 1)[:, :7]].sum(1)
    base = float(trainer.model.base()[1])
    np.testing.assert_allclose(score(trainer, query), (votes + base) / 8, rtol=1e-5)


def test_a_step_larger_than_the_window_keeps_its_newest_rows():
    random = np.random.default_rng(5)
    batch = labelled(random.normal(0, 1, (97, 2)), np.arange(97) % 2)
    trainer = made("knn", NUMBERS, window=10, batch_size=97)
    trainer.train(batch)
    assert isinstance(trainer.model, Neighbours)
    assert trainer.model.filled.tolist() == [10, 7]
    np.testing.assert_array_equal(trainer.model.kept[:, -1].roll(-7), batch.label[-10:])


def test_a_tree_finds_the_border_and_no_border_in_noise():
    random = np.random.default_rng(6)
    numbers = random.uniform(0, 10, (4000, 2))
    label = numbers[:, 1] > 4.0
    trainer = made("hoeffding_tree", NUMBERS)
    trainer.train(labelled(numbers, label))
    assert isinstance(trainer.model, HoeffdingTree)
    root = trainer.model.nodes[0, 0]
    assert root[leaves.FEATURE] == 1
    assert np.expm1(root[leaves.THRESHOLD].item()) == pytest.approx(4.0, abs=0.7)
    assert auc(score(trainer, numbers), label) > 0.99
    noise = made("hoeffding_tree", NUMBERS)
    noise.train(labelled(numbers, random.random(4000) < 0.5))
    assert isinstance(noise.model, HoeffdingTree)
    assert int(noise.model.memory()["used"]) == 1


@pytest.mark.parametrize("family", ["hoeffding_tree", "adaptive_random_forest"])
def test_trees_learn_what_only_two_columns_together_say(family):
    random = np.random.default_rng(7)
    numbers = random.uniform(-1, 1, (12_000, 2))
    numbers[:, 0] += 0.2  # a perfect chessboard has no first split that gains anything
    label = (numbers[:, 0] > 0) != (numbers[:, 1] > 0)
    trainer = made(family, NUMBERS, split_confidence=0.01)
    trainer.train(labelled(numbers[:10_000], label[:10_000]))
    assert auc(score(trainer, numbers[10_000:]), label[10_000:]) > 0.95


def test_a_tree_is_as_good_as_rivers():
    """Side by side on the same rows, each scored before it is learned; ours learns them 32 at a time."""
    random = np.random.default_rng(11)
    numbers = random.normal(0, 1, (6000, 5)).astype(np.float32)
    label = np.abs(numbers[:, 0]) + numbers[:, 1] + random.normal(0, 0.3, 6000) > 0.8
    other, its = HoeffdingTreeClassifier(delta=1e-6), []
    for row, truth in zip(numbers.tolist(), label.tolist(), strict=True):
        values = dict(enumerate(row))
        its.append(other.predict_proba_one(values).get(True, 0.5))
        other.learn_one(values, truth)
    trainer = made("hoeffding_tree", Schema(tuple("abcde"), (), "x"))
    batch, ours = labelled(numbers, label), []
    for start in range(0, 6000, 32):
        part = batch.slice(start, start + 32)
        ours.append(trainer.score(part.numbers, part.categories))
        trainer.train(part)
    ours_auc, its_auc = (
        auc(np.concatenate(ours)[1000:], label[1000:]),
        auc(np.array(its)[1000:], label[1000:]),
    )
    assert its_auc > 0.94
    assert ours_auc > its_auc - 0.01


def test_a_tree_has_no_more_leaves_than_it_may():
    trainer = trainer_of("hoeffding_tree", leaves=4, grace=20, split_confidence=0.3)
    trainer.train(rows(4000))
    assert isinstance(trainer.model, HoeffdingTree)
    used = int(trainer.model.memory()["used"])
    ends = (trainer.model.nodes[0, :used, leaves.FEATURE] < 0).sum()
    assert (used, int(ends)) == (7, 4)


def test_a_forest_replaces_its_trees_when_the_stream_turns_round_and_a_tree_does_not():
    random = np.random.default_rng(8)
    numbers = random.uniform(-1, 1, (9000, 2))
    label = (numbers[:, 0] > 0) != (np.arange(9000) >= 4000)
    after = {}
    for family in ("hoeffding_tree", "adaptive_random_forest"):
        trainer = made(family, NUMBERS, leaves=8)
        trainer.train(labelled(numbers[:4000], label[:4000]))
        assert isinstance(trainer.model, HoeffdingTree)
        steady = trainer.model.memory()["births"].clone()
        trainer.train(labelled(numbers[4000:7000], label[4000:7000]))
        after[family] = auc(score(trainer, numbers[7000:]), label[7000:])
        planted = (trainer.model.memory()["births"] != steady).sum()
        assert planted == 0 if family == "hoeffding_tree" else planted >= 10
    assert after["adaptive_random_forest"] > 0.98
    assert after["adaptive_random_forest"] > after["hoeffding_tree"]


def test_the_trees_of_a_forest_differ():
    trainer = trainer_of("adaptive_random_forest")
    trainer.train(rows(3000))
    assert isinstance(trainer.model, AdaptiveRandomForest)
    roots = trainer.model.nodes[trainer.model.active.long(), 0]
    assert len({tuple(root.tolist()) for root in roots}) == 10


def test_chance_in_the_trees_is_uniform_and_poisson():
    chances = np.array([kernels.uniform(7, row, tree) for row in range(2000) for tree in range(3)])
    assert len(set(chances)) == 6000
    assert np.histogram(chances, 10, (0, 1))[0].min() > 520
    counts = np.array([kernels.poisson(chance) for chance in chances])
    assert counts.mean() == pytest.approx(6.0, abs=0.15)
    assert counts.var() == pytest.approx(6.0, abs=0.5)


def spoiled(at: tuple[int, ...], value: float) -> Trainer:
    """A tree that has split, with one number of its nodes replaced."""
    trainer = trainer_of("hoeffding_tree")
    trainer.train(rows(3000))
    assert isinstance(trainer.model, HoeffdingTree)
    assert trainer.model.nodes[0, 0, leaves.FEATURE] >= 0
    trainer.model.nodes[at] = value
    return trainer


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        ((0, 0, leaves.LEFT), 0.0, "not behind its parent"),  # a circle
        ((0, 0, leaves.RIGHT), 1e6, "not behind its parent"),
        ((0, 0, leaves.LEFT), 1.5, "not behind its parent"),
        ((0, 0, leaves.FEATURE), 5.0, "no column"),
        ((0, 0, leaves.FEATURE), 0.5, "no column"),
        ((0, 1, leaves.COUNTS + 1), -1.0, "negative count"),
    ],
)
def test_a_tree_that_could_not_be_walked_is_refused(at, value, words):
    trainer = spoiled(at, value)
    slot = Slot(SCHEMA, trainer.config, 7, "cpu")
    with pytest.raises(BadUpdate, match=words):
        slot.apply(*encode_full(trainer, event_ms=1, created_ms=1))


@pytest.mark.parametrize(
    ("family", "name", "value", "words"),
    [
        ("knn", "kept", 0.5, "no row can have"),
        ("knn", "filled", 1e9, "does not fit"),
        ("naive_bayes", "class_var", -1.0, "negative"),
        ("adaptive_random_forest", "active", 99.0, "not there"),
        ("naive_bayes", "table", -1.0, "negative count"),
        ("hoeffding_tree", "observers", torch.nan, "observers holds NaN"),
    ],
)
def test_other_impossible_states_are_refused(family, name, value, words):
    trainer = trainer_of(family)
    trainer.train(rows(100))
    getattr(trainer.model, name).view(-1)[trainer_row(trainer) if name == "table" else -1] = value
    slot = Slot(SCHEMA, trainer.config, 7, "cpu")
    with pytest.raises(BadUpdate, match=words):
        slot.apply(*encode_full(trainer, event_ms=1, created_ms=1))


def test_spreads_of_a_leaf_are_never_negative():
    trainer = trainer_of("hoeffding_tree")
    trainer.train(rows(100))
    assert isinstance(trainer.model, HoeffdingTree)
    trainer.model.observers[0, 0, 1, 2] = -1.0
    slot = Slot(SCHEMA, trainer.config, 7, "cpu")
    with pytest.raises(BadUpdate, match="negative weight or spread"):
        slot.apply(*encode_full(trainer, event_ms=1, created_ms=1))


def trainer_row(trainer: Trainer) -> int:
    """Place of the first number of a table row that was learned."""
    return int(trainer.touched.nonzero()[0]) * 2


def test_memory_of_another_size_is_refused():
    trainer, larger = (trainer_of("hoeffding_tree", leaves=leaves) for leaves in (8, 16))
    trainer.train(rows(100))
    state = trainer.state() | {"trainer.safetensors": larger.state()["trainer.safetensors"]}
    with pytest.raises((ValueError, KeyError)):
        trainer.load(state)


def test_a_copy_with_other_sizes_starts_anew_and_one_with_other_habits_goes_on():
    parent = trainer_of("hoeffding_tree")
    parent.train(rows(3000))
    batch = rows(50, 1)
    expected = parent.score(batch.numbers, batch.categories)
    wider = parent.clone("L2", replace(parent.config, leaves=64))
    assert isinstance(wider.model, HoeffdingTree)
    assert int(wider.model.memory()["used"]) == 1
    assert torch.equal(wider.model.mean, parent.model.mean)
    eager = parent.clone("L3", replace(parent.config, grace=50))
    np.testing.assert_array_equal(eager.score(batch.numbers, batch.categories), expected)


def test_a_family_that_counts_stays_on_the_cpu():
    model = build_model(SCHEMA, replace(CONFIG, family="knn"), 7, torch.device("meta"))
    assert model.table.device.type == "cpu"
