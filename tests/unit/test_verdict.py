"""The paired test: how often it is wrong, how soon it is right, and that it does not care how it is fed."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.verdict import BOUND, PairedTest, Wealth

ALPHA, EFFECT, STREAMS, EVENTS = 0.01, 0.0005, 10_000, 3_000
NEEDED = math.log(1.0 / ALPHA)


def null_stream(kind: str, random: np.random.Generator) -> np.ndarray:
    """Differences whose mean, given the past, is exactly EFFECT: the hardest case of "not better"."""
    match kind:
        case "symmetric":
            return random.normal(EFFECT, 0.3, EVENTS)
        case "rare_losses":  # looks better on 99 % of the events, and pays for it on the rest
            gain = (EFFECT + 0.01 * BOUND) / 0.99
            return np.asarray(np.where(random.random(EVENTS) < 0.01, -BOUND, gain))
        case "rare_gains":
            loss = (EFFECT - 0.01 * BOUND) / 0.99
            return np.asarray(np.where(random.random(EVENTS) < 0.01, BOUND, loss))
        case _:  # calm and wild times, as when a drift comes and goes; clipping is symmetric about the mean
            wildness = np.repeat(np.exp(random.normal(-2, 1, EVENTS // 100)), 100)
            reach = BOUND - EFFECT
            return np.asarray(EFFECT + np.clip(random.normal(0, 1, EVENTS) * wildness, -reach, reach))


@pytest.mark.parametrize("kind", ["symmetric", "rare_losses", "rare_gains", "changing_variance"])
def test_a_challenger_that_is_not_better_wins_at_most_alpha_of_the_time_though_watched_all_along(
    kind: str,
) -> None:
    wrong = 0
    for seed in range(STREAMS):
        path = Wealth(EFFECT).update(null_stream(kind, np.random.default_rng(seed)))
        wrong += bool(path.max() >= NEEDED)
    # Three standard errors above alpha: 0.013 of 10,000.
    assert wrong / STREAMS <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / STREAMS)


def test_under_the_null_wealth_is_one_on_average_or_less() -> None:
    final = [
        math.exp(Wealth(EFFECT).update(null_stream("symmetric", np.random.default_rng(seed))[:300])[-1])
        for seed in range(2_000)
    ]
    assert np.mean(final) <= 1.0 + 3 * np.std(final) / math.sqrt(len(final))
    assert np.mean(final) > 0.5  # and it does bet: a test that never bets would pass the line above


@pytest.mark.parametrize(
    ("mean", "spread", "within"), [(0.02, 0.3, 6_000), (0.005, 0.05, 6_000), (0.1, 0.5, 800)]
)
def test_a_better_challenger_wins_soon(mean: float, spread: float, within: int) -> None:
    won = []
    for seed in range(100):
        path = Wealth(EFFECT).update(np.random.default_rng(seed).normal(mean, spread, within))
        won.append(path.max() >= NEEDED)
    assert np.mean(won) >= 0.9


def paired(test: PairedTest, mean: float, events: int, seed: int = 0, step: int = 256) -> None:
    """Feed losses whose difference (champion minus challenger) has this mean."""
    random = np.random.default_rng(seed)
    champion = random.exponential(0.4, events)
    challenger = champion - random.normal(mean, 0.2, events)
    for start in range(0, events, step):
        test.update(champion[start : start + step], challenger[start : start + step])


def test_verdicts() -> None:
    better, worse, same = (PairedTest(ALPHA, EFFECT, min_events=500, max_events=4_000) for _ in range(3))
    assert better.verdict == "undecided"
    paired(better, 0.05, 3_000)
    paired(worse, -0.05, 3_000)
    paired(same, 0.0, 3_000)
    assert (better.verdict, worse.verdict, same.verdict) == ("promote", "reject", "undecided")
    assert better.e_value >= 1 / ALPHA
    assert worse.e_value_worse >= 1 / ALPHA
    champion, challenger = better.losses
    assert champion - challenger == pytest.approx(0.05, abs=0.02)
    paired(same, 0.0, 1_000)
    assert same.verdict == "keep"


def test_better_by_less_than_the_minimum_effect_is_not_better() -> None:
    test = PairedTest(ALPHA, 0.05)
    paired(test, 0.02, 20_000)
    assert test.verdict == "undecided"
    unconditional = PairedTest(ALPHA, 0.0)
    paired(unconditional, 0.02, 20_000)
    assert unconditional.verdict == "promote"


def test_no_verdict_before_min_events_however_strong_the_evidence() -> None:
    test = PairedTest(ALPHA, EFFECT, min_events=1_000)
    paired(test, 1.0, 999)
    assert test.e_value > 1e9
    early = test.verdict
    paired(test, 1.0, 1)
    assert (early, test.verdict) == ("undecided", "promote")


def test_one_event_counts_for_no_more_than_the_bound() -> None:
    huge, bounded = PairedTest(ALPHA, EFFECT), PairedTest(ALPHA, EFFECT)
    paired(huge, 0.05, 1_000)
    paired(bounded, 0.05, 1_000)
    huge.update(np.array([13.0]), np.array([0.1]))
    bounded.update(np.array([BOUND + 0.1]), np.array([0.1]))
    assert huge.e_value == bounded.e_value


def test_batches_do_not_matter_and_a_bet_knows_only_the_past() -> None:
    differences = np.random.default_rng(3).normal(0.01, 0.3, 1_000)
    whole, single = Wealth(EFFECT), Wealth(EFFECT)
    path = whole.update(differences)
    singly = [single.update(differences[i : i + 1])[0] for i in range(1_000)]
    np.testing.assert_allclose(path, singly, rtol=1e-9, atol=1e-12)
    changed = differences.copy()
    changed[500:] = -1.0  # the future changes nothing before it
    np.testing.assert_array_equal(Wealth(EFFECT).update(changed)[:500], path[:500])


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.floats(0, 1))
def test_wealth_stays_positive_whatever_comes(differences: list[float], margin: float) -> None:
    path = Wealth(margin).update(np.array(differences, np.float64))
    assert np.isfinite(path).all()


def test_a_test_goes_on_from_its_saved_state_exactly() -> None:
    straight, first = PairedTest(ALPHA, EFFECT), PairedTest(ALPHA, EFFECT)
    paired(straight, 0.03, 512, seed=1)
    paired(first, 0.03, 512, seed=1)
    second = PairedTest(ALPHA, EFFECT)
    second.load(json.loads(json.dumps(first.state())))
    paired(straight, 0.03, 700, seed=2)
    paired(second, 0.03, 700, seed=2)
    assert second.state() == straight.state()


def test_what_cannot_be_a_test_or_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        PairedTest(1.0, EFFECT)
    with pytest.raises(ValueError, match="margin"):
        PairedTest(ALPHA, BOUND)
    with pytest.raises(ValueError, match="finite"):
        PairedTest(ALPHA, EFFECT).update(np.array([1.0]), np.array([math.nan]))
    assert math.isnan(PairedTest(ALPHA, EFFECT).losses[0])
