"""The loss detector: how often it is wrong, how soon it is right, one alert a drift, exact restarts."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from learners.batch import Batch
from learners.drift import DETECTORS, Alert, DriftConfig
from learners.loss_drift import BLOCK, MOST_BLOCKS, LossDetector, change_point
from learners.packing import pack, unpack
from learners.prequential import log_loss

CONFIG = DriftConfig()


@cache
def batch_of(n: int, start: int = 0) -> Batch:
    """Rows without columns: the loss detector reads ids and times only. One a second, "e0" at time 0."""
    moments = np.arange(start, start + n, dtype=np.int64) * 1_000
    ids = [f"e{i}" for i in range(start, start + n)]
    nothing = np.zeros(n, np.float32)
    return Batch(ids, moments, moments, nothing[:, None], np.zeros((n, 0), np.int64), nothing, nothing)


def click_losses(seed: int, n: int) -> np.ndarray:
    """Losses of a calibrated model whose positives are 16 % of the examples."""
    random = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(2 - random.normal(size=n)))
    return log_loss(random.random(n) < chance, chance)


def fraud_losses(seed: int, n: int) -> np.ndarray:
    """Losses of a fair model whose positives are 0.8 % of the examples: nearly all tiny, a few huge."""
    random = np.random.default_rng(seed)
    fraud = random.random(n) < 0.008
    return log_loss(fraud, 1 / (1 + np.exp(5.2 - 2 * fraud - random.normal(size=n))))


def feed(
    detector: LossDetector, losses: np.ndarray, step: int = 1_000, start: int = 0, delay: int = 0
) -> list[Alert]:
    """`delay`: how many examples later than its event a label is known."""
    batch = batch_of(len(losses), start)
    batch = replace(batch, known_ms=batch.event_ms + delay * 1_000)
    parts = [slice(first, first + step) for first in range(0, len(losses), step)]
    return [
        alert
        for part in parts
        for alert in detector.update(batch.slice(part.start, part.stop), losses[part], "L1.7")
    ]


def seen_at(alert: Alert, detector: str = "ranks") -> int:
    return int(alert.alert_id.removeprefix(f"{detector}-"))


@pytest.mark.parametrize("losses", [click_losses, fraud_losses])
def test_no_more_than_one_false_alarm_in_a_million_examples(losses: Callable[[int, int], np.ndarray]) -> None:
    alerts = [
        alert for seed in range(20) for alert in feed(LossDetector(CONFIG), losses(seed, 100_000), 10_000)
    ]
    assert len(alerts) <= 2  # in two million


def test_doubled_click_loss_is_one_alert_within_384_examples_that_says_when_it_began() -> None:
    errors, rises = [], []
    for seed in range(20):
        losses = click_losses(seed, 14_000)
        losses[10_000:] *= 2
        alert, *more = feed(LossDetector(CONFIG), losses)
        assert not more
        assert 10_000 < seen_at(alert) <= 10_384
        assert alert.strength > alert.threshold > 0
        rises.append(alert.strength / losses[:10_000].mean())
        assert alert.since_event_id == f"e{alert.since_ms // 1_000}"
        assert alert.event_ms == (seen_at(alert) - 1) * 1_000
        errors.append(abs(alert.since_ms // 1_000 - 10_000))
    assert np.median(errors) <= BLOCK
    assert np.median(rises) == pytest.approx(1.0, abs=0.2)


def test_doubled_fraud_loss_is_noticed_within_2_000_examples_nearly_always() -> None:
    soon, errors = 0, []
    for seed in range(20):
        losses = fraud_losses(seed, 42_000)
        losses[30_000:] *= 2
        alert, *more = feed(LossDetector(CONFIG), losses)
        assert seen_at(alert) > 30_000
        errors.append(abs(alert.since_ms // 1_000 - 30_000))
        soon += seen_at(alert) <= 32_000
        assert all(seen_at(other) - seen_at(alert) > CONFIG.cooldown for other in more)
    assert soon >= 18
    assert np.median(errors) <= 2 * BLOCK


def test_next_to_nothing_that_becomes_five_times_as_much_is_no_drift_and_missed_frauds_are() -> None:
    random = np.random.default_rng(9)
    missed = np.where(random.random(60_000) < 0.004, random.exponential(2, 60_000), 0.0)
    calm = random.exponential(1e-4, 60_000)
    calm[30_000:] *= 5
    assert feed(LossDetector(CONFIG), calm + missed) == []
    missed[30_000:] += np.where(random.random(30_000) < 0.012, random.exponential(2, 30_000), 0.0)
    (alert,) = feed(LossDetector(CONFIG), calm + missed)
    assert 30_000 < seen_at(alert) <= 34_000
    assert abs(alert.since_ms // 1_000 - 30_000) < 1_000


def test_what_an_alert_says() -> None:
    losses = click_losses(0, 12_000)
    losses[10_000:] *= 2
    (alert,) = feed(LossDetector(CONFIG), losses)
    assert (alert.detector, alert.level, alert.subject, alert.version) == (
        "ranks",
        "loss",
        "log_loss",
        "L1.7",
    )
    assert "log loss rose from 0.3" in alert.message
    assert alert.since_event_id in alert.message


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_sees_a_large_rise_and_is_saved_exactly(name: str) -> None:
    losses = np.random.default_rng(8).exponential(0.3, 8_000)
    losses[6_000:] += 1.0
    config = DriftConfig(detectors=(name,), cooldown=0)
    straight, first, second = (LossDetector(config) for _ in range(3))
    alerts = feed(straight, losses)
    assert any(alert.detector == name and 6_000 < seen_at(alert, name) <= 7_000 for alert in alerts)
    before = feed(first, losses[:6_100])
    second.load(unpack(pack(first.state())))
    assert before + feed(second, losses[6_100:], start=6_100) == alerts


def test_of_several_detectors_the_first_to_fire_raises_the_only_alert() -> None:
    losses = click_losses(0, 14_000)
    losses[10_000:] *= 2
    (alert,) = feed(LossDetector(DriftConfig(detectors=("adwin", "ranks"))), losses)
    assert alert.detector == "ranks"  # sooner, though it is named last


def test_an_improvement_is_no_alarm() -> None:
    for seed in range(10):
        losses = click_losses(seed, 20_000)
        losses[8_000:] *= 0.5
        detector = LossDetector(CONFIG)
        assert feed(detector, losses) == []
        assert len(detector.state()["sums"]) * BLOCK < 15_000  # though ADWIN did cut its window


def test_a_rise_that_passes_again_is_one_alert() -> None:
    losses = click_losses(1, 30_000)
    losses[10_000:12_000] *= 2  # the model adapts: a rise, then a fall
    assert len(feed(LossDetector(CONFIG), losses)) == 1


def test_a_learner_that_begins_has_no_alarm_of_the_loss_but_the_next_rise_is_one() -> None:
    losses = click_losses(0, 14_000)
    losses[:640] = np.log(2)  # untrained; then it knows clicks only, since "no click" is known later
    losses[640:900] += 1.5
    losses[10_000:] *= 2
    assert [seen_at(alert) // 1_000 for alert in feed(LossDetector(CONFIG), losses)] == [10]
    soon = feed(LossDetector(replace(CONFIG, cooldown=0)), losses)
    assert [seen_at(alert) // 1_000 for alert in soon] == [0, 10]


def test_a_second_drift_after_the_cooldown_is_a_second_alert() -> None:
    losses = click_losses(2, 30_000)
    losses[10_000:] *= 1.5
    losses[10_000 + CONFIG.cooldown + 2_000 :] *= 1.5
    first, second = feed(LossDetector(CONFIG), losses)
    assert first.alert_id != second.alert_id
    assert second.since_ms > first.since_ms


def test_steps_of_a_rise_within_the_cooldown_are_one_alert() -> None:
    losses = click_losses(3, 16_000)
    for start in (10_000, 11_000, 12_000, 13_000):
        losses[start:] *= 1.3
    assert len(feed(LossDetector(DriftConfig(cooldown=5_000)), losses)) == 1


def test_late_labels_of_what_was_served_before_the_alert_are_the_same_drift() -> None:
    losses = click_losses(3, 48_000)
    for start in range(10_000, 30_000, 6_000):  # gets worse and worse, each step beyond the cooldown
        losses[start:] *= 1.3
    late, prompt = LossDetector(CONFIG), LossDetector(CONFIG)
    assert len(feed(prompt, losses[:32_000])) > 1
    assert len(feed(late, losses[:32_000], delay=25_000)) == 1
    losses[38_000:] *= 2  # a drift in events that were served after the alert
    second = feed(late, losses[32_000:], start=32_000, delay=25_000)
    assert [alert.since_ms > 37_000_000 for alert in second] == [True]


def test_late_labels_of_what_was_served_before_a_swap_are_no_news() -> None:
    losses = click_losses(3, 30_000)
    losses[20_000:] *= 2
    swapped, other = LossDetector(CONFIG), LossDetector(CONFIG)
    for detector in (swapped, other):
        feed(detector, losses[:15_000], delay=20_000)
    swapped.swapped()
    assert feed(swapped, losses[15_000:], start=15_000, delay=20_000) == []
    assert len(feed(other, losses[15_000:], start=15_000, delay=20_000)) == 1


def test_a_rise_below_the_minimum_effect_is_no_alarm() -> None:
    losses = np.full(40_000, 0.3)
    losses[20_000:] += 0.03
    assert len(feed(LossDetector(DriftConfig(min_effect=0.01)), losses)) == 1
    assert feed(LossDetector(DriftConfig(min_effect=0.04)), losses) == []


@pytest.mark.parametrize("step", [1, 7, 33, 5_000])
def test_how_the_stream_is_sliced_changes_nothing(step: int) -> None:
    losses = click_losses(4, 9_000)
    losses[7_000:] *= 2
    assert feed(LossDetector(CONFIG), losses, step) == feed(LossDetector(CONFIG), losses, 250) != []


@pytest.mark.parametrize("stop", [100, 6_995, 7_211, 8_000])
def test_a_restart_changes_nothing(stop: int) -> None:
    losses = click_losses(5, 20_000)
    losses[7_000:] *= 2
    losses[14_000:] *= 2
    config = DriftConfig(detectors=("ranks", "adwin", "page_hinkley", "ddm"))
    straight, first, second = (LossDetector(config) for _ in range(3))
    before = feed(first, losses[:stop], 97)
    second.load(unpack(pack(first.state())))
    after = feed(second, losses[stop:], 97, start=stop)
    expected = feed(straight, losses, 97)
    assert before + after == expected
    assert len(expected) == 2
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, second.state()[name], err_msg=name)


def test_memory_is_bounded_and_a_full_memory_still_sees_a_drift() -> None:
    losses = np.resize(click_losses(6, 50_000), MOST_BLOCKS * BLOCK + 20_000)
    losses[-5_000:] *= 2
    detector = LossDetector(CONFIG)
    assert len(feed(detector, losses, 5_000)) == 1
    assert len(detector.state()["sums"]) < MOST_BLOCKS


def test_losses_that_are_not_numbers_are_left_out_and_huge_ones_are_clipped() -> None:
    losses = click_losses(7, 6_000)
    holes, clean = LossDetector(CONFIG), LossDetector(CONFIG)
    mask = np.arange(6_000) % 3 != 0
    feed(holes, np.where(mask, losses, np.nan))
    feed(clean, losses[mask])
    np.testing.assert_array_equal(holes.state()["sums"], clean.state()["sums"])
    assert holes.update(batch_of(0), np.zeros(0), "L1.0") == []
    one = LossDetector(CONFIG)
    feed(one, np.full(BLOCK, np.float64(1e9)))
    assert one.state()["sums"].tolist() == [BLOCK]


def test_the_change_point_is_where_the_mean_changed() -> None:
    random = np.random.default_rng(0)
    sums = np.concatenate([random.normal(3, 0.5, 400), random.normal(4, 0.5, 100)])
    assert abs(change_point(sums) - 400) <= 3
    assert change_point(-sums) == change_point(sums)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"delta": 0.0}, "delta"),
        ({"detectors": ()}, "detectors"),
        ({"detectors": ("ranks", "adwim")}, "adwim"),
        ({"false_alarms_per": 0}, "false_alarms_per"),
        ({"alpha": 1.0}, "alpha"),
        ({"psi_threshold": 0.0}, "psi_threshold"),
        ({"min_effect": -0.1}, "min_effect"),
        ({"min_events": 0}, "min_events"),
        ({"window": 0}, "window"),
        ({"cooldown": -1}, "cooldown"),
        ({"min_events": 10, "max_events": 9}, "max_events"),
        ({"policy": "never"}, "policy"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        DriftConfig(**wrong)


def test_reading_the_settings_costs_neither_river_nor_torch() -> None:
    code = "import sys, learners.drift; print(sorted({'river', 'torch', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
