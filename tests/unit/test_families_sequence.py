"""Families that read sequences: what they see of a row, and that it is worth something."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from learners.batch import SEQUENCE_FAMILIES, Batch, ModelConfig, Schema
from learners.blocks import Block
from learners.models.reader import Reader
from learners.trainer import Trainer
from tests.learner_rows import auc

every_family = pytest.mark.parametrize("family", SEQUENCE_FAMILIES)
LENGTH = 5
SCHEMA = Schema(
    ("amount", *(f"card_amount_last_{i + 1}" for i in range(LENGTH))),
    (),
    "f",
    (Block("card_amount", "series", LENGTH, "card"), Block("card_shop", "codes", LENGTH, "card")),
)
CONFIG = ModelConfig(embedding=4, rows=64, hidden=(16,), units=12, batch_size=64, learning_rate=0.01)


def rows(n: int, seed: int) -> Batch:
    """`n` rows with 0 to 5 past events, each of shop 1 or 2. The label, but for noise: did shop 1 come after shop 2
    the last time that the shop changed? It is in the order of the codes alone, not in which ones or how many there are.
    """
    random = np.random.default_rng(seed)
    count = random.integers(0, LENGTH + 1, n)
    shops = random.integers(1, 3, (n, LENGTH))
    empty = np.arange(LENGTH) >= count[:, None]
    change = (shops[:, :-1] != shops[:, 1:]) & ~empty[:, 1:]
    newest = change.argmax(1)
    label = np.where(change.any(1), shops[np.arange(n), newest] == 1, random.random(n) < 0.5)
    numbers = random.normal(0, 2, (n, 1 + LENGTH)).astype(np.float32)
    numbers[:, 1:][empty] = np.nan
    moments = np.arange(n, dtype=np.int64)
    ids = [f"e-{i}" for i in range(n)]
    served = np.full(n, 0.5, np.float32)
    return Batch(ids, moments, moments, numbers, np.where(empty, 0, shops), served, label.astype(np.float32))


@pytest.fixture(scope="module", params=SEQUENCE_FAMILIES)
def trained(request: pytest.FixtureRequest) -> Trainer:
    trainer = Trainer(SCHEMA, replace(CONFIG, family=request.param), 7, "L1", "cpu")
    trainer.train(rows(12_000, 1))
    return trainer


def encoders(trainer: Trainer) -> list[Any]:
    return list(cast(Reader, trainer.model).encoders)


def auc_of(trainer: Trainer) -> float:
    unseen = rows(2000, 2)
    return auc(trainer.score(unseen.numbers, unseen.categories), unseen.label)


def test_it_learns_an_order_that_a_bag_of_codes_cannot(trained: Trainer) -> None:
    blind = Trainer(SCHEMA, replace(CONFIG, family="mlp"), 7, "L1", "cpu")
    blind.train(rows(12_000, 1))
    assert auc_of(blind) < 0.7
    assert auc_of(trained) > auc_of(blind) + 0.15


def test_older_events_count_too(trained: Trainer) -> None:
    unseen = rows(300, 3)
    before = trained.score(unseen.numbers, unseen.categories)
    full = unseen.categories[:, -1] != 0
    unseen.categories[full, -1] = 3 - unseen.categories[full, -1]
    after = trained.score(unseen.numbers, unseen.categories)
    assert (before[full] != after[full]).mean() > 0.5
    np.testing.assert_array_equal(before[~full], after[~full])


def test_series_are_read_in_their_places(trained: Trainer) -> None:
    unseen = rows(300, 4)
    before = trained.score(unseen.numbers, unseen.categories)
    known = ~np.isnan(unseen.numbers[:, 2])
    unseen.numbers[known, 1], unseen.numbers[known, 2] = (
        unseen.numbers[known, 2],
        unseen.numbers[known, 1].copy(),
    )
    after = trained.score(unseen.numbers, unseen.categories)
    # Not every one: the numbers are noise, and where a score is nearly 0 or 1 float32 may not show the difference.
    assert (before[known] != after[known]).mean() > 0.5


def test_what_a_step_sees_is_oldest_first_with_zeros_behind(trained: Trainer) -> None:
    unseen = rows(50, 5)
    numbers, index = trained.model.inputs(unseen.numbers, unseen.categories)
    table_rows = torch.nn.functional.embedding(index, trained.model.table)
    encoder = encoders(trained)[0]
    steps, count = encoder.steps(trained.model, numbers, trained.model.scale(numbers), table_rows)
    for row in range(50):
        past = int((unseen.categories[row] != 0).sum())
        assert int(count[row]) == past
        assert not steps[row, past:].any()
        assert steps[row, :past, 1].tolist() == [1.0] * past  # the number is known
        wanted = trained.model.scale(numbers)[row, 1 : 1 + past].flip(0)
        torch.testing.assert_close(steps[row, :past, 0], wanted)


@every_family
def test_two_entities_have_encoders_of_their_own_and_layers_can_be_stacked(family: str) -> None:
    blocks = (*SCHEMA.blocks, Block("shop_card", "codes", 2, "shop"))
    schema = replace(SCHEMA, blocks=blocks)
    trainer = Trainer(schema, replace(CONFIG, family=family, layers=2), 7, "L1", "cpu")
    batch = rows(500, 1)
    more = np.random.default_rng(1).integers(0, 9, (500, 2))
    trainer.train(replace(batch, categories=np.column_stack((batch.categories, more))))
    assert (len(encoders(trainer)), trainer.rejected_steps) == (2, 0)


def test_without_blocks_it_is_a_perceptron() -> None:
    trainer = Trainer(replace(SCHEMA, blocks=()), replace(CONFIG, family="gru"), 7, "L1", "cpu")
    assert len(encoders(trainer)) == 0
