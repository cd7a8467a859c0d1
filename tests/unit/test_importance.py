"""What a model rests on: a column that it uses costs when it is shuffled, one that it does not use costs nothing."""

import numpy as np
import pytest

from learners.importance import importances
from tests.learner_rows import SCHEMA, rows, trainer_of

COLUMNS = (*SCHEMA.numbers, *SCHEMA.categories)


@pytest.mark.parametrize("family", ["logistic", "dcn", "naive_bayes"])
def test_the_columns_that_make_the_label_matter_most(family):
    trainer = trainer_of(family)
    trainer.train(rows(4_000))
    asked = rows(1_000, 9)
    before = (asked.numbers.copy(), asked.categories.copy())
    found = importances(trainer.model, asked, COLUMNS, np.random.default_rng(1))
    assert set(sorted(found, key=found.__getitem__)[-2:]) == {"amount", "shop"}
    assert min(found["amount"], found["shop"]) > 0.05
    assert abs(found["count"]) < 0.05
    np.testing.assert_array_equal(asked.numbers, before[0])
    np.testing.assert_array_equal(asked.categories, before[1])


def test_a_model_that_learned_nothing_rests_on_nothing():
    found = importances(trainer_of("logistic").model, rows(500), COLUMNS, np.random.default_rng(1))
    assert found == dict.fromkeys(COLUMNS, 0.0)
