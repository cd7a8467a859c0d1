"""The budget: others have their share in the long run, never hold the champion up longer than was saved, and say so."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.batch import COUNTING_FAMILIES, FAMILIES, READS, Batch, ModelConfig, Schema
from learners.budget import ArenaConfig, Budget
from learners.trainer import Trainer
from learners.work import COSTS, work_us

works = st.lists(st.tuples(st.floats(0, 50_000), st.floats(0, 500_000), st.booleans()), max_size=60)


@given(works, st.floats(0.05, 0.95), st.integers(1, 500))
def test_work_beside_the_champion_stays_within_its_share_and_the_reserve(
    steps: list[tuple[float, float, bool]], share: float, reserve_ms: int
) -> None:
    budget = Budget(ArenaConfig(share, reserve_ms), share / 2)
    largest = 0.0
    for champion, beside, tuned in steps:
        budget.earn(champion)
        before = budget.beside
        done = budget.tune(beside) if tuned else budget.spend(beside)
        assert budget.beside == before + (beside if done else 0.0)
        largest = max(largest, beside if done else 0.0)
        earned = budget.champion * share / (1 - share)
        # A batch that is more than could ever be saved is taken on a full account, and earned back after it.
        assert budget.beside <= earned + reserve_ms * 1_000 + largest + 1e-3
    assert (
        budget.tuned <= budget.champion * (share / 2) / (1 - share / 2) + reserve_ms * 1_000 + largest + 1e-3
    )


def test_what_must_be_done_is_earned_back_before_anything_else() -> None:
    budget = Budget(ArenaConfig(0.5, 10))
    budget.must(15_000.0)
    budget.must(10_000.0)  # the debt does not grow beyond the reserve
    assert not budget.spend(1.0)
    budget.earn(9_000.0)
    assert not budget.spend(1.0)
    budget.earn(2_000.0)
    assert budget.spend(900.0)
    assert not budget.spend(900.0)
    assert budget.spent == (11.0, 25.9, 0.0, 0)


def test_the_population_leaves_half_of_the_reserve_to_challengers() -> None:
    budget = Budget(ArenaConfig(0.5, 100), 0.49)
    assert not budget.tune(1.0)  # it begins with nothing, and saves up a twentieth of what all can
    budget.earn(100_000.0)
    assert [budget.tune(1_000.0) for _ in range(6)] == [True] * 5 + [False]
    for _ in range(100):  # nearly all that is earned, and more is spent by challengers
        budget.earn(1_000.0)
        budget.spend(600.0)
        budget.tune(950.0)
    assert budget.tuned > 40_000.0
    assert budget.spend(49_000.0)


def test_a_restored_budget_goes_on_alike() -> None:
    first, second = Budget(ArenaConfig(0.7, 20), 0.1), Budget(ArenaConfig(0.7, 20), 0.1)
    for n in range(10):
        first.earn(123.4)
        first.spend(1_000.0 * n)
        first.tune(77.7)
    second.load(json.loads(json.dumps(first.state())))
    for budget in (first, second):
        budget.earn(0.1)
        budget.spend(15_000.0)
    assert first.state() == second.state()


@pytest.mark.parametrize(
    ("values", "said"), [((0.0, 1), "budget"), ((1.0, 1), "budget"), ((0.5, 0), "reserve_ms")]
)
def test_settings_that_cannot_work_are_refused(values: tuple[float, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ArenaConfig(*values)


def test_every_family_has_a_cost_that_grows_with_rows_and_size() -> None:
    assert set(COSTS) == set(FAMILIES)
    schema = Schema(("x", "y"), ("c",), "t")
    for family in FAMILIES:
        if family in READS:
            continue
        tower = ("y",) if family == "two_tower" else ()
        small = Trainer(schema, ModelConfig(family=family, tower=tower, hidden=(8,)), 1, "L1", "cpu")
        assert 0 < work_us(small, 100) < work_us(small, 600)
        if family not in (*COUNTING_FAMILIES, "logistic", "svm", "rff_svm"):
            wide = Trainer(schema, ModelConfig(family=family, tower=tower, hidden=(512,)), 1, "L1", "cpu")
            assert work_us(wide, 100) > work_us(small, 100)


def test_rows_that_credit_pays_for_and_when_they_begin() -> None:
    from learners.buffer import Buffer

    budget = Budget(ArenaConfig(0.5, 1))
    assert [budget.rows(each, 20) for each in (10.0, 50.0, 1_000.0)] == [20, 10, 0]
    buffer, none = Buffer(1_000), np.zeros((10, 0))
    for start in (0, 10, 20):
        times = np.arange(start, start + 10, dtype=np.int64)
        values = np.zeros(10, np.float32)
        buffer.add(
            Batch([""] * 10, times, times, none.astype(np.float32), none.astype(np.int64), values, values)
        )
    assert [buffer.newest_ms(rows, 5) for rows in (100, 25, 10, 1, 0)] == [5, 5, 20, 29, 30]
