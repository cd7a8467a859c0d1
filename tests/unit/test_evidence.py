"""Evidence of many statistics at once: its budget holds, a change is seen and dated, restarts are exact."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.evidence import MEMORY, RankEvidence
from learners.packing import pack, unpack


def blocks_until(evidence: RankEvidence, values: np.ndarray, limit: float) -> int | None:
    """How many blocks it took until the evidence of any statistic was enough."""
    for number, value in enumerate(values, 1):
        evidence.update(value)
        if evidence.values.max() >= limit:
            return number
    return None


def test_without_a_change_false_alarms_are_as_far_apart_as_the_budget_says_or_further() -> None:
    budget, kinds, most = 100, 10, 1_000
    lengths = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        values = random.normal(size=(most, kinds)) ** 3 + random.normal(size=(most, 1))  # they hang together
        found = blocks_until(RankEvidence(kinds), values, budget * kinds)
        lengths.append(most if found is None else found)
    assert np.mean(lengths) >= budget


def test_one_statistic_of_many_that_moves_is_found_and_dated() -> None:
    for seed in range(4):
        values = np.random.default_rng(seed).normal(size=(400, 60))
        values[300:, 7] += 6.0
        evidence = RankEvidence(60)
        found = blocks_until(evidence, values, 60 * 16_000)
        assert found is not None
        assert 300 < found <= 310
        assert evidence.values.argmax() == 7
        assert abs(found - evidence.since(7) - 300) <= 2


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_bet_is_fair_whatever_ties_there_are(values: list[float]) -> None:
    won = []
    for last in range(len(values)):  # whichever of them comes last is as likely as any other
        evidence = RankEvidence(1)
        for value in values[:last] + values[last + 1 :]:
            evidence.update(np.array([value]))
        before = evidence.state()["r"]
        evidence.update(np.array([values[last]]))
        won.append(evidence.state()["r"] / (before + 1.0))
    assert (np.mean(won, axis=0) <= 1.0 + 1e-9).all()


def test_what_has_no_value_does_not_bet() -> None:
    evidence = RankEvidence(2)
    for _ in range(5):
        evidence.update(np.array([1.0, np.nan]))
    assert evidence.values[0] > 0.0
    assert evidence.values[1] == 0.0


def test_a_restart_changes_nothing_and_the_past_is_bounded() -> None:
    values = np.random.default_rng(2).normal(size=(2 * MEMORY + 50, 3))
    straight, first, second = (RankEvidence(3) for _ in range(3))
    for number, value in enumerate(values):
        straight.update(value)
        (first if number < MEMORY + 9 else second).update(value)
        if number == MEMORY + 8:
            second.load(unpack(pack(first.state())))
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, second.state()[name], err_msg=name)
    straight.forget(1)
    assert straight.values[1] == 0.0
    straight.restart()
    assert straight.values.tolist() == [0.0] * 3
