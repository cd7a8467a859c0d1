"""The detector on ranks: its budget of false alarms holds for any distribution; a change is seen soon."""

import numpy as np
import pytest

from learners.ranks import LADDER, MEMORY, Change, RankDetector, Scale, bets

BUDGET = 2_000  # blocks


def values(kind: str, seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    match kind:
        case "normal":
            return random.normal(size=count)
        case "heavy":  # no mean
            return np.asarray(random.standard_cauchy(count))
        case "rare":  # most are next to nothing, each something else
            return random.exponential(0.1, count) + (random.random(count) < 0.1) * random.exponential(
                5, count
            )
        case _:  # ties nearly always
            return np.asarray((random.random(count) < 0.1).astype(float))


def first_alarm(detector: RankDetector, blocks: np.ndarray, falls: bool = True) -> tuple[int, Change] | None:
    """How many blocks it took, and what was said."""
    for count, block in enumerate(blocks, 1):
        change = detector.update(np.array([block]))
        if change and (change.rise or falls):
            return count, change
    return None


@pytest.mark.parametrize("count", [1, 2, 7, 100, MEMORY])
def test_a_bet_on_a_uniform_rank_is_fair(count: int) -> None:
    np.testing.assert_allclose(bets(count)[-1], count)
    assert (np.diff(bets(count), axis=0) > 0).all()


@pytest.mark.parametrize(("kind", "floor"), [("normal", -9.0), ("heavy", -1.0), ("ties", 0.5), ("rare", 0.5)])
def test_alarms_without_a_change_are_no_more_frequent_than_the_budget_says(kind: str, floor: float) -> None:
    """Also with what comes after an alarm or a fall: the detector goes on with what it takes for the new regime."""
    detector, allowed = RankDetector(BUDGET, floor), 50
    blocks, start, alarms = values(kind, 0, allowed * BUDGET), 0, 0
    for end, block in enumerate(blocks[:, None], 1):
        change = detector.update(block)
        if change:
            start = max(end - change.blocks, start)
            detector.restart(blocks[start:end].tolist())
            alarms += bool(change.rise)
    # And it would alarm: a detector that never does would pass the upper bound.
    assert allowed / 4 < alarms <= allowed


def test_what_gets_better_as_a_model_that_learns_brings_no_false_rise() -> None:
    for seed in range(20):
        blocks = values("normal", seed, 2_000) + 3 * np.exp(-np.arange(2_000) / 300)
        detector = RankDetector(1e5)
        for block in blocks:
            change = detector.update(np.array([block]))
            assert change is None or not change.rise
            if change:
                detector.restart([])


@pytest.mark.parametrize(("shift", "within"), [(4.0, 8), (1.0, 60), (-1.0, 60), (0.3, 1_000)])
def test_a_change_is_seen_soon_with_its_direction_and_beginning(shift: float, within: int) -> None:
    late, right = [], 0
    for seed in range(20):
        blocks = values("normal", seed, 600 + 2 * within)
        blocks[600:] += shift
        found = first_alarm(RankDetector(1e5), blocks, falls=shift < 0)
        assert found
        count, change = found
        right += change.rise == (shift > 0)
        late.append((count - 600, abs(count - change.blocks - 600)))
    delay, misplaced = np.median(late, axis=0)
    assert right >= 19
    assert 0 < delay <= within
    assert misplaced <= within / 4


def test_what_happens_below_the_floor_is_not_seen_and_what_rises_out_of_it_is() -> None:
    blocks = values("rare", 1, 4_000)
    more, often = blocks.copy(), blocks.copy()
    more[2_000:] = np.where(blocks[2_000:] < 1.0, np.minimum(blocks[2_000:] * 3, 1.0), blocks[2_000:])
    often[2_000:] += 5.0 * (np.arange(2_000) % 3 == 0)
    assert first_alarm(RankDetector(1e6), more) is not None
    scale = Scale(1e6, 1.0)
    assert all(scale.update(value) is None for value in more)
    found = first_alarm(RankDetector(1e6, 1.0), often)
    assert found is not None
    assert found[1].rise
    assert abs(found[0] - found[1].blocks - 2_000) <= 30


def test_only_ranks_matter() -> None:
    blocks = values("normal", 1, 900)
    blocks[600:] += 1.0
    one, other = (
        first_alarm(RankDetector(1e4), np.exp(blocks)),
        first_alarm(RankDetector(1e4), np.exp(2 * blocks)),
    )
    assert one is not None
    assert other is not None
    assert one[0] <= other[0] + LADDER[1]  # the sums of the larger scales depend on more than ranks
